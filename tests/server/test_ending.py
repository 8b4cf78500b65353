"""Aborts and withdrawals at the server: stored once, never undone, told to every member."""

from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from peers.studies import SITES, Cast, make_study

from wardround_common.audit.events import ClientRevoked, ClientWithdrawn, StudyAborted
from wardround_common.ending import ABORT_TYPE, WITHDRAWAL_TYPE, Ended, Withdrawal, open_abort
from wardround_common.errors import ConfigError, ProtocolError, VerificationError
from wardround_common.signing import Envelope, open_envelope, parse_public_key, public_key_text, sign_document
from wardround_common.study import STUDY_TYPE, Study
from wardround_common.wire.frames import Answer
from wardround_server.database import Database
from wardround_server.ending import AbortNotices, Endings
from wardround_server.enrolment import Registry
from wardround_server.home import Home
from wardround_server.studies import Proposal, StudyShelf
from wardround_server.transport.hub import Hub

CAST = Cast()
SITE = SITES[0]
OPERATOR = public_key_text(CAST.operator.public_key())


class World:
    def __init__(self, folder: Path) -> None:
        (folder / "state").mkdir()
        self.home, self.database = Home(folder), Database.open(folder / "state" / "server.db")
        self.registry = Registry(self.database)
        self.shelf = StudyShelf(home=self.home, registry=self.registry, operator=OPERATOR)
        self.now = 1_000_000.0
        for number, (site, key) in enumerate(CAST.members.items()):
            with self.database.transaction() as db:
                db.execute(
                    "INSERT INTO members VALUES (?, ?, ?, '', 0, 0, x'', 'live')",
                    (f"sha256:{number:064x}", site, public_key_text(key.public_key())),
                )
        self.study = self.propose("demo")
        self.endings = self.reopened()

    def propose(self, name: str) -> Study:
        study = make_study(CAST, name=name)
        envelope = sign_document(study.to_bytes(), STUDY_TYPE, CAST.operator)
        self.shelf.add(Proposal(study=study, envelope=envelope))
        return study

    def reopened(self) -> Endings:
        return Endings(
            database=self.database,
            registry=self.registry,
            shelf=self.shelf,
            key=CAST.operator,
            clock=lambda: self.now,
        )

    @property
    def events(self) -> list:
        return [item.event for item in self.registry.take_events()][1:]  # without the proposal itself

    def leave(self, site: str, study: Study | None, key: Ed25519PrivateKey | None = None, named: str = "") -> bytes:
        withdrawal = Withdrawal(site=named or site, study=study.sha256() if study else None)
        signed = sign_document(withdrawal.to_bytes(), WITHDRAWAL_TYPE, key or CAST.members[site])
        return self.endings.withdraw(site, signed.to_bytes())


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def test_an_abort_is_signed_logged_once_and_survives_a_restart(world: World) -> None:
    digest = world.study.sha256()
    envelope = world.endings.abort(world.study, "key-compromised")
    assert open_abort(envelope, OPERATOR).reason == "key-compromised"
    assert world.endings.abort(world.study, "operator") == envelope, "an abort is never replaced"
    assert world.reopened().aborted(digest) == envelope
    assert world.reopened().reason(digest) == "key-compromised"
    assert [event.kind for event in world.events] == ["study.aborted"]
    (queued,) = [item for item in world.registry.take_events() if isinstance(item.event, StudyAborted)]
    assert queued.concerns == frozenset(SITES)


def test_a_released_study_cannot_be_aborted(world: World) -> None:
    world.home.completed("demo").touch()
    with pytest.raises(ConfigError) as caught:
        world.endings.abort(world.study, "operator")
    assert caught.value.code == "study-released"
    assert world.endings.aborted(world.study.sha256()) is None


def test_a_withdrawal_is_stored_logged_once_and_receipted(world: World) -> None:
    receipt = Envelope.from_bytes(world.leave(SITE, world.study))
    keys = [parse_public_key(OPERATOR), CAST.members[SITE].public_key()]
    assert Withdrawal.from_bytes(open_envelope(receipt, WITHDRAWAL_TYPE, keys)).study == world.study.sha256()
    assert Envelope.from_bytes(world.leave(SITE, world.study)) == receipt, "a lost reply does no harm"
    assert world.endings.withdrawn(world.study.sha256()) == {SITE}
    assert [event.kind for event in world.events] == ["client.withdrawn"]
    assert SITE in world.registry.members(), "it is still a member of the federation"


def test_leaving_the_federation_leaves_all_studies_and_revokes(world: World) -> None:
    other = world.propose("second")
    world.leave(SITE, None)
    assert world.endings.withdrawn(world.study.sha256()) == world.endings.withdrawn(other.sha256()) == {SITE}
    assert SITE not in world.registry.members()
    kinds = [item.event for item in world.registry.take_events()]
    assert sum(isinstance(event, ClientWithdrawn) for event in kinds) == 3
    assert sum(isinstance(event, ClientRevoked) for event in kinds) == 1


def test_nobody_withdraws_another_site(world: World) -> None:
    for attack in (
        lambda: world.leave(SITE, world.study, key=CAST.members[SITES[1]]),
        lambda: world.leave(SITE, world.study, named=SITES[1]),
        lambda: world.leave(SITE, world.study, key=CAST.operator),
    ):
        with pytest.raises(VerificationError):
            attack()
    with pytest.raises(ConfigError) as caught:
        world.leave(SITE, make_study(CAST, name="unknown"))
    assert caught.value.code == "study-unknown"
    with pytest.raises(ProtocolError):
        world.endings.withdraw(SITE, b"{}")
    assert world.events == []


def test_the_server_aborts_when_too_few_are_left(world: World) -> None:
    assert world.endings.due(world.study) is None
    world.leave(SITE, world.study)
    assert world.endings.due(world.study) == "too-few-members", "min_cohort is all three"


def test_the_server_aborts_when_the_studys_hours_are_over(world: World) -> None:
    digest, limit = world.study.sha256(), world.study.timing.max_hours * 3_600
    world.endings.started(digest)
    world.now += limit
    world.endings.started(digest)  # a restart does not start the clock anew
    assert world.endings.due(world.study) is None
    world.now += 1
    assert world.endings.due(world.study) == "out-of-time"


def confirm(hub: Hub, site: str, study: str, document: bytes | None = None) -> None:
    (work,) = hub.outstanding(site)
    answer = document if document is not None else Ended(study=study).to_bytes()
    assert hub.answer(site, Answer(reply_to=work.message_id, study=study, document=answer))


def test_every_member_is_told_until_it_has_answered(world: World) -> None:
    hub, digest = Hub(), world.study.sha256()
    notices = AbortNotices(hub=hub, endings=world.endings)
    envelope = world.endings.abort(world.study, "operator")
    proposal = Proposal(study=world.study, envelope=envelope)
    for _ in range(2):  # twice offered, once posted
        notices.offer(proposal, envelope)
    assert [len(hub.outstanding(site)) for site in SITES] == [1, 1, 1]
    (work,) = hub.outstanding(SITE)
    assert (work.message_type, work.document) == ("query.abort", envelope.to_bytes())
    assert open_envelope(Envelope.from_bytes(work.document), ABORT_TYPE, [CAST.operator.public_key()])
    confirm(hub, SITE, digest)
    confirm(hub, SITES[1], digest, b'{"code":"failed-locally","format":"wardround/refused/1"}')
    notices.collect()
    assert world.endings.to_tell(world.study) == SITES[1:]
    later = Hub()  # the server was restarted
    AbortNotices(hub=later, endings=world.reopened()).offer(proposal, envelope)
    assert [len(later.outstanding(site)) for site in SITES] == [0, 1, 1]


def test_an_answer_for_another_study_confirms_nothing(world: World) -> None:
    hub = Hub()
    notices = AbortNotices(hub=hub, endings=world.endings)
    envelope = world.endings.abort(world.study, "operator")
    notices.offer(Proposal(study=world.study, envelope=envelope), envelope)
    other = Ended(study=make_study(CAST, name="other").sha256()).to_bytes()
    confirm(hub, SITE, world.study.sha256(), other)
    notices.collect()
    assert SITE in world.endings.to_tell(world.study)


def test_who_has_left_is_not_told(world: World) -> None:
    world.leave(SITE, world.study)
    world.endings.abort(world.study, "too-few-members")
    assert world.endings.to_tell(world.study) == SITES[1:]


def test_a_member_with_another_identity_counts_as_gone(world: World) -> None:
    with world.database.transaction() as db:
        other = public_key_text(Ed25519PrivateKey.generate().public_key())
        db.execute("UPDATE members SET identity = ? WHERE site = ?", (other, SITE))
    assert world.endings.gone(world.study) == {SITE}
    assert world.endings.due(world.study) == "too-few-members"
    assert SITE not in world.endings.to_tell(world.study)
