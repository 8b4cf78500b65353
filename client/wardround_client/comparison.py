"""What disclosed log entries say, compared with what this site knows, before it cosigns them.

Rules.
- Every study that the entries speak of is compared; studies may share a log.
- Rounds that the entries say this site answered, and that it does not remember, are entered as spent:
  an old copy of the site was restored (`restored`).
- Nothing is stored here: the caller stores the new states before it answers.
Not done here: the log's proofs (`witnessing`), what an entry means (`agreed`, `sums`).

    >>> Comparison(home=home, ...).changed_by(accepted)  # doctest: +SKIP
    {'sha256:…': Agreed(round=3, ...)}
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

from wardround_client.agreed import Agreed, OwnAnswer, OwnAnswers, agree, load_agreed, require_own_facts
from wardround_client.agreed_evaluations import require_agreed_evaluations
from wardround_client.home import Home
from wardround_client.ledger import Ledger
from wardround_client.restored import enter_forgotten, has_gap
from wardround_client.sums import SumCheck, require_report
from wardround_client.witnessing import Accepted
from wardround_common.audit.events import Event
from wardround_common.logging import get_logger
from wardround_common.rounds import RoundAnswer
from wardround_common.secagg.documents import SurvivorSet
from wardround_common.signing import Envelope
from wardround_common.study import Study

log = get_logger("client.comparison")


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Compares entries with this site's files.

    Args:
        home: this site's files.
        site, identity: its name and public key.
        ledger: what it answered.
        survivors: (study, round) to the set that it opened the round for, None if it did not or the study is not open.
    """

    home: Home
    site: str
    identity: str
    ledger: Ledger = field(repr=False)
    survivors: Callable[[str, int], SurvivorSet | None] = field(repr=False)
    _studies: dict[str, Study] = field(default_factory=dict, repr=False)

    def changed_by(self, accepted: Accepted) -> dict[str, Agreed]:
        """Return the new state of every study that the disclosed entries speak of.

        Raises:
            VerificationError: an entry contradicts what this site knows.
        """
        approved = self.home.approved_studies()
        require_own_facts(accepted.events, self.site, self.identity, approved)
        changed = {}
        for digest in sorted({getattr(event, "study", "") for event in accepted.events} & set(approved)):
            self._enter_forgotten(digest, accepted.events)
            before = load_agreed(self.home.agreed(digest), digest)
            own = partial(self.own_answer, digest)
            after = agree(before, self.site, accepted.events, own, accepted.state.size)
            if has_gap(accepted.events, study=digest, round_=after.round):
                log.warning("an old copy of this site was restored: it sits the study out", study=digest)
                self.ledger.set_back(digest)
            masked = self._check_sums(before, accepted.events, own)
            require_agreed_evaluations(self._stored_study(digest), before, accepted.events, own)
            changed[digest] = after.model_copy(update={**masked, "begun": self.ledger.begun(digest)})
        return changed

    def _check_sums(self, before: Agreed, events: Sequence[Event], own: OwnAnswers) -> dict[str, object]:
        """Return what to remember of secure aggregation: survivors without a result yet, a report that was seen."""
        study = self._stored_study(before.study)
        if study.secagg is None:
            return {}
        sums = SumCheck(study=study, site=self.site, own=own, opened=partial(self.survivors, before.study))
        evidence = self.home.attack(before.study)
        report = Envelope.from_bytes(evidence.read_bytes()) if evidence.exists() else None
        if report is not None and not before.reported:
            require_report(report, events)
        return {"survivors": sums.check(before, events), "reported": report is not None}

    def own_answer(self, study: str, round_: int) -> OwnAnswer | None:
        """Return what this site answered in a round, None if nothing."""
        stored = self.ledger.answer(study, round_)
        if stored is None:
            return None
        header, record = Envelope.from_bytes(stored.header), Envelope.from_bytes(stored.record)
        answer = RoundAnswer(header=header, record=record)
        return OwnAnswer(round=round_, answer=answer, sealed=stored.sealed)

    def _enter_forgotten(self, digest: str, events: Sequence[Event]) -> None:
        """An old copy of this site may have been restored: what it signed and does not remember is spent."""
        if not any(getattr(event, "site", "") == self.site for event in events):
            return
        study = self._stored_study(digest)
        found = enter_forgotten(events, study=study, site=self.site, ledger=self.ledger)
        if found:
            log.warning(
                "an old copy of this site was restored: rounds that it had answered are entered as spent",
                study=study.name,
                rounds=list(found),
            )

    def _stored_study(self, digest: str) -> Study:
        if digest not in self._studies:  # stored once, under its digest, and never changed
            stored = Envelope.from_bytes(self.home.study(digest).read_bytes())
            self._studies[digest] = Study.from_bytes(stored.payload_bytes())
        return self._studies[digest]
