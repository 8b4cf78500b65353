"""A site that was set back to an old copy: found out by what it signed and does not remember.

Rules (docs/spec/round.md, "A restored site").
- The evidence is this site's own signature in the witnessed history: an accepted answer that the ledger does not
  hold, or a cosignature over a larger log than this site remembers. Nothing that the server merely says counts.
- An answer that is found so is entered in the ledger as spent: the budget remembers what the copy forgot.
- Rounds in between that nobody can show any more (`has_gap`) make what was spent unknown: the whole plan of that study
  stays charged, and the site sits the rest of it out.
- A round that was open in the copy is abandoned: either its answer is found, and nothing is drawn again, or its seed is
  gone (`rounds`), or a later round began. The site misses it, like any site that was away.
- An entry that contradicts what the ledger does hold is not a restore but a wrong log, and ends the cosigning.
What this cannot see: an answer that was sent after the copy was made and is in no entry that a quorum has cosigned.
Not done here: proofs that entries are in the log (`audit.witness`), the study's state at this site (`agreed`).

    >>> enter_forgotten(events, study=study, site="north-ward", ledger=ledger)  # doctest: +SKIP
    (3, 4)
"""

from collections.abc import Sequence

from wardround_client.ledger import Ledger
from wardround_client.ledger_rows import Stored
from wardround_common.audit.events import Event, PrivacySpent, RoundAggregated, RoundFailed, Unknown, UpdateReceived
from wardround_common.audit.note import cosigned_times
from wardround_common.errors import StorageError, VerificationError, WardroundError
from wardround_common.privacy.mechanism import MECHANISM_TYPE, parse_record
from wardround_common.rounds import UPDATE_HEADER_TYPE, UpdateHeader
from wardround_common.secagg.documents import MASKED_HEADER_TYPE, MaskedHeader
from wardround_common.signing import open_envelope, parse_public_key
from wardround_common.study import Study


def enter_forgotten(events: Sequence[Event | Unknown], *, study: Study, site: str, ledger: Ledger) -> tuple[int, ...]:
    """Enter every answer of `site` that `events` show and `ledger` lacks; return their rounds.

    Args:
        events: opened entries of the log, proven to be in it.
        study: the study that they are about; others are left out.
        site: this site.
        ledger: this site's, as its writer.

    Raises:
        VerificationError: an entry is not what this site signed, or contradicts the ledger.
        StorageError: not stored.
    """
    mine = [e for e in events if getattr(e, "site", None) == site and getattr(e, "study", None) == study.sha256()]
    records = {event.round: event for event in mine if isinstance(event, PrivacySpent)}
    found = []
    for received in (event for event in mine if isinstance(event, UpdateReceived)):
        header, answer = _own_answer(received, records.get(received.round), study, site)
        if _enter(ledger, header, answer):
            found.append(received.round)
    return tuple(found)


def has_gap(events: Sequence[Event | Unknown], *, study: str, round_: int) -> bool:
    """Return whether `events` show the outcome of a later round than the one after `round_`, the last known.

    A site is shown every round once, in order, before it cosigns: a gap is what an older copy of it cannot know any
    more, since the log's keys to those entries are gone. What it had spent in between is unknown then.
    """
    rounds = {e.round for e in events if isinstance(e, RoundAggregated | RoundFailed) and e.study == study}
    return max(rounds, default=0) > round_


def require_remembered(note: str, *, size: int, remembered: int, study: Study, site: str) -> None:
    """Return unless this site cosigned more of the log than it remembers.

    Args:
        note: a checkpoint with cosignatures, its log signature verified.
        size: entries under it.
        remembered: entries under the newest checkpoint that this site knows it cosigned.
        study: names this site's key.
        site: this site.

    Raises:
        VerificationError: it did: an old copy was restored.
    """
    if size > remembered and cosigned_times(note, {site: study.member(site).identity}):
        raise VerificationError(
            "site-restored",
            f"this site has cosigned {size} entries and remembers {remembered}: an old copy was restored",
            next_step="nothing to do: the site enters what it is shown and sits out what it is not; tell the operator, "
            "as it counts as a colluding member from now on",
        )


def require_newest_ledger(begun: int, remembered: int) -> None:
    """Return unless fewer rounds began in the ledger than when this site last cosigned.

    Raises:
        StorageError: the ledger is an older copy than the rest of this site.
    """
    if begun < remembered:
        raise StorageError(
            "ledger-restored",
            f"the ledger holds {begun} rounds of this study, but {remembered} had begun when this site last cosigned",
            next_step="put the newer ledger back; if it is lost, remove state/agreed-*.json and "
            "state/witness-*.json: the site then reads the trail again and enters what was spent",
        )


def _own_answer(
    received: UpdateReceived, spent: PrivacySpent | None, study: Study, site: str
) -> tuple[UpdateHeader | MaskedHeader, Stored]:
    key = [parse_public_key(study.member(site).identity)]
    try:
        header = _header(open_envelope(received.header, _header_type(study), key), study)
        if spent is None:
            raise _disagrees(received.round)
        record = parse_record(open_envelope(spent.record, MECHANISM_TYPE, key))
    except WardroundError:
        raise _disagrees(received.round) from None
    place = (study.sha256(), received.round, site)
    if (header.study, header.round, header.site) != place or record != study.mechanism(site, received.round):
        raise _disagrees(received.round)
    sent = header.sealed if isinstance(header, UpdateHeader) else header.vector
    return header, Stored(header=received.header.to_bytes(), record=spent.record.to_bytes(), sealed=sent)


def _header_type(study: Study) -> str:
    return UPDATE_HEADER_TYPE if study.secagg is None else MASKED_HEADER_TYPE


def _header(payload: bytes, study: Study) -> UpdateHeader | MaskedHeader:
    return UpdateHeader.from_bytes(payload) if study.secagg is None else MaskedHeader.from_bytes(payload)


def _enter(ledger: Ledger, header: UpdateHeader | MaskedHeader, answer: Stored) -> bool:
    stored = ledger.answer(header.study, header.round)
    if stored is not None and stored != answer:
        raise _disagrees(header.round)
    return stored is None and ledger.recover(header.study, header.round, header.plan, answer)


def _disagrees(round_: int) -> VerificationError:
    return VerificationError(
        "log-entry-disagrees",
        f"the log shows another answer to round {round_} than this site signed",
        next_step="this site stops cosigning; keep the home folder and compare logs with the other members",
    )
