"""One round, one answer: killed before any system call, begun again, restored, refused; and nothing sent unsynced."""

import os
import socket
from pathlib import Path
from typing import Any

import pytest
from peers.roundbench import RoundBench as Bench
from peers.syscalls import Call, record, run_traced

from wardround_client.rounds import Trained
from wardround_common.adapter import encode_tensors
from wardround_common.documents import sha256_digest
from wardround_common.errors import ProtocolError, StorageError
from wardround_common.privacy.accountant import plan_price

ROUNDS = 3


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
