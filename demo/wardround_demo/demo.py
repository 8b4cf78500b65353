"""One run of the demo, from an empty folder to `results.json`.

Rules.
- Data and baselines are computed in worker processes while the roles enrol and train; the table is
  made when the daemons have stopped and the reviewer has checked their trail.
- Whatever happens, no process is left behind (`processes`).
- The result is sound only if the audit trail is accepted and every hospital's ε follows from it.

    >>> Demo(folder=prepare(Path("demo-out")), options=options, console=Console()).run().sound
    True
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console

from wardround_common import __version__
from wardround_demo import recorded, report
from wardround_demo.chapters import HOSPITALS
from wardround_demo.dataset import load
from wardround_demo.folder import Folder
from wardround_demo.memory import PeakMemory
from wardround_demo.processes import Supervisor
from wardround_demo.results import Phase, Results
from wardround_demo.scenario import Scenario
from wardround_demo.screen import Screen
from wardround_demo.settings import Plan
from wardround_demo.workers import Workers


@dataclass(frozen=True, kw_only=True)
class Options:
    """What the command line says."""

    plan: Plan
    quick: bool = False
    seed: int = 0
    all_arms: bool = False
    record: bool = False
    command: str = "./run demo"


@dataclass(kw_only=True)
class Demo:
    """One run. Call `run` once, from the main thread."""

    folder: Folder
    options: Options
    console: Console
    phases: list[Phase] = field(default_factory=list)
    began: float = field(default_factory=time.monotonic)

    def run(self) -> Results:
        """Run everything and return the results, which are in `results.json` too.

        Raises:
            WardroundError: with what to do next.
        """
        plan, seed = self.options.plan, self.options.seed
        with (
            Supervisor(self.folder.logs) as children,
            PeakMemory(lambda: children.pids) as memory,
            Screen(self.console, plan.title, HOSPITALS) as screen,
        ):
            scenario = Scenario(folder=self.folder, children=children, plan=plan, seed=seed)
            workers = Workers(folder=self.folder, children=children, plan=plan, quick=self.options.quick)
            self._train(scenario, workers, screen)
            # The reviewer checks the trail while another process loads the release.
            workers.start("released", "released", "--data", self.folder.data, "--release", self.folder.release)
            with self._phase(screen, "check the audit trail as the reviewer"):
                reviewed = report.review(scenario)
            scores = self._score(workers, screen)
            results = self._report(reviewed, scores, memory)
        self.folder.results.write_text(results.to_json(), encoding="utf-8")
        if self.options.record:
            recorded.save([row for row in results.rows if row.arm in report.OTHERS and row.source == "live"])
        return results

    def _train(self, scenario: Scenario, workers: Workers, screen: Screen) -> None:
        """Run the whole study; the daemons are stopped and the release is copied when it returns."""
        data = self.folder.data
        workers.start("data", "data", "--seed", str(self.options.seed), out=data)
        with self._phase(screen, "found the server"):
            scenario.found_server()
        with self._phase(screen, "enrol three hospitals"):
            scenario.enrol()
        with self._phase(screen, "prepare the public texts"):
            workers.wait("data", screen, out=data)
        if self._light:
            workers.start("baselines", "baselines", "--data", data)
        with self._phase(screen, "propose and approve the study"):
            scenario.agree()
        with self._phase(screen, "train together"):
            scenario.start_hospitals()
            scenario.wait_until_completed(screen.show)
        with self._phase(screen, "stop the daemons, copy the release"):
            scenario.stop_daemons()
            scenario.release()

    def _score(self, workers: Workers, screen: Screen) -> dict[str, Any]:
        """Return arm -> scores, and under `hospitals` the federated model's accuracy for each."""
        data, seed = self.folder.data, str(self.options.seed)
        found: dict[str, Any] = {}
        with self._phase(screen, "score the release, loaded with stock PEFT"):
            found |= workers.collect("released", screen)
            if not self._light:
                workers.start("baselines", "baselines", "--data", data)
            found |= workers.collect("baselines", screen)
        if self.options.all_arms:
            with self._phase(screen, "compute the other arms"):
                for arm in report.OTHERS:
                    workers.start(arm, "arm", arm, "--data", data, "--seed", seed)
                    found |= workers.collect(arm, screen)
        return found

    def _report(self, reviewed: report.Reviewed, scores: dict[str, Any], memory: PeakMemory) -> Results:
        audit, without, privacy = reviewed
        hospitals = report.with_accuracies(without, scores.get("hospitals", {}))
        data, options = load(self.folder.data), self.options
        return Results(
            title=options.plan.title,
            quick=options.quick,
            model=options.plan.model,
            seed=options.seed,
            version=__version__,
            data_digest=data.manifest.digest,
            data_source=data.manifest.source,
            test_texts=len(data.test),
            rows=report.rows(data, scores, seed=options.seed, command=options.command),
            hospitals=hospitals,
            worst_hospital=report.worst(hospitals),
            privacy=privacy,
            audit=audit,
            phases=tuple(self.phases),
            seconds=round(time.monotonic() - self.began, 1),
            peak_memory_bytes=memory.peak_bytes,
            files=report.files_of(self.folder),
        )

    @property
    def _light(self) -> bool:
        """Whether the baselines fit into memory beside three hospitals that train: MiniLM's do, SmolLM2's do not."""
        return self.options.plan.form == "classification"

    @contextmanager
    def _phase(self, screen: Screen, name: str) -> Iterator[None]:
        """Time what is done inside, and say so on the screen."""
        screen.phase(name)
        begun = time.monotonic()
        yield
        self.phases.append(Phase(name=name, seconds=round(time.monotonic() - begun, 2)))
