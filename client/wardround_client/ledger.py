"""What this hospital's patients have spent of their privacy, and what it answered: durable and never forgotten.

Rules.
- One budget for one space of patient identifiers: all studies of a hospital share its lifetime cap, unless a person
  declared, and a check showed, that a data set is about other patients (`spaces`). Editing a file changes nothing here.
- Approval reserves the *whole* plan, spare rounds included, or nothing. The cap is a Rényi filter (`ledger_budget`).
- A round is spent from the moment it begins, whether or not it is ever answered; training starts after that.
- One round has one plan and one answer. The same plan again gets the same stored bytes; another plan is refused.
- The answer is stored before a byte of it leaves. `begin`, `commit` and `reserve` return after fdatasync.
- Only constants of studies are kept here: nothing about a patient, no count, no text.
Not done here: the file (`ledger_store`), its rows (`ledger_rows`), prices (`privacy`), torch (never imported).

    >>> with Ledger.open(home.ledger, writer=True) as ledger:
    ...     ledger.begin(study.sha256(), 1, plan.sha256())
"""

import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

from wardround_client.ledger_budget import DEFAULT_SPACE, Budget, plan_of
from wardround_client.ledger_rows import (
    Reserved,
    RoundRow,
    Stored,
    StudyRow,
    begun_round,
    renyi_order,
    reserved,
    round_rows,
    study_row,
)
from wardround_client.ledger_store import LedgerStore
from wardround_common.documents import MAX_DOCUMENT_BYTES
from wardround_common.errors import BudgetError, ProtocolError
from wardround_common.privacy.accountant import Price, plan_price
from wardround_common.privacy.lifetime import Cap
from wardround_common.rounds import BlobRef
from wardround_common.study import Study


class Ledger:
    """The open ledger of one hospital; `with` closes it.

    Args:
        store: the open file.
        clock: seconds since 1970; for the history only, nothing is decided by it.
    """

    def __init__(self, store: LedgerStore, *, clock: Callable[[], float] = time.time) -> None:
        self._store = store
        self._clock = clock

    @classmethod
    def open(cls, path: Path, *, writer: bool = False) -> Self:
        """Open the ledger at `path`, creating it the very first time.

        Args:
            path: the database; its folder is created.
            writer: True in the daemon, which begins and commits rounds; only one at a time.

        Raises:
            StorageError: another daemon runs, or the file is missing, damaged or cannot be used.
        """
        return cls(LedgerStore.open(path, writer=writer))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the file and let another daemon in."""
        self._store.close()

    def reserve(self, study: Study, *, cap_epsilon: float, cap_delta: float, space: str = DEFAULT_SPACE) -> Price:
        """Reserve the whole plan of `study` and return its price; again for the same study changes nothing.

        Args:
            study: what was agreed.
            cap_epsilon: the policy's lifetime budget, at `cap_delta`.
            cap_delta: its δ.
            space: whose budget it is charged to; a data set never moves to another one.

        Raises:
            BudgetError: the lifetime budget does not suffice, the study was closed, its data set is charged to another
                budget, or it cannot be priced.
            StorageError: not stored.
        """
        price, cap = plan_price(study.privacy), Cap(epsilon=cap_epsilon, delta=cap_delta)
        with self._store.transaction():
            known = self._find(study.sha256())
            if known is None:
                self.require_space(study.task.dataset, space)
                self._insert(study, price, self._budget(cap, space).require(study.name, plan_of(study)), space)
            elif known.closed:
                raise _closed(study.name)
        return price

    def require_space(self, dataset: str, space: str) -> None:
        """Return if nothing speaks against charging `dataset` to `space`.

        Raises:
            BudgetError: it was charged to another budget before; changing that would forget what was spent.
        """
        for row in reserved(self._store):
            before = row.space if row.dataset in (dataset, None) else space
            if before != space:
                raise BudgetError(
                    "dataset-charged-elsewhere",
                    f"data set {dataset} was charged to the budget of {before} by study {row.name}",
                    next_step=f"leave it there: a budget of its own ({space}) would forget what was spent",
                )

    def budget(
        self, *, cap_epsilon: float, cap_delta: float, space: str = DEFAULT_SPACE, without: str | None = None
    ) -> Budget:
        """Return a lifetime budget with all reservations in it, but for those of the study with digest `without`.

        Raises:
            StorageError: the ledger cannot be read.
        """
        return self._budget(Cap(epsilon=cap_epsilon, delta=cap_delta), space, without)

    def began(self, study: str, round_: int) -> bool:
        """Return whether a round began; it is spent then.

        Raises:
            StorageError: the ledger cannot be read.
        """
        return begun_round(self._store, study, round_) is not None

    def begun(self, study: str) -> int:
        """Return how many rounds of a study began.

        Raises:
            StorageError: the ledger cannot be read.
        """
        row = self._find(study)
        return row.begun if row else 0

    def begin(self, study: str, round_: int, plan: str) -> Stored | None:
        """Spend a round on `plan` and return its answer if it was stored before; durable on return.

        Args:
            study: the study's digest.
            round_: 1-based.
            plan: digest of the round's plan.

        Raises:
            BudgetError: not reserved, closed, or beyond the reserved rounds.
            ProtocolError: this round began with another plan, or a later one began already.
            StorageError: not stored; the round did not begin.
        """
        self._require_writer()
        with self._store.transaction():
            row = self._require_reserved(study)
            begun = begun_round(self._store, study, round_)
            if begun is None:
                self._require_next(row, round_)
                sql = "INSERT INTO rounds (study, round, plan, began_at) VALUES (?, ?, ?, ?)"
                self._store.execute(sql, study, round_, plan, int(self._clock()))
            elif begun[0] != plan:
                raise _plan_changed(row.name, round_)
        return begun[1] if begun else None

    def commit(self, study: str, round_: int, plan: str, header: bytes, record: bytes, sealed: BlobRef) -> None:
        """Store the round's one answer; durable on return, and only then may a byte of it leave.

        Raises:
            ProtocolError: the round did not begin with this plan, or another answer is stored.
            StorageError: not stored; nothing may be sent.
            ValueError: header or record is larger than any document (misuse).
        """
        self._require_writer()
        if max(len(header), len(record)) > MAX_DOCUMENT_BYTES:
            raise ValueError("header and record are documents")
        answer = Stored(header=header, record=record, sealed=sealed)
        with self._store.transaction():
            begun = begun_round(self._store, study, round_)
            if begun is None or begun[0] != plan:
                raise _plan_changed(study, round_)
            if begun[1] is None:
                self._write_answer(study, round_, answer)
            elif begun[1] != answer:
                raise ProtocolError(
                    "round-already-answered",
                    f"round {round_} was answered with other bytes",
                    next_step="send the stored answer; nothing else may leave for this round",
                )

    def recover(self, study: str, round_: int, plan: str, answer: Stored) -> bool:
        """Enter an answer that this site signed, but does not remember; return whether that was so.

        Its ε is spent like any other's. See `restored` for who calls this and why.

        Raises:
            BudgetError: not reserved.
            ProtocolError: the round began with another plan, or has another answer.
            StorageError: not stored.
        """
        self._require_writer()
        with self._store.transaction():
            self._require_reserved(study)
            begun = begun_round(self._store, study, round_)
            if begun is None:
                sql = "INSERT INTO rounds (study, round, plan, began_at, recovered) VALUES (?, ?, ?, ?, 1)"
                self._store.execute(sql, study, round_, plan, int(self._clock()))
            elif begun == (plan, answer):
                return False
            elif begun[0] != plan or begun[1] is not None:
                raise _plan_changed(study, round_)
            self._store.execute("UPDATE rounds SET recovered = 1 WHERE study = ? AND round = ?", study, round_)
            self._write_answer(study, round_, answer)
        return True

    def _write_answer(self, study: str, round_: int, answer: Stored) -> None:
        sealed = answer.sealed
        self._store.execute(
            "UPDATE rounds SET header = ?, record = ?, sealed_digest = ?, sealed_length = ?, committed_at = ? "
            "WHERE study = ? AND round = ?",
            *(answer.header, answer.record, sealed.digest, sealed.length, int(self._clock()), study, round_),
        )

    def answer(self, study: str, round_: int) -> Stored | None:
        """Return the stored answer of a round, byte for byte, or None.

        Raises:
            StorageError: the ledger cannot be read.
        """
        begun = begun_round(self._store, study, round_)
        return begun[1] if begun else None

    def release_rest(self, study: str) -> int:
        """End a study: rounds that never began are free again. Return how many.

        Raises:
            BudgetError: not reserved.
            StorageError: not stored.
        """
        with self._store.transaction():
            row = self._require_reserved(study)
            self._store.execute("UPDATE studies SET closed = 1 WHERE study = ?", study)
        return 0 if row.closed or row.set_back else row.rounds - row.begun

    def set_back(self, study: str) -> None:
        """Note that this site was set back to an old copy in a study: no round begins, the whole plan stays charged.

        Raises:
            BudgetError: not reserved.
            StorageError: not stored.
        """
        with self._store.transaction():
            self._require_reserved(study)
            self._store.execute("UPDATE studies SET set_back = 1 WHERE study = ?", study)

    def spent(self, study: str) -> Price | None:
        """Return the price of all rounds of a study that began, or None if none did.

        Raises:
            StorageError: the ledger cannot be read.
        """
        row = self._find(study)
        return row.spent if row else None

    def started(self, study: str) -> int | None:
        """Return when the first round of a study began here (Unix seconds), None if none did."""
        ((moment,),) = self._store.query("SELECT min(began_at) FROM rounds WHERE study = ?", study)
        return None if moment is None else int(moment)

    def summary(self) -> tuple[StudyRow, ...]:
        """Return one row for each study, in the order of their reservation."""
        return tuple(study_row(row) for row in reserved(self._store))

    def history(self) -> tuple[RoundRow, ...]:
        """Return every round that began, in that order."""
        return tuple(round_rows(self._store))

    def _budget(self, cap: Cap, space: str, without: str | None = None) -> Budget:
        rows = [row for row in reserved(self._store) if row.space == space and row.study != without]
        plans = tuple(runs for row in rows for runs in row.charged)
        return Budget(cap=cap, plans=plans, order=renyi_order(self._store, space))

    def _insert(self, study: Study, price: Price, order: int, space: str) -> None:
        mechanism, rounds = plan_of(study)
        self._store.execute("INSERT OR IGNORE INTO filters VALUES (?, ?)", space, order)
        self._store.execute(
            "INSERT INTO studies (study, name, mechanism, rounds, delta, epsilon, reserved_at, space, dataset, sites) "
            "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            *(study.sha256(), study.name, mechanism.to_bytes(), rounds, price.delta, price.epsilon),
            *(int(self._clock()), space, study.task.dataset, len(study.cohort.members)),
        )

    def _require_reserved(self, study: str) -> Reserved:
        row = self._find(study)
        if row is None:
            raise BudgetError(
                "study-not-reserved",
                "no budget was reserved for this study at this site",
                next_step="approve it first: wardround client approve STUDY",
            )
        return row

    def _require_next(self, row: Reserved, round_: int) -> None:
        if row.closed:
            raise _closed(row.name)
        if row.set_back:
            raise BudgetError(
                "study-set-back",
                f"an old copy of this site was restored in the middle of study {row.name}",
                next_step="this site sits the study out and the whole plan stays charged; tell the operator",
            )
        if not 1 <= round_ <= row.rounds:
            raise BudgetError(
                "rounds-exhausted",
                f"round {round_} of study {row.name} is beyond the {row.rounds} that were reserved",
                next_step="ask the operator for a new study; this one has no budget left",
            )
        last = self._store.query("SELECT max(round) FROM rounds WHERE study = ?", row.study)[0][0]
        if last is not None and round_ < last:
            raise ProtocolError(
                "round-out-of-order",
                f"round {round_} of study {row.name} is asked for after round {last} began",
                next_step="nothing to do here; tell the operator",
            )

    def _require_writer(self) -> None:
        if not self._store.writer:
            raise RuntimeError("only the ledger's writer begins and commits rounds")

    def _find(self, study: str) -> Reserved | None:
        return next((row for row in reserved(self._store) if row.study == study), None)


def _closed(name: str) -> BudgetError:
    return BudgetError(
        "study-closed",
        f"study {name} was ended at this site; its unspent rounds went back to the budget",
        next_step="take part in a new study instead",
    )


def _plan_changed(study: str, round_: int) -> ProtocolError:
    return ProtocolError(
        "round-plan-changed",
        f"round {round_} of study {study} did not begin with this plan",
        next_step="nothing to do here; a round has one plan: tell the operator",
    )
