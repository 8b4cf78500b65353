"""What the operator sees of a study while a round runs."""

from typing import Literal

from wardround_server.rounds.desk import Desk, SitePhase, StudyStatus

StudyPhase = Literal["waiting", "running", "completed", "paused", "failed"]


class Progress:
    """Reports one study's phase and what each site does in it.

    Args:
        desk: takes the reports.
    """

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._sites: dict[str, SitePhase] = {}
        self._evaluation = ""

    def working(self) -> None:
        """All sites were asked."""
        self._sites = dict.fromkeys(self._desk.sites, "working")

    def measured(self, words: str) -> None:
        """An evaluation has new figures."""
        self._evaluation = words

    def answered(self, site: str) -> None:
        """One site replied."""
        self._sites[site] = "answered"

    def report(self, phase: StudyPhase, round_: int, message: str) -> None:
        """Show `phase` of `round_` in one line."""
        study = self._desk.study
        self._desk.report(
            StudyStatus(
                phase=phase,
                study=study.name,
                round=round_,
                rounds=study.privacy.rounds,
                message=message,
                evaluation=self._evaluation,
                sites=dict(self._sites),
            )
        )

    def waiting(self, round_: int, what: str, missing: list[str]) -> None:
        """Say for whom the round waits."""
        self.report("paused", round_, f"waiting for {what} of {', '.join(missing)}")
