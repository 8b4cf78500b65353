"""A masked study over an in-memory grid with real hospitals: sums, restarts, absences, and what the trail says."""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Message
from peers.masked import resigned
from peers.masked_federation import Handle, Hospital, MaskedWorld

from wardround_common.adapter import encode_tensors
from wardround_common.audit.events import (
    ClientDropped,
    MaskingRefused,
    RoundAggregated,
    RoundFailed,
    SumOpened,
    SurvivorsFixed,
    WitnessRefused,
)
from wardround_common.documents import Document, sha256_digest
from wardround_common.errors import StorageError, TrainingError, VerificationError
from wardround_common.rounds import (
    EQUIVOCATION_TYPE,
    BlobRef,
    Equivocated,
    EquivocationReport,
    KeysOffered,
    Refused,
    RoundAnswer,
    Shared,
)
from wardround_common.secagg.documents import MASKED_HEADER_TYPE, SURVIVOR_SET_TYPE, MaskedHeader, SurvivorSet
from wardround_common.secagg.frames import KeyList
from wardround_common.secagg.kept import load_round
from wardround_common.secagg.recompute import opened_mean
from wardround_common.signing import sign_document
from wardround_common.updates import secagg_rules, split
from wardround_server.rounds.desk import Entry
from wardround_server.transport.flower import pack, unpack

ROUNDS = 2


@pytest.fixture
def new_world(tmp_path: Path) -> Iterator[Callable[..., MaskedWorld]]:
    made: list[MaskedWorld] = []

    def new(**options: object) -> MaskedWorld:
        folder = tmp_path / str(len(made))
        folder.mkdir()
        made.append(MaskedWorld(folder, **{"rounds": ROUNDS, **options}))
        return made[-1]

    yield new
    for world in made:
        world.close()


@pytest.fixture
def world(new_world: Callable[..., MaskedWorld]) -> MaskedWorld:
    return new_world()


def same(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> bool:
    return {k: v.tobytes() for k, v in one.items()} == {k: v.tobytes() for k, v in other.items()}


def test_a_masked_study_adds_up_bit_for_bit_and_asks_for_two_exchanges_a_round(world: MaskedWorld):
    final = world.run()
    everyone = tuple(world.cast.members)
    assert same(final, world.expected(dict.fromkeys(range(1, ROUNDS + 1), everyone)))
    steady = ["train", "query.unmask", "query.cosign"]
    fresh = ["train", "query.cosign", "query.cosign"]  # the first plan after a start: a checkpoint over a nonce first
    for hospital in world.hospitals.values():
        start = ["query.cosign", "query.secagg_keys", "query.secagg_share", *fresh]
        assert hospital.asked == start + steady * ROUNDS + ["query.cosign"]
        assert not [path for path in hospital.home.sealed.iterdir() if "secagg" in path.name], "all secrets are gone"
    assert [e.sentinels for e in world.events(SumOpened)] == [3] * ROUNDS
    assert len(world.events(SurvivorsFixed)) == len(world.events(RoundAggregated)) == ROUNDS
    assert not world.events(RoundFailed)
    left = {path.name for path in world.blobs.folder.iterdir()}
    adapters = {record.adapter.digest[7:] for record in world.state.rounds(world.study.sha256())}
    assert left <= adapters | {world.initial_digest[7:]}, "no vector, key list or share is left"


class Crash(BaseException):
    """The process is killed."""


def all_rounds(world: MaskedWorld) -> dict[int, tuple[str, ...]]:
    return {number: tuple(world.cast.members) for number in range(1, ROUNDS + 1)}


KINDS = ("offer", "keys", "parcels", "roster", "answer", "set", "opening")
QUICK = {("answer", "after"), ("set", "before"), ("set", "after"), ("opening", "after")}
CRASHES = [
    pytest.param(kind, when, marks=() if (kind, when) in QUICK else pytest.mark.slow)
    for kind in KINDS
    for when in ("before", "after")
]


@pytest.mark.parametrize(("kind", "when"), CRASHES)
def test_a_server_killed_at_any_message_resumes_to_the_same_sums(world: MaskedWorld, kind: str, when: str):
    keep, armed = world.state.keep, [True]

    def crashing(study: str, round_: int, what: str, site: str, body: bytes) -> None:
        hit = armed[0] and what == kind and (round_ == 2 or (round_ == 1 and kind in ("answer", "set", "opening")))
        armed[0] = armed[0] and not hit
        if hit and when == "before":
            raise Crash
        keep(study, round_, what, site, body)
        if hit:
            raise Crash

    world.state.keep = crashing  # type: ignore[method-assign]
    with pytest.raises(Crash):
        world.run()
    world.restart_server()
    final = world.run()
    assert same(final, world.expected(all_rounds(world)))
    sets = {(event.round, event.set.payload) for event in world.events(SurvivorsFixed)}
    assert len(sets) == ROUNDS, "one survivor set for each round, however often it was asked for"
    assert not world.events(RoundFailed)


MASKING = ("query.secagg_keys", "query.secagg_share", "query.unmask")


def test_hospitals_that_are_restarted_before_every_message_answer_the_same(world: MaskedWorld):
    for name, hospital in world.hospitals.items():

        def fresh(message: Message, hospital: Hospital = hospital) -> Message | None:
            if message.metadata.message_type in MASKING:  # a plan after a start asks for a fresh checkpoint first
                hospital.restart()
            return hospital(message)

        world.peers[name] = fresh
    final = world.run()
    assert same(final, world.expected(all_rounds(world)))


def test_every_message_asked_twice_gets_the_same_bytes(world: MaskedWorld):
    """A reply that was lost on the way: the server asks again, also a hospital that was restarted."""
    for name, hospital in world.hospitals.items():

        def twice(message: Message, hospital: Hospital = hospital) -> Message | None:
            first = hospital(message)
            if message.metadata.message_type == "query.cosign":
                return first  # the second would be offered from the newer tree
            if message.metadata.message_type in MASKING:
                hospital.restart()
            second = hospital(message)
            assert unpack(first) == unpack(second), message.metadata.message_type
            return second

        world.peers[name] = twice
    assert same(world.run(), world.expected(all_rounds(world)))


def silent_when(hospital: Hospital, kind: str, round_: int) -> Handle:
    """Return the hospital, silent when it is asked for `kind` in `round_`."""

    def peer(message: Message) -> Message | None:
        document = json.loads(unpack(message)[0])
        if message.metadata.message_type == kind and document["round"] == round_:
            return None
        return hospital(message)

    return peer


def test_a_member_that_misses_a_round_is_back_one_round_later(new_world: Callable[..., MaskedWorld]):
    """n = 5, c = 1: one may vanish. Without an answer it has no keys in round 3; it offers new ones meanwhile."""
    world = new_world(n=5, rounds=4, deadline_s=20.0)
    away = "eye-clinic"
    world.peers[away] = silent_when(world.hospitals[away], "train", 2)
    final = world.run()
    everyone = tuple(world.cast.members)
    others = tuple(name for name in everyone if name != away)
    assert same(final, world.expected({1: everyone, 2: others, 3: others, 4: everyone}))
    late = [(event.round, event.site) for event in world.events(ClientDropped) if event.reason == "late"]
    assert late == [(2, away), (3, away)]
    assert world.hospitals[away].open.agreed.round == 4


def test_a_member_that_vanishes_before_the_opening_still_counts(new_world: Callable[..., MaskedWorld]):
    world = new_world(n=5, rounds=2, deadline_s=20.0)
    world.peers["eye-clinic"] = silent_when(world.hospitals["eye-clinic"], "query.unmask", 1)
    final = world.run()
    everyone = tuple(world.cast.members)
    assert same(final, world.expected({1: everyone, 2: everyone}))
    refused = world.events(MaskingRefused)
    assert [(event.round, event.site, event.step, event.reason) for event in refused] == [
        (1, "eye-clinic", "opening", "late")
    ]
    opened = {event.round: event for event in world.events(SumOpened)}
    assert "eye-clinic" not in opened[1].openers
    assert opened[1].sentinels == 5


def test_a_failed_round_keeps_its_number_and_the_next_one_starts_afresh(new_world: Callable[..., MaskedWorld]):
    world = new_world(spare_rounds=1)
    name = "general"
    hospital = world.hospitals[name]

    def fails_once(message: Message) -> Message | None:
        if message.metadata.message_type == "train" and json.loads(unpack(message)[0])["round"] == 2:
            return Message(pack(Refused(code="failed-locally").to_bytes()), reply_to=message)
        return hospital(message)

    world.peers[name] = fails_once
    final = world.run()
    everyone = tuple(world.cast.members)
    assert [(event.round, event.reason) for event in world.events(RoundFailed)] == [(2, "cohort-too-small")]
    assert same(final, world.expected({1: everyone, 3: everyone}))


def test_a_member_that_is_away_at_the_first_plan_does_not_hold_up_the_fresh_checkpoints(
    new_world: Callable[..., MaskedWorld],
):
    """All others want a checkpoint over their nonces first; nobody of them has answered when the deadline passes."""
    world = new_world(n=5, rounds=1, deadline_s=20.0)
    world.peers["eye-clinic"] = silent_when(world.hospitals["eye-clinic"], "train", 1)
    final = world.run()
    assert same(final, world.expected({1: tuple(name for name in world.cast.members if name != "eye-clinic")}))


# -- members that spoil a round: nobody is named, nothing is released, the study pauses


def spoilt(world: MaskedWorld, name: str, round_: int) -> Handle:
    """A member that masks one vector and sends, well signed, another one."""
    hospital = world.hospitals[name]

    def peer(message: Message) -> Message | None:
        reply = hospital(message)
        document, blobs = unpack(reply)
        if not blobs or message.metadata.message_type != "train" or json.loads(unpack(message)[0])["round"] != round_:
            return reply
        answer = RoundAnswer.from_bytes(document)
        header = MaskedHeader.from_bytes(answer.header.payload_bytes())
        data = bytearray(world.blobs.read(blobs[0]))
        data[43] ^= 0x80  # one parameter moves by half the ring
        forged = header.model_copy(update={"vector": world.blobs.put(bytes(data))})
        signed = sign_document(forged.to_bytes(), MASKED_HEADER_TYPE, hospital.key)
        lying = answer.model_copy(update={"header": signed})
        return Message(pack(lying.to_bytes(), (forged.vector,)), reply_to=message)

    return peer


def test_a_garbage_vector_fails_the_round_and_pauses_the_study(new_world: Callable[..., MaskedWorld]):
    """The liar does not cosign for its own false receipt, so the quorum is lost; the others see no result."""
    world = new_world(n=5, spare_rounds=1)
    world.peers["general"] = spoilt(world, "general", 2)
    with pytest.raises(TrainingError) as caught:
        world.run()
    assert caught.value.code == "round-spoilt"
    assert [(event.round, event.reason) for event in world.events(RoundFailed)] == [(2, "sum-out-of-range")]
    assert world.statuses[-1].phase == "paused"
    assert "culprit unknown" in world.statuses[-1].message
    world.peers["general"] = world.hospitals["general"]
    world.restart_server()
    assert world.run(), "the operator has looked and goes on with the spare round"
    assert [record.plan.round for record in world.state.rounds(world.study.sha256())] == [1, 2, 3]


TRAIN_FAULTS = {
    "truncated": lambda data: data[:-4],
    "extended": lambda data: data + bytes(4),
    "another digest": lambda data: bytes([data[0] ^ 1]) + data[1:],
}


@pytest.mark.parametrize("fault", TRAIN_FAULTS)
def test_a_vector_that_is_not_the_signed_one_excludes_and_names_its_sender(
    new_world: Callable[..., MaskedWorld], fault: str
):
    world = new_world(n=5, rounds=1)
    hospital = world.hospitals["general"]

    def peer(message: Message) -> Message | None:
        reply = hospital(message)
        document, blobs = unpack(reply)
        if message.metadata.message_type != "train" or not blobs:
            return reply
        other = world.blobs.put(TRAIN_FAULTS[fault](world.blobs.read(blobs[0])))
        return Message(pack(document, (other,)), reply_to=message)

    world.peers["general"] = peer
    final = world.run()
    assert [(e.site, e.reason) for e in world.events(ClientDropped)] == [("general", "bad-digest")]
    assert same(final, world.expected({1: tuple(name for name in world.cast.members if name != "general")}))


REPLY_FAULTS = {
    "keys of another member": ("query.secagg_keys", "keys", "invalid"),
    "keys for which nothing can be wrapped": ("query.secagg_keys", "keys", "invalid"),
    "no shares": ("query.secagg_share", "shares", "malformed"),
    "another blob": ("query.secagg_share", "shares", "malformed"),
    "no frame": ("query.unmask", "opening", "malformed"),
    "an unfounded report": ("query.unmask", "opening", "invalid"),
}


def _with_a_point_of_small_order(world: MaskedWorld, site: str) -> bytes:
    member, n = world.hospitals[site].open.require_masking().member, len(world.cast.members)
    (entry,) = KeyList.decode(member.offer(1), members=n).entries
    bad = replace(entry, carrier_key=entry.carrier_key[:-32] + bytes(32))
    return KeyList(round=1, entries=(resigned(member._rules, bad, 1, world.hospitals[site].key),)).encode()


@pytest.mark.parametrize("fault", REPLY_FAULTS)
def test_a_reply_that_does_not_hold_is_not_used_and_logged(new_world: Callable[..., MaskedWorld], fault: str):
    world = new_world(n=5, rounds=1)
    kind, step, reason = REPLY_FAULTS[fault]
    hospital = world.hospitals["general"]

    def lie(document: bytes, blobs: tuple[BlobRef, ...]) -> tuple[Document, tuple[BlobRef, ...]]:
        if fault == "keys of another member":
            return KeysOffered(keys=world.hospitals["trauma"].open.require_masking().member.offer(1)), ()
        if fault == "keys for which nothing can be wrapped":
            return KeysOffered(keys=_with_a_point_of_small_order(world, "general")), ()
        if fault == "no shares":
            return Shared(), ()
        if fault == "another blob":
            return Shared.from_bytes(document), (world.blobs.put(b"something else"),)
        if fault == "no frame":
            return Shared(opening=b"no frame"), ()
        one = world.desk().sign(b"{}", SURVIVOR_SET_TYPE)
        report = EquivocationReport(study=world.study.sha256(), round=1, site="general", first=one, second=one)
        return Equivocated(report=sign_document(report.to_bytes(), EQUIVOCATION_TYPE, hospital.key)), ()

    def peer(message: Message) -> Message | None:
        reply = hospital(message)
        if message.metadata.message_type != kind:
            return reply
        document, blobs = lie(*unpack(reply))
        return Message(pack(document.to_bytes(), blobs), reply_to=message)

    world.peers["general"] = peer
    assert world.run()
    refused = [(event.site, event.step, event.reason) for event in world.events(MaskingRefused)]
    assert refused == [("general", step, reason)]


# -- what a hospital demands of the log before it cosigns a sum


def altered(world: MaskedWorld, change: Callable[[SurvivorsFixed], SurvivorsFixed | None]) -> None:
    """Make the server's log show another survivor set than the members opened."""
    append = world.audit.append

    def lying(entries: list[Entry]) -> range:
        found = [(change(e) if isinstance(e, SurvivorsFixed) else e, who) for e, who in entries]
        kept = [(event, who) for event, who in found if event is not None]
        return append(kept) if kept else range(0)

    world.audit.append = lying  # type: ignore[method-assign]


def _forged_set(world: MaskedWorld, **changes: object) -> Callable[[SurvivorsFixed], SurvivorsFixed]:
    def change(event: SurvivorsFixed) -> SurvivorsFixed:
        found = SurvivorSet.from_bytes(event.set.payload_bytes()).model_copy(update=changes)
        return event.model_copy(update={"set": world.desk().sign(found.to_bytes(), SURVIVOR_SET_TYPE)})

    return change


def _strange_vectors(event: SurvivorsFixed) -> SurvivorsFixed:
    update = {"vector": sha256_digest(b"another")}
    return event.model_copy(update={"updates": tuple(u.model_copy(update=update) for u in event.updates)})


LOG_LIES: dict[str, Callable[[MaskedWorld], Callable[[SurvivorsFixed], SurvivorsFixed | None]]] = {
    "no survivors": lambda world: lambda event: None,
    "another set than was opened": lambda world: _forged_set(world, receipts=sha256_digest(b"others")),
    "another adapter": lambda world: _forged_set(world, adapter=sha256_digest(b"suppressed")),
    "own header changed": lambda world: _strange_vectors,
    "too few": lambda world: lambda event: event.model_copy(update={"updates": event.updates[:2]}),
}


@pytest.mark.parametrize("lie", LOG_LIES)
def test_no_hospital_cosigns_a_sum_whose_survivors_the_log_misstates(world: MaskedWorld, lie: str, capsys, caplog):
    altered(world, LOG_LIES[lie](world))
    with pytest.raises(VerificationError) as caught:
        world.run()
    assert caught.value.code == "witness-quorum-missing"
    assert len(world.events(WitnessRefused)) == 3
    assert "log-sum-disagrees" in capsys.readouterr().out + caplog.text  # wherever logging goes in this process


# -- keep_vectors: a reviewer recomputes the sum


def test_a_reviewer_recomputes_every_sum_from_what_was_kept(new_world: Callable[..., MaskedWorld]):
    world = new_world(n=5, keep_vectors=True, deadline_s=20.0)
    world.peers["eye-clinic"] = silent_when(world.hospitals["eye-clinic"], "train", 1)
    world.run()
    rules, tensors = secagg_rules(world.study, world.layout.trained), dict(world.initial)
    for event in world.events(RoundAggregated):
        plan, kept = load_round(world.folder / "sums" / str(event.round))
        assert plan.adapter.digest == sha256_digest(encode_tensors(tensors))
        mean = split(opened_mean(rules, plan, kept), world.layout.trained)
        tensors = {name: value + mean[name] for name, value in tensors.items()}
        assert sha256_digest(encode_tensors(tensors)) == event.adapter, "what the log says"
    assert [event.round for event in world.events(RoundAggregated)] == [1, 2]


def test_a_kept_round_that_was_altered_or_is_incomplete_is_found_out(new_world: Callable[..., MaskedWorld]):
    world = new_world(keep_vectors=True, rounds=1)
    world.run()
    rules, folder = secagg_rules(world.study, world.layout.trained), world.folder / "sums" / "1"
    vector = folder / "vectors" / "general"
    data = vector.read_bytes()
    vector.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(VerificationError, match="masked vector of general"):
        opened_mean(rules, *load_round(folder))
    (folder / "plan.json").unlink()
    with pytest.raises(StorageError) as caught:
        load_round(folder)
    assert caught.value.code == "kept-round-unreadable"


def test_nothing_is_kept_unless_the_study_says_so(world: MaskedWorld):
    world.run()
    assert not (world.folder / "sums").exists()
