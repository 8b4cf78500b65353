"""The strategy over an in-memory grid: a whole study, every resume point, and members that misbehave."""

import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Message
from peers.answers import MemoryBlobs, honest_answer, seal_plain, small_update, unseal_plain
from peers.grid import MemoryGrid
from peers.studies import SITES, Cast, make_adapter, make_study, study_task

from wardround_client.agreed import Agreed, OwnAnswer, agree
from wardround_client.home import Home
from wardround_client.witnessing import LogWitness
from wardround_common.adapter import decode_tensors, encode_tensors, initial_tensors
from wardround_common.audit.events import (
    ClientDropped,
    ModelReleased,
    RoundAggregated,
    RoundFailed,
    ServerStarted,
    WitnessNonce,
    WitnessRefused,
)
from wardround_common.audit.note import log_key_of
from wardround_common.audit.witness import consider, verify_quorum
from wardround_common.documents import sha256_digest
from wardround_common.errors import StorageError, TrainingError, VerificationError, WardroundError
from wardround_common.identity.keys import node_id
from wardround_common.rounds import CheckpointOffer, Cosignature, FreshWanted, Refused, RoundPlan, StaleOffer
from wardround_common.signing import public_key_text, sign_document
from wardround_common.study import Reviewer
from wardround_server.auditlog import AuditLog
from wardround_server.database import Database
from wardround_server.rounds.desk import Desk, Entry, Interrupted, StudyStatus
from wardround_server.rounds.state import RoundRecord, RoundState
from wardround_server.rounds.strategy import WardStrategy
from wardround_server.transport.flower import pack, unpack

ORIGIN = "wardround/test"
NOW = 1_700_000_000.0


class Site:
    """An honest hospital without training: it sends a constant update and is a real witness of the log."""

    def __init__(self, world: "World", name: str, value: float) -> None:
        self.world, self.name, self.value = world, name, value
        self.agreed = Agreed(study=world.study.sha256(), adapter=world.initial_digest)
        self.answers: dict[int, OwnAnswer] = {}
        self.events: list[object] = []
        self.plans: list[RoundPlan] = []
        self.refreshed = 0
        self.silent = False
        self.restart()

    def restart(self) -> None:
        """Start the daemon again: only what is on disk survives."""
        self.witness = LogWitness(
            Home(self.world.folder / f"home-{self.name}"),
            log=self.world.study.server.log,
            site=self.name,
            key=self.world.cast.members[self.name],
            clock=lambda: NOW,
        )

    def __call__(self, message: Message) -> Message | None:
        if self.silent:
            return None
        document, _ = unpack(message)
        if message.metadata.message_type == "train":
            return self.reply(message, *self.train(RoundPlan.from_bytes(document)))
        return self.reply(message, self.cosign(CheckpointOffer.from_bytes(document)), None)

    def reply(self, message: Message, document, blob) -> Message:
        return Message(pack(document.to_bytes(), () if blob is None else (blob,)), reply_to=message)

    def train(self, plan: RoundPlan):
        nonce = self.witness.nonce(plan.study)
        if nonce is not None:
            self.refreshed += 1
            return FreshWanted(nonce=nonce), None
        self.plans.append(plan)
        assert plan.adapter.digest == self.agreed.adapter
        members = {m.name: m.identity for m in self.world.study.cohort.members}
        verify_quorum(plan.witnessed, self.world.study.server.log, members, 3)
        tensors = small_update(self.world.layout, self.value)
        answer, sealed = honest_answer(self.world.cast, self.world.study, plan, self.name, self.world.blobs, tensors)
        self.answers[plan.round] = OwnAnswer(round=plan.round, answer=answer, sealed=sealed)
        return answer, sealed

    def cosign(self, offer: CheckpointOffer) -> Cosignature | StaleOffer:
        accepted = self.witness.consider(offer)
        if isinstance(accepted, StaleOffer):
            return accepted
        self.events += accepted.events
        self.agreed = agree(self.agreed, self.name, accepted.events, self.answers.get, accepted.state.size)
        self.witness.store(accepted)
        self.witness.take_quorum(self.world.study, offer.cosigned)
        return Cosignature(line=accepted.line)


class World:
    """One server's state on disk and its hospitals."""

    def __init__(self, folder: Path, *, spare_rounds: int = 0, deadline_s: float = 3600.0) -> None:
        self.folder = folder
        self.cast = Cast()
        log = str(log_key_of(ORIGIN, self.cast.log.public_key()))
        base = make_study(self.cast, log=log)
        self.study = base.model_copy(
            update={
                "privacy": base.privacy.model_copy(update={"spare_rounds": spare_rounds}),
                "timing": base.timing.model_copy(update={"round_deadline_s": deadline_s}),
            }
        )
        _, self.layout = make_adapter(study_task())
        first = initial_tensors(self.layout, self.study.adapter.seed)
        self.initial = {spec.name: first[spec.name] for spec in self.layout.trained}
        self.initial_digest = sha256_digest(encode_tensors(self.initial))
        self.blobs = MemoryBlobs()
        self.database = Database.open(folder / "server.db")
        self.state = RoundState(self.database)
        self.statuses: list[StudyStatus] = []
        self.stop = threading.Event()
        self.now = 0.0
        self.sites = {name: Site(self, name, value) for name, value in zip(SITES, (0.001, 0.002, 0.003), strict=True)}
        self.logged: list[object] = []
        self.audit = self.open_audit()

    def close(self) -> None:
        self.audit.close()
        self.database.close()

    def open_audit(self) -> AuditLog:
        reviewers = [Reviewer(name=r.name, recipient=r.recipient) for r in self.study.reviewers]
        (self.folder / "state").mkdir(exist_ok=True)
        log = AuditLog.open(
            self.folder / "audit", log_key=self.cast.log, origin=ORIGIN, reviewers=reviewers, clock=lambda: NOW
        )
        append = log.append
        append([(ServerStarted(version="0.1.0", config=self.study.sha256()), frozenset())])  # as the daemon does

        def recording(events):
            result = append(events)
            self.logged += [event for event, _ in events]
            return result

        log.append = recording  # type: ignore[method-assign]
        return log

    def clock(self) -> float:
        self.now += 1.0
        return self.now

    def strategy(self) -> WardStrategy:
        nodes = {site: node_id(public_key_text(key.public_key())) for site, key in self.cast.members.items()}
        self.grid = MemoryGrid({nodes[site]: peer for site, peer in self.sites.items()})
        desk = Desk(
            study=self.study,
            layout=self.layout,
            nodes=nodes,
            audit=self.audit,
            blobs=self.blobs,
            unseal=unseal_plain,
            sign=lambda document, kind: sign_document(document, kind, self.cast.operator),
            report=self.statuses.append,
            stop=self.stop,
            clock=self.clock,
            wall_clock=lambda: NOW,
            poll_s=0.0,
        )
        return WardStrategy(desk=desk, state=self.state, finish=self.finish)

    def finish(self, adapter, record: RoundRecord) -> Entry:
        event = ModelReleased(
            study=self.study.sha256(), round=record.plan.round, adapter=adapter.digest, provenance=adapter.digest
        )
        return event, frozenset(SITES)

    def run(self) -> dict[str, np.ndarray]:
        result = self.strategy().start(self.grid)
        return {name: array.numpy() for name, array in result.arrays.items()}

    def kinds(self) -> list[str]:
        return [event.kind for event in self.logged]  # type: ignore[attr-defined]

    def events(self, kind: type) -> list:
        return [event for event in self.logged if isinstance(event, kind)]


@pytest.fixture
def new_world(tmp_path: Path) -> Iterator[Callable[..., World]]:
    made: list[World] = []

    def new(**options: object) -> World:
        folder = tmp_path / str(len(made))
        folder.mkdir()
        made.append(World(folder, **options))
        return made[-1]

    yield new
    for world in made:
        world.close()


@pytest.fixture
def world(new_world: Callable[..., World]) -> World:
    return new_world()


def test_whole_study_adds_the_mean_of_every_round(world: World):
    final = world.run()
    for name, tensor in final.items():
        np.testing.assert_allclose(tensor, world.initial[name] + 3 * 0.002, atol=1e-6)
    assert [r.phase for r in world.state.rounds(world.study.sha256())] == ["sealed"] * 3
    assert world.statuses[-1].phase == "completed"


def test_every_round_is_logged_in_order_and_witnessed_before_the_next(world: World):
    world.run()
    one = ["round.started"] + ["update.received", "dp.spent"] * 3 + ["round.aggregated", "witness.quorum"]
    fresh = ["witness.nonce"] * 3  # every hospital has just started
    assert world.kinds() == one[:1] + fresh + one[1:] + one * 2 + ["model.released", "witness.quorum"]
    for site in world.sites.values():
        assert [plan.round for plan in site.plans] == [1, 2, 3]
        assert site.agreed.round == 3


def test_single_updates_are_not_kept_after_the_sum(world: World):
    world.run()
    sealed = {own.sealed.digest for site in world.sites.values() for own in site.answers.values()}
    assert len(sealed) == 9
    assert not sealed & world.blobs.held.keys()


def test_answers_in_another_order_give_the_same_bytes(new_world: Callable[..., World]):
    results = []
    for order in (SITES, SITES[::-1]):
        world = new_world()
        world.sites = {site: world.sites[site] for site in order}
        results.append({k: v.tobytes() for k, v in world.run().items()})
    assert results[0] == results[1]


class Crash(BaseException):
    """The process is killed."""


CRASHES = ["planned", "aggregated", "logged", "sealed"]


@pytest.mark.parametrize("phase", CRASHES)
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_crash_at_any_phase_resumes_to_the_same_adapter(new_world: Callable[..., World], phase: str, when: str):
    expected, world = new_world().run(), new_world()
    put, armed = world.state.put, [True]

    def crashing(record: RoundRecord) -> RoundRecord:
        hit = armed[0] and record.phase == phase and record.plan.round == 2
        if hit and when == "before":
            armed[0] = False
            raise Crash
        result = put(record)
        if hit:
            armed[0] = False
            raise Crash
        return result

    world.state.put = crashing  # type: ignore[method-assign]
    with pytest.raises(Crash):
        world.run()
    world.audit.close()
    world.audit = world.open_audit()
    final = world.run()
    assert {k: v.tobytes() for k, v in final.items()} == {k: v.tobytes() for k, v in expected.items()}
    aggregated = {(e.round, e.adapter) for e in world.events(RoundAggregated)}
    assert len(aggregated) == 3  # a repeated entry says the same


def _refusing(site: Site) -> Callable[[Message], Message | None]:
    def hospital(message: Message) -> Message | None:
        if message.metadata.message_type == "train":
            return site.reply(message, Refused(code="failed-locally"), None)
        return site(message)

    return hospital


def _nan(site: Site) -> Callable[[Message], Message | None]:
    def hospital(message: Message) -> Message | None:
        if message.metadata.message_type == "train":
            site.value = np.nan
        return site(message)

    return hospital


def _huge(site: Site) -> Callable[[Message], Message | None]:
    site.value = 1e6
    return site


@pytest.mark.parametrize(
    ("attack", "reason"), [(_refusing, "failed-locally"), (_nan, "not-finite"), (_huge, "out-of-range")]
)
def test_bad_answer_fails_the_round_names_the_site_and_changes_nothing(
    world: World, attack: Callable[[Site], Callable[[Message], Message | None]], reason: str
):
    """n = 3, c = 1: no site may be missing, so the round fails and there is no spare one."""
    culprit = world.sites[SITES[1]]
    world.sites[SITES[1]] = attack(culprit)  # type: ignore[assignment]
    with pytest.raises(TrainingError) as caught:
        world.run()
    assert caught.value.code == "study-rounds-exhausted"
    (dropped, *_) = world.events(ClientDropped)
    assert (dropped.site, dropped.reason, dropped.round) == (SITES[1], reason, 1)
    assert world.events(RoundFailed)
    assert all(record.adapter is None for record in world.state.rounds(world.study.sha256())[:1])


def test_a_failed_round_keeps_its_number_and_a_spare_one_follows(new_world: Callable[..., World]):
    world = new_world(spare_rounds=1)
    site = world.sites[SITES[0]]
    honest = site.value

    def once(message: Message) -> Message | None:
        if message.metadata.message_type == "train":
            site.value = np.inf if RoundPlan.from_bytes(unpack(message)[0]).round == 1 else honest
        return site(message)

    world.sites[SITES[0]] = once  # type: ignore[assignment]
    final = world.run()
    rounds = world.state.rounds(world.study.sha256())
    assert [record.plan.round for record in rounds] == [1, 2, 3, 4]
    assert rounds[1].plan.adapter == rounds[0].plan.adapter  # the next one starts from the same adapter
    for name, tensor in final.items():
        np.testing.assert_allclose(tensor, world.initial[name] + 3 * 0.002, atol=1e-6)


def test_a_silent_site_pauses_the_study_until_it_returns(new_world: Callable[..., World]):
    world = new_world(deadline_s=5.0)
    world.sites[SITES[2]].silent = True

    def report(status: StudyStatus) -> None:
        world.statuses.append(status)
        if status.phase == "paused":
            world.sites[SITES[2]].silent = False

    original = world.strategy

    def strategy() -> WardStrategy:
        made = original()
        object.__setattr__(made._desk, "report", report)
        return made

    world.strategy = strategy  # type: ignore[method-assign]
    world.run()
    assert any(s.phase == "paused" and SITES[2] in s.message for s in world.statuses)
    assert world.statuses[-1].phase == "completed"


def test_a_member_that_does_not_cosign_stops_the_study(world: World):
    site = world.sites[SITES[0]]

    def stubborn(message: Message) -> Message | None:
        if message.metadata.message_type == "query.cosign":
            return site.reply(message, Refused(code="refused"), None)
        return site(message)

    world.sites[SITES[0]] = stubborn  # type: ignore[assignment]
    with pytest.raises(VerificationError) as caught:
        world.run()
    assert caught.value.code == "witness-quorum-missing"
    assert SITES[0] in str(caught.value)
    assert [event.site for event in world.events(WitnessRefused)] == [SITES[0]]
    world.sites[SITES[0]] = site
    assert world.run()  # it goes on when the member cosigns


def test_a_cosignature_by_another_key_does_not_count(world: World):
    site, other = world.sites[SITES[0]], world.sites[SITES[1]]

    def forger(message: Message) -> Message | None:
        if message.metadata.message_type != "query.cosign":
            return site(message)
        offer = CheckpointOffer.from_bytes(unpack(message)[0])
        line, _, _ = consider(
            None,
            offer,
            log=world.study.server.log,
            key=world.cast.members[other.name],
            name=site.name,
            clock=lambda: 1.0,
        )
        return site.reply(message, Cosignature(line=line), None)

    world.sites[SITES[0]] = forger  # type: ignore[assignment]
    with pytest.raises(VerificationError, match="2 of 3"):
        world.run()


def test_a_lost_cosignature_is_caught_up_with(world: World):
    """The site has stored its cosignature, the server has not seen it: the next offer starts elsewhere."""
    site = world.sites[SITES[0]]
    lost = [True]

    def hospital(message: Message) -> Message | None:
        reply = site(message)
        if message.metadata.message_type == "query.cosign" and lost[0]:
            lost[0] = False
            raise Crash
        return reply

    world.sites[SITES[0]] = hospital  # type: ignore[assignment]
    with pytest.raises(Crash):
        world.run()
    world.audit.close()
    world.audit = world.open_audit()
    assert world.audit.size > 2  # the log has grown meanwhile
    assert world.run()


def test_a_hospital_that_restarts_sees_a_fresh_quorum_before_it_trains(world: World):
    site = world.sites[SITES[0]]
    trained = []

    def restarting(message: Message) -> Message | None:
        plan = RoundPlan.from_bytes(unpack(message)[0]) if message.metadata.message_type == "train" else None
        if plan and plan.round == 2 and not trained:
            trained.append(2)
            site.restart()
        return site(message)

    world.sites[SITES[0]] = restarting  # type: ignore[assignment]
    world.run()
    nonces = world.events(WitnessNonce)
    assert [event.site for event in nonces] == [*sorted(SITES), SITES[0]]
    assert len({event.nonce for event in nonces}) == 4
    assert (site.refreshed, [plan.round for plan in site.plans]) == (2, [1, 2, 3])


def test_a_hospital_that_wants_fresh_checkpoints_for_ever_is_dropped(world: World):
    site = world.sites[SITES[0]]
    numbers = iter(range(1_000))

    def anxious(message: Message) -> Message | None:
        if message.metadata.message_type == "train":
            return site.reply(message, FreshWanted(nonce=f"{next(numbers):064x}"), None)
        return site(message)

    world.sites[SITES[0]] = anxious  # type: ignore[assignment]
    with pytest.raises(TrainingError):  # all three are needed
        world.run()
    assert {event.reason for event in world.events(ClientDropped)} == {"malformed"}


def test_an_old_quorum_does_not_count_as_fresh(world: World):
    """A server that hides the newest log shows genuine cosignatures, but none over the nonce."""
    world.run()
    site = world.sites[SITES[0]]
    site.restart()
    assert site.witness.nonce(world.study.sha256()) is not None
    site.witness.take_quorum(world.study, world.audit.cosigned)
    assert site.witness.nonce(world.study.sha256()) is not None


def restore_old_copy(world: World, folder: Path) -> None:
    world.audit.close()
    for name in ("audit", "state"):
        shutil.rmtree(world.folder / name)
        shutil.copytree(folder / name, world.folder / name)


def test_a_server_restored_from_an_old_copy_stops_before_anything_is_trained(world: World, tmp_path: Path):
    old = tmp_path / "old"
    world.audit.append([(WitnessRefused(study=world.study.sha256(), round=1, site=SITES[0]), frozenset())])
    world.audit.publish()
    for name in ("audit", "state"):
        shutil.copytree(world.folder / name, old / name)
    world.run()
    plans = [len(site.plans) for site in world.sites.values()]
    newest = world.audit.size
    restore_old_copy(world, old)
    world.audit = world.open_audit()
    assert world.audit.size < newest
    with pytest.raises(StorageError) as caught:
        world.run()
    assert caught.value.code == "audit-log-behind"
    assert [len(site.plans) for site in world.sites.values()] == plans
    world.audit.close()
    with pytest.raises(StorageError) as caught:  # and it does not start again
        world.open_audit()
    assert caught.value.code == "audit-damaged"
    restore_old_copy(world, old)
    world.audit = world.open_audit()


def test_a_restored_server_that_went_on_is_told_that_it_forked(world: World, tmp_path: Path):
    old = tmp_path / "old"
    world.audit.publish()
    for name in ("audit", "state"):
        shutil.copytree(world.folder / name, old / name)
    world.run()
    restore_old_copy(world, old)
    world.audit = world.open_audit()
    for number in range(60):
        refused = WitnessRefused(study=world.study.sha256(), round=number + 1, site=SITES[0])
        world.audit.append([(refused, frozenset())])
    with pytest.raises(StorageError) as caught:
        world.run()
    assert caught.value.code == "audit-log-forked"


def test_a_study_that_is_held_up_says_why_and_begins_no_round(world: World, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("wardround_server.rounds.strategy.HOLD_POLL_S", 0.0)
    reasons = iter(["waiting for board", "waiting for board"])
    original = world.strategy

    def strategy() -> WardStrategy:
        made = original()
        object.__setattr__(made._desk, "hold", lambda: next(reasons, ""))
        return made

    world.strategy = strategy  # type: ignore[method-assign]
    world.run()
    assert [s.phase for s in world.statuses if s.message == "waiting for board"] == ["paused"] * 2
    assert world.statuses[-1].phase == "completed"


def test_no_audit_no_round(world: World):
    def full(events: object) -> range:
        raise StorageError("audit-disk-full", "the disk is full", next_step="-")

    append, world.audit.append = world.audit.append, full  # type: ignore[method-assign]
    with pytest.raises(StorageError):
        world.run()
    assert not any(site.plans for site in world.sites.values())  # nothing was asked of anybody
    world.audit.append = append  # type: ignore[method-assign]
    assert world.run()


def test_shutdown_leaves_the_round_where_it_is(world: World):
    world.sites[SITES[2]].silent = True
    world.stop.set()
    with pytest.raises(Interrupted):
        world.run()
    world.stop.clear()
    world.sites[SITES[2]].silent = False
    assert world.run()
    assert [r.plan.round for r in world.state.rounds(world.study.sha256())] == [1, 2, 3]


def test_update_for_the_wrong_round_is_named_replayed_or_undecryptable(world: World):
    site = world.sites[SITES[0]]

    def replaying(message: Message) -> Message | None:
        if message.metadata.message_type == "train":
            plan = RoundPlan.from_bytes(unpack(message)[0])
            if plan.round == 2:
                own = site.answers[1]
                assert own.sealed.digest not in world.blobs.held
                return site.reply(message, own.answer, own.sealed)
        return site(message)

    world.sites[SITES[0]] = replaying  # type: ignore[assignment]
    with pytest.raises(WardroundError):
        world.run()
    assert [e.reason for e in world.events(ClientDropped)] == ["replayed"]


def test_the_released_adapter_is_the_round_that_the_study_fixed(world: World):
    world.study = world.study.model_copy(update={"released_round": 2})
    for site in world.sites.values():
        site.agreed = Agreed(study=world.study.sha256(), adapter=world.initial_digest)
    final = world.run()
    for name, tensor in final.items():
        np.testing.assert_allclose(tensor, world.initial[name] + 2 * 0.002, atol=1e-6)
    (released,) = world.events(ModelReleased)
    second = decode_tensors(world.blobs.held[released.adapter], world.layout.trained)
    assert {k: v.tobytes() for k, v in second.items()} == {k: v.tobytes() for k, v in final.items()}


assert seal_plain(b"x", 1, "a") == b"1/a:x"  # the peers' stand-in for encryption binds round and site
