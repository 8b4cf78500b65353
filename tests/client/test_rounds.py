"""One round, one answer: killed before any system call, begun again, restored, refused; and nothing sent unsynced."""

import os
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from peers.answers import small_update
from peers.studies import SITES, Cast, make_adapter, make_study, study_task
from peers.syscalls import Call, record, run_traced

from wardround_client.agreed import Agreed
from wardround_client.ledger import Ledger
from wardround_client.randomness import KeystreamRandomness, new_round_seed
from wardround_client.rounds import Rounds, Trained
from wardround_client.vault import Vault
from wardround_common.adapter import decode_tensors, encode_tensors
from wardround_common.documents import sha256_digest
from wardround_common.envelope.update import load_update_key, new_update_key, open_update, update_info
from wardround_common.errors import ProtocolError, StorageError
from wardround_common.privacy.accountant import plan_price
from wardround_common.rounds import BlobRef, RoundAnswer, RoundPlan
from wardround_common.wire.blobstore import FileBlobStore

SITE = SITES[0]
ROUNDS = 3


class AdmitAll:
    """A gate; the real one has its own tests."""

    def admit_plan(self, study: object, plan: object, agreed: object, **_: object) -> None:
        pass


@dataclass
class Bench:
    """A study with a real update key, and one site's files."""

    folder: Path

    def __post_init__(self) -> None:
        self.cast = Cast()
        key = self.folder / "update.key"
        study = make_study(self.cast)
        server = study.server.model_copy(update={"update_key": new_update_key(key)})
        self.study = study.model_copy(update={"server": server})
        self.key = load_update_key(key)
        _, self.layout = make_adapter(study_task())
        self.tensors = {name: values * 0 for name, values in small_update(self.layout).items()}
        self.start = encode_tensors(self.tensors)
        self.agreed = Agreed(study=self.study.sha256(), adapter=sha256_digest(self.start))
        self.home = self.folder / "home"
        with Ledger.open(self.home / "ledger.db") as ledger:
            ledger.reserve(self.study, cap_epsilon=50.0, cap_delta=1e-5)

    def plan(self, round_: int, **changes: Any) -> RoundPlan:
        start = BlobRef(digest=sha256_digest(self.start), length=len(self.start))
        fields = {"study": self.study.sha256(), "round": round_, "cohort": SITES, "adapter": start}
        return RoundPlan(**{**fields, **changes})

    def answer(self, plan: RoundPlan, train: Any = None) -> tuple[RoundAnswer, BlobRef]:
        """Answer as a daemon that has just started."""
        with Ledger.open(self.home / "ledger.db", writer=True) as ledger:
            rounds = Rounds(
                site=SITE,
                study=self.study,
                specs=self.layout.trained,
                gate=AdmitAll(),  # type: ignore[arg-type]
                ledger=ledger,
                vault=Vault(self.home / "sealed", self.home / "local.key"),
                blobs=self.blobs,
                key=self.cast.members[SITE],
                new_seed=new_round_seed,
                phase=lambda phase, round_: None,
            )
            return rounds.answer(plan, self.agreed, lambda blob: self.start, train or self.train)

    @property
    def blobs(self) -> FileBlobStore:
        return FileBlobStore(self.home / "blobs", spare_bytes=0)

    def train(self, tensors: Any, round_: int, seed: bytes, optimiser_state: bytes | None) -> Trained:
        """Noise alone, all from the seed; Adam's state says which round it is of."""
        before = int(optimiser_state) if optimiser_state else 0
        assert before == round_ - 1, "the last committed optimiser state"
        randomness = KeystreamRandomness(seed)
        noise = {n: randomness.normal(v.size).reshape(v.shape).astype(np.float32) for n, v in self.tensors.items()}
        return Trained(delta=noise, optimiser_state=b"%d" % round_)

    def opened(self, sealed: BlobRef, round_: int) -> bytes:
        info = update_info(self.study.sha256(), round_, SITE)
        update = open_update(self.blobs.read(sealed), self.key, info)
        return encode_tensors(decode_tensors(update, self.layout.trained))

    def sealed_names(self) -> list[str]:
        return sorted(path.name.split("-", 1)[1] for path in (self.home / "sealed").iterdir())


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    made = Bench(tmp_path)
    plan_price(made.study.privacy)  # loads dp-accounting before any fork
    return made


class Broken(Exception):
    """Training failed."""


def broken(*_: Any) -> Trained:
    raise Broken


def _child(bench: Bench, round_: int, say: int) -> None:
    """A daemon that answers one round: it says what it drew, and the answer once it may leave."""

    def train(*given: Any) -> Trained:
        trained = bench.train(*given)
        os.write(say, b"drew %s\n" % sha256_digest(encode_tensors(trained.delta)).encode())
        return trained

    answer, sealed = bench.answer(bench.plan(round_), train)
    os.write(say, b"sent %s\n" % sha256_digest(answer.to_bytes() + sealed.to_bytes()).encode())


def test_killed_at_every_call_a_round_is_drawn_once_and_answered_once(bench: Bench):
    """kill -9 before each change of a file in turn, over three rounds, each until a child comes through."""
    kills = 0
    for round_ in range(1, ROUNDS + 1):
        drew, sent = set(), set()
        for call in range(1000):
            killed, said = _kill(bench, round_, call)
            drew |= {words[1] for words in said if words[0] == "drew"}
            sent |= {words[1] for words in said if words[0] == "sent"}
            kills += killed
            if not killed:
                break
        answer, sealed = bench.answer(bench.plan(round_))
        assert sent == {sha256_digest(answer.to_bytes() + sealed.to_bytes())}
        assert drew == {sha256_digest(bench.opened(sealed, round_))}, "a second draw would be a second release"
        assert bench.sealed_names() == [f"adam-{round_}"], "the seed is destroyed at commit"
    assert kills > 60


def _kill(bench: Bench, round_: int, call: int) -> tuple[bool, list[list[str]]]:
    read, say = os.pipe()
    turns = iter(range(10_000))

    def at_the_cut(found: Call) -> bool:
        return found.path.startswith(str(bench.home)) and next(turns) == call

    killed = run_traced(lambda: _child(bench, round_, say), at_the_cut)
    os.close(say)
    with os.fdopen(read) as pipe:
        return killed, [line.split() for line in pipe]


def test_nothing_is_sent_before_everything_is_synced(bench: Bench):
    """In the kernel's view: when the first byte goes into a socket, nothing that was written is unsynced."""
    ours, theirs = socket.socketpair()

    def work() -> None:
        answer, _ = bench.answer(bench.plan(1))
        ours.sendall(answer.to_bytes())

    calls = record(work)
    ours.close()
    theirs.close()
    first = next(
        number
        for number, call in enumerate(calls)
        if call.name in ("sendto", "sendmsg", "write") and call.path.startswith("socket:")
    )
    unsynced: set[str] = set()
    for call in (call for call in calls[:first] if call.path.startswith(str(bench.home))):
        if call.name in ("fsync", "fdatasync"):
            unsynced.discard(call.path)
        elif call.name in ("write", "pwrite64") and not call.path.endswith("-shm"):
            unsynced.add(call.path)
    synced = [Path(call.path).name for call in calls[:first] if call.name == "fdatasync"]
    assert unsynced == set()
    assert synced.count("ledger.db-wal") >= 2, "begin and commit"


def test_the_seed_is_on_disk_before_the_round_begins(bench: Bench):
    with pytest.raises(Broken):
        bench.answer(bench.plan(1), broken)
    assert bench.sealed_names() == ["seed-1"]
    before = next((bench.home / "sealed").glob("*-seed-1")).read_bytes()
    with pytest.raises(Broken):
        bench.answer(bench.plan(1), broken)
    assert next((bench.home / "sealed").glob("*-seed-1")).read_bytes() == before


def test_a_round_that_began_without_its_seed_is_abandoned(bench: Bench):
    """What a restored site looks like whose backup leaves out sealed secrets, as it should."""
    with pytest.raises(Broken):
        bench.answer(bench.plan(1), broken)
    next((bench.home / "sealed").glob("*-seed-1")).unlink()
    for _ in range(2):
        with pytest.raises(StorageError) as caught:
            bench.answer(bench.plan(1))
        assert caught.value.code == "round-seed-lost"
    assert bench.sealed_names() == [], "no second seed is made"


def test_another_plan_for_a_begun_round_is_refused_and_trains_nothing(bench: Bench):
    bench.answer(bench.plan(1))
    other = bench.plan(1, witnessed="something else")
    with pytest.raises(ProtocolError) as caught:
        bench.answer(other)
    assert caught.value.code == "round-plan-changed"


def test_a_failed_round_keeps_the_last_committed_optimiser_state(bench: Bench):
    bench.answer(bench.plan(1))

    def state_of_round_1(tensors: Any, round_: int, seed: bytes, optimiser_state: bytes | None) -> Trained:
        assert optimiser_state == b"1"
        return Trained(delta=bench.tensors, optimiser_state=b"3")

    with pytest.raises(Broken):
        bench.answer(bench.plan(2), broken)
    bench.answer(bench.plan(3), state_of_round_1)


def test_asking_again_for_an_answered_round_spares_the_next_rounds_seed(bench: Bench):
    first, _ = bench.answer(bench.plan(1))
    with pytest.raises(Broken):
        bench.answer(bench.plan(2), broken)
    assert bench.answer(bench.plan(1))[0] == first
    assert bench.sealed_names() == ["adam-1", "seed-2"]
    bench.answer(bench.plan(2))
