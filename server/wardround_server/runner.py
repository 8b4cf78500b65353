"""One study at work: its Flower `ServerApp` in a thread, from the co-signed envelope to the release."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from flwr.app import Context, RecordDict
from flwr.serverapp import Grid, ServerApp

from wardround_common.adapter import adapter_layout, initial_digest
from wardround_common.audit.events import ModelReleased
from wardround_common.envelope.update import load_update_key, open_update, update_info
from wardround_common.errors import VerificationError, WardroundError
from wardround_common.identity.keys import node_id
from wardround_common.logging import get_logger
from wardround_common.models import locate_model, weight_shapes
from wardround_common.rounds import BlobRef
from wardround_common.signing import sign_document
from wardround_common.study import Study, open_cosigned
from wardround_server.office import Office
from wardround_server.release.build import ReleaseInputs, build_release
from wardround_server.rounds.desk import Audit, Blobs, Desk, Entry, Interrupted
from wardround_server.rounds.evaluation import evaluations
from wardround_server.rounds.state import RoundRecord, RoundState
from wardround_server.rounds.strategy import WardStrategy
from wardround_server.status import StatusBoard
from wardround_server.studies import Proposal

log = get_logger("server.study")


@dataclass(frozen=True, kw_only=True)
class Surroundings:
    """What all studies of one server share."""

    office: Office
    audit: Audit
    blobs: Blobs
    state: RoundState
    board: StatusBoard
    hold: Callable[[Study], str] = lambda study: ""  # why a study may begin no new round now


class StudyRunner(threading.Thread):
    """Runs one study until it is released, fails, or the server stops.

    Args:
        proposal: the study with all signatures.
        grid: Flower's grid for this study.
        around: what the server's studies share.
    """

    def __init__(self, proposal: Proposal, grid: Grid, around: Surroundings) -> None:
        super().__init__(name=f"study-{proposal.study.name}", daemon=True)
        self._proposal = proposal
        self._grid = grid
        self._around = around
        self.error: WardroundError | None = None
        self.completed = False
        self.halt = threading.Event()  # the server shuts down, or the study was aborted

    def run(self) -> None:
        """Run the study; a failure is kept in `error` for the daemon to act on."""
        name = self._proposal.study.name
        try:
            self._around.office.endings.started(self._proposal.study.sha256())
            server_app(self._strategy())(self._grid, _context())
            self.completed = True
            log.info("study completed", study=name)
        except Interrupted:
            log.info("study interrupted; unless it was aborted it resumes at the next start", study=name)
        except WardroundError as error:
            self.error = error
            log.error("study stopped", study=name, code=error.code, why=str(error), next=error.next_step)

    def _strategy(self) -> WardStrategy:
        around, study = self._around, open_cosigned(self._proposal.envelope, self._around.office.identity)
        key = load_update_key(around.office.home.update_key(study.name))
        digest = study.sha256()
        self._layout = adapter_layout(
            weight_shapes(locate_model(study.model.source, offline=True)), study.adapter, study.task
        )
        if initial_digest(self._layout, study.adapter.seed) != study.adapter.initial:
            raise VerificationError(
                "adapter-digest-differs",
                f"the adapter of study {study.name} does not start from the values that its seed gives",
                next_step="the base model on this machine changed: restore it, then start the server again",
            )
        desk = Desk(
            study=study,
            layout=self._layout,
            nodes={member.name: node_id(member.identity) for member in study.cohort.members},
            audit=around.audit,
            blobs=around.blobs,
            unseal=lambda source, round_, site: open_update(source, key, update_info(digest, round_, site)),
            sign=lambda document, kind: sign_document(document, kind, around.office.keys.identity),
            sums=around.office.home.study_folder(study.name) / "sums",
            report=around.board.study,
            stop=self.halt,
            clock=time.monotonic,
            hold=lambda: around.hold(study),
            withdrawn=lambda: around.office.endings.gone(study),
        )
        return WardStrategy(desk=desk, state=around.state, finish=self._release)

    def _release(self, adapter: BlobRef, record: RoundRecord) -> Entry:
        around, study = self._around, self._proposal.study
        inputs = ReleaseInputs(
            study=study,
            envelope=self._proposal.envelope,
            layout=self._layout,
            trained=around.blobs.read(adapter),
            round_=record.plan.round,
            rounds_run=len(around.state.rounds(study.sha256())),
            checkpoint=record.checkpoint,
            adapter=adapter.digest,
            evaluations=evaluations(around.state.rounds(study.sha256())),
            key=around.office.keys.identity,
        )
        provenance = build_release(around.office.home.release(study.name), inputs)
        event = ModelReleased(
            study=study.sha256(), round=record.plan.round, adapter=adapter.digest, provenance=provenance.sha256()
        )
        return event, frozenset(member.name for member in study.cohort.members)


def server_app(strategy: WardStrategy) -> ServerApp:
    """Return the Flower `ServerApp` that runs `strategy` on whatever grid it is given."""
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        strategy.start(grid)

    return app


def _context() -> Context:
    return Context(run_id=0, node_id=0, node_config={}, state=RecordDict(), run_config={})
