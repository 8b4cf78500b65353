"""What an audit trail says happened: studies, their rounds, who answered, and what is missing.

Rules.
- A study counts as known only if the operator of the trust file signed it; each approval is checked against the
  member's key.
- Each hospital of a started round is in exactly one state; one that the log says nothing about is `unaccounted`.
- Gaps are findings for a person: the log is complete for none of them to be there, and each names its entries.
Not done here: decryption (`rows`), ε (`epsilon`), whether the folder is intact (`verify`).

    >>> collect(rows, trust).studies["sha256:…"].rounds[3].states["st-elsewhere"]  # doctest: +SKIP
    'late'
"""

import base64
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from wardround_common.audit.rows import Row
from wardround_common.audit.trust import Trust
from wardround_common.documents import canonical_json
from wardround_common.errors import ProtocolError, WardroundError
from wardround_common.privacy.evaluation import Figures, figures
from wardround_common.privacy.mechanism import MechanismRecord, parse_record
from wardround_common.signing import Envelope, Signature, open_envelope, parse_public_key
from wardround_common.study import STUDY_TYPE, Study

CLOCK_BACK_S = 30
"""The claimed time may run back by so much (NTP steps) before it is a finding."""

MAX_GAPS = 1_000
"""More findings of one report help nobody; the number of all is still given."""

USED, ANSWERED, OPEN, UNACCOUNTED = "used", "answered", "no outcome yet", "unaccounted"


@dataclass(frozen=True, kw_only=True)
class Gap:
    """One finding."""

    what: str
    entries: tuple[int, ...] = ()  # indexes at which to look


@dataclass(kw_only=True)
class Round:
    """One round of a study; dictionaries map sites to entry indexes."""

    number: int
    started: int | None = None  # index of round.started
    started_at: int = 0  # seconds since 1970, claimed
    ended: int | None = None
    ended_at: int = 0
    outcome: str = OPEN  # "aggregated", "failed: REASON" or "no outcome yet"
    adapter: str = ""  # digest of the global adapter afterwards
    before: str = ""  # digest of the global adapter at the start
    evaluated: Figures | None = None  # noised figures from held-out units, of the adapter at the start
    cohort: tuple[str, ...] = ()
    received: dict[str, int] = field(default_factory=dict)
    spent: dict[str, int] = field(default_factory=dict)
    dropped: dict[str, tuple[str, int]] = field(default_factory=dict)  # site -> (reason, index)
    survivors: tuple[str, ...] = ()
    witnesses: tuple[str, ...] = ()
    refused: dict[str, int] = field(default_factory=dict)

    @property
    def where(self) -> tuple[int, ...]:
        """Index of its start, if the log has one."""
        return () if self.started is None else (self.started,)

    @property
    def states(self) -> dict[str, str]:
        """Every cohort member's state: `used`, why its answer was not used, or `unaccounted`."""
        sites = dict.fromkeys((*self.cohort, *self.received, *self.dropped))
        return {site: self._state(site) for site in sites}

    def _state(self, site: str) -> str:
        if site in self.dropped:
            return self.dropped[site][0]
        if site in self.survivors:
            return USED
        if site in self.received and self.outcome != "aggregated":
            return ANSWERED
        return OPEN if self.outcome == OPEN else UNACCOUNTED


@dataclass(kw_only=True)
class StudyHistory:
    """One study."""

    digest: str
    study: Study | None = None  # None: its text is not in the log, or not signed by the operator
    created: int | None = None
    mechanisms: tuple[MechanismRecord, ...] = ()  # what the study fixes for its rounds, by round % len
    approved: dict[str, int] = field(default_factory=dict)
    rounds: dict[int, Round] = field(default_factory=dict)
    records: dict[str, list[tuple[int, MechanismRecord]]] = field(default_factory=dict)  # signed, with their index
    unsigned: set[str] = field(default_factory=set)  # sites for which the log holds a record that they did not sign
    unpriced: set[str] = field(default_factory=set)  # sites with a signed record that this version cannot price
    released: int | None = None  # index
    released_round: int = 0
    adapter: str = ""  # digest of the released adapter
    provenance: str = ""

    @property
    def name(self) -> str:
        """The study's name, or the beginning of its digest."""
        return self.study.name if self.study else self.digest[7:19]


@dataclass(kw_only=True)
class History:
    """What all entries come to."""

    size: int = 0
    first_time: int = 0
    last_time: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    segments: dict[str, int] = field(default_factory=dict)  # -> index of its segment.open
    studies: dict[str, StudyHistory] = field(default_factory=dict)
    gaps: list[Gap] = field(default_factory=list)
    gaps_found: int = 0

    def add_gap(self, what: str, *entries: int) -> None:
        """Note a finding; beyond MAX_GAPS only its number."""
        self.gaps_found += 1
        if len(self.gaps) < MAX_GAPS:
            self.gaps.append(Gap(what=what, entries=entries))


def collect(rows: Iterable[Row], trust: Trust) -> History:
    """Return the history that `rows`, in order, tell."""
    collector = Collector(trust)
    for row in rows:
        collector.add(row)
    return collector.finish()


class Collector:
    """Takes rows one by one, so that they need not all be kept."""

    def __init__(self, trust: Trust) -> None:
        self._trust = trust
        self._history = History()
        self._running = False  # a server.start without a server.stop
        self._take = {
            "server.start": self._server_start,
            "server.stop": self._server_stop,
            "study.created": self._study_created,
            "study.approved": self._study_approved,
            "round.started": self._round_started,
            "update.received": self._update_received,
            "dp.spent": self._privacy_spent,
            "client.dropped": self._client_dropped,
            "round.aggregated": self._round_aggregated,
            "round.evaluated": self._round_evaluated,
            "round.failed": self._round_failed,
            "secagg.attack": self._attack_reported,
            "witness.quorum": self._witness_quorum,
            "witness.refused": self._witness_refused,
            "model.released": self._model_released,
        }

    def add(self, row: Row) -> None:
        """Take the next row."""
        history = self._history
        if row.time < history.last_time - CLOCK_BACK_S:
            back = history.last_time - row.time
            history.add_gap(f"the server's clock runs back by {back} s here; the order is by index", row.index)
        history.first_time = history.first_time or row.time
        history.last_time = max(history.last_time, row.time)
        history.size += 1
        history.kinds[row.kind] += 1
        if row.kind == "segment.open":
            history.segments[row.segment] = row.index
        elif row.problem and row.kind != "sealed":
            history.add_gap(f"entry of kind {row.kind}: {row.problem}", row.index)
        take = self._take.get(row.kind)
        if take:
            take(row)

    def finish(self) -> History:
        """Return the history, with what is missing in it."""
        history = self._history
        if history.kinds["sealed"]:
            history.add_gap(f"{history.kinds['sealed']} entries cannot be read with your key")
        for study in history.studies.values():
            _find_gaps(study, history)
        return history

    def _study(self, row: Row) -> StudyHistory:
        return self._history.studies.setdefault(row.study, StudyHistory(digest=row.study))

    def _round(self, row: Row) -> Round:
        return self._study(row).rounds.setdefault(row.round, Round(number=row.round))

    def _server_start(self, row: Row) -> None:
        if self._running:
            self._history.add_gap("the server started again without having stopped in good order", row.index)
        self._running = True

    def _server_stop(self, row: Row) -> None:
        self._running = False

    def _study_created(self, row: Row) -> None:
        study = self._study(row)
        study.created = row.index
        if row.signature == "valid":
            signed = row.facts["envelope"]
            study.study = Study.model_validate_json(canonical_json(signed["content"]))
            study.mechanisms = _mechanisms(study.study)

    def _study_approved(self, row: Row) -> None:
        study = self._study(row)
        if study.study is None or not row.site:
            return
        envelope = Envelope(
            payloadType=STUDY_TYPE,
            payload=base64.b64encode(study.study.to_bytes()).decode(),
            signatures=(Signature.model_validate(row.facts["signature"]),),
        )
        try:
            open_envelope(envelope, STUDY_TYPE, [parse_public_key(study.study.member(row.site).identity)])
        except WardroundError as error:
            self._history.add_gap(f"the approval by {row.site} does not hold: {error}", row.index)
            return
        study.approved[row.site] = row.index

    def _round_started(self, row: Row) -> None:
        found = self._round(row)
        if found.started is not None and found.cohort != tuple(row.facts["cohort"]):
            self._history.add_gap(
                f"round {row.round} was started twice with different cohorts", found.started, row.index
            )
        found.started, found.started_at, found.cohort = row.index, row.time, tuple(row.facts["cohort"])
        found.before = str(row.facts["adapter"])

    def _update_received(self, row: Row) -> None:
        if row.signature == "valid":
            self._round(row).received[row.site] = row.index

    def _privacy_spent(self, row: Row) -> None:
        if row.signature != "valid":
            self._study(row).unsigned.add(row.site)
            return
        study, round_ = self._study(row), self._round(row)
        try:
            record = parse_record(canonical_json(row.facts["record"]["content"]))
        except ProtocolError as error:
            self._history.add_gap(f"{row.site} signed a record of another mechanism: {error.message}", row.index)
            study.unpriced.add(row.site)
            return
        if row.site in round_.spent:
            self._history.add_gap(
                f"{row.site} has two mechanism records for round {row.round}", round_.spent[row.site], row.index
            )
            return
        round_.spent[row.site] = row.index
        study.records.setdefault(row.site, []).append((row.index, record))
        if study.mechanisms and record != _expected(study.mechanisms, row.site, row.round):
            self._history.add_gap(
                f"the mechanism record of {row.site} in round {row.round} is not the study's", row.index
            )

    def _client_dropped(self, row: Row) -> None:
        self._round(row).dropped[row.site] = (str(row.facts["reason"]), row.index)

    def _round_aggregated(self, row: Row) -> None:
        found = self._round(row)
        found.outcome, found.ended, found.ended_at = "aggregated", row.index, row.time
        found.survivors, found.adapter = tuple(row.facts["survivors"]), str(row.facts["adapter"])

    def _round_evaluated(self, row: Row) -> None:
        study, found = self._study(row), self._round(row)
        evaluation = study.study.privacy.evaluation if study.study else None
        if evaluation is None or not evaluation.runs_in(row.round) or row.facts["adapter"] != found.before:
            what = (
                f"round {row.round} has figures from patients that the study does not agree to, or of another adapter"
            )
            self._history.add_gap(what, row.index)
            return
        count, loss, correct = (float(value) for value in row.facts["sums"])
        found.evaluated = figures((count, loss, correct), evaluation, survivors=len(row.facts["survivors"]))

    def _round_failed(self, row: Row) -> None:
        found = self._round(row)
        found.outcome, found.ended, found.ended_at = f"failed: {row.facts['reason']}", row.index, row.time

    def _attack_reported(self, row: Row) -> None:
        self._history.add_gap(
            f"{row.site} shows two survivor sets of round {row.round}, both signed by the operator", row.index
        )

    def _witness_quorum(self, row: Row) -> None:
        self._round(row).witnesses = tuple(row.facts["witnesses"])

    def _witness_refused(self, row: Row) -> None:
        self._round(row).refused[row.site] = row.index
        self._history.add_gap(f"{row.site} refused to cosign in round {row.round}", row.index)

    def _model_released(self, row: Row) -> None:
        study = self._study(row)
        study.released, study.released_round = row.index, row.round
        study.adapter, study.provenance = str(row.facts["adapter"]), str(row.facts["provenance"])


def _mechanisms(study: Study) -> tuple[MechanismRecord, ...]:
    """Return the records of a study's first rounds, from which those of all others follow: they repeat."""
    site, evaluation = study.cohort.members[0].name, study.privacy.evaluation
    if evaluation is None:
        return (study.mechanism(site, 1),)
    other, evaluated = study.privacy.mechanism(study.sha256(), site, evaluation.every + 1), study.fullest()
    return (evaluated, *[other] * (evaluation.every - 1))


def _expected(mechanisms: Sequence[MechanismRecord], site: str, round_: int) -> MechanismRecord:
    record = mechanisms[round_ % len(mechanisms)]
    return record.model_copy(update={"site": site, "round": round_})


def _find_gaps(study: StudyHistory, history: History) -> None:
    if study.study is None:
        history.add_gap(f"the text of study {study.digest} is not in the log, or its operator did not sign it")
    else:
        missing = sorted({m.name for m in study.study.cohort.members} - set(study.approved))
        if missing and study.rounds:
            history.add_gap(f"rounds ran although no valid approval is logged by {', '.join(missing)}")
        if study.released and study.released_round != study.study.released_round:
            history.add_gap(f"round {study.released_round} was released, not the agreed one", study.released)
    last = max(study.rounds, default=0)
    absent = [number for number in range(1, last + 1) if number not in study.rounds]
    if absent:
        history.add_gap(f"rounds {_ranges(absent)} of study {study.name} are not in the log")
    evaluation = study.study.privacy.evaluation if study.study else None
    for number in sorted(study.rounds):
        found = study.rounds[number]
        _find_round_gaps(found, history, newest=number == last)
        if evaluation and evaluation.runs_in(number) and found.outcome == "aggregated" and found.evaluated is None:
            history.add_gap(f"round {number} evaluates by the study, but its figures are not in the log", *found.where)


def _find_round_gaps(found: Round, history: History, *, newest: bool) -> None:
    where = found.where
    if found.started is None:
        history.add_gap(f"round {found.number} has entries but no round.started", *found.received.values())
    if found.outcome == OPEN and not newest:
        history.add_gap(f"round {found.number} has no outcome", *where)
    if found.outcome == "aggregated" and not found.witnesses and not newest:
        history.add_gap(f"no quorum of witnesses is logged for round {found.number}", *where)
    for site, state in found.states.items():
        if state == UNACCOUNTED:
            history.add_gap(f"round {found.number}: nothing says what became of {site}", *where)
    for site, index in found.received.items():
        if site not in found.spent:
            history.add_gap(f"round {found.number}: an update of {site}, but no mechanism record of it", index)
    strangers = sorted(set(found.survivors) - set(found.received))
    if strangers:
        history.add_gap(f"round {found.number} counts {', '.join(strangers)} without a received update", *where)


def _ranges(numbers: list[int]) -> str:
    """Return `1-3, 7` for [1, 2, 3, 7]."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][1] + 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in parts)


def as_json(history: History) -> dict[str, Any]:
    """Return the history for programs: counts and findings, not every round."""
    return {
        "entries": history.size,
        "kinds": dict(sorted(history.kinds.items())),
        "gaps": [{"what": gap.what, "entries": list(gap.entries)} for gap in history.gaps],
        "gaps_found": history.gaps_found,
    }
