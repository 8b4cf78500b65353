"""A hospital as a witness: forks, roll-backs, lies about it, late offers, freshness, and what stays on its disk."""

import json
import shutil

import pytest
from peers.auditing import NOW, SITES, STUDY, Scene, play_round, round_started, started
from peers.disks import FastFiles

from wardround_client.home import Home
from wardround_client.witnessing import LOG_EVIDENCE_TYPE, MAX_LATE_OFFERS, LogEvidence, LogWitness
from wardround_common.audit.events import WitnessNonce
from wardround_common.audit.note import open_checkpoint
from wardround_common.audit.trust import parse_log_key
from wardround_common.errors import StorageError, VerificationError
from wardround_common.rounds import CheckpointOffer, StaleOffer
from wardround_common.signing import Envelope, open_envelope

SITE = SITES[0]


class Ward:
    """One hospital's witness beside a server's log."""

    def __init__(self, scene: Scene, home: Home) -> None:
        self.scene, self.home, self.key = scene, home, scene.sites[SITE]
        self.start()

    def start(self) -> None:
        self.witness = LogWitness(
            self.home, log=self.scene.trust().log, site=SITE, key=self.key, clock=self.scene.clock,
            new_nonce=lambda: "ab" * 32,
        )  # fmt: skip

    def cosign(self, log, *, old_size: int | None = None, **changes) -> StaleOffer | str:
        offer = log.offer(STUDY, 1, SITE, self.witness.size if old_size is None else old_size)
        answer = self.witness.consider(offer.model_copy(update=changes))
        if isinstance(answer, StaleOffer):
            return answer
        self.witness.store(answer)
        log.add_cosignatures([answer.line], int(offer.checkpoint.split("\n")[1]))
        return answer.line

    def evidence(self) -> list[LogEvidence]:
        found = []
        for folder in sorted(self.home.evidence(self.scene.trust().log).glob("*")):
            envelope = Envelope.from_bytes((folder / "statement.json").read_bytes())
            found.append(LogEvidence.from_bytes(open_envelope(envelope, LOG_EVIDENCE_TYPE, [self.key.public_key()])))
            assert CheckpointOffer.from_bytes((folder / "offer.json").read_bytes()).sha256() == found[-1].offer
        return found


@pytest.fixture
def scene(tmp_path):
    return Scene(tmp_path / "server")


@pytest.fixture
def log(scene):
    scene.home.mkdir()
    with scene.open(files=FastFiles()) as log:
        play_round(scene, log, 1)
        yield log


@pytest.fixture
def ward(scene, tmp_path):
    return Ward(scene, Home(tmp_path / "ward"))


@pytest.fixture
def fork(scene, tmp_path):
    """The same operator's key over another history."""
    other = Scene(tmp_path / "fork", log_key=scene.log_key, reviewer=scene.reviewer)
    other.home.mkdir()
    with other.open(files=FastFiles()) as log:
        log.append([started()] * 20)
        yield log


def refused(action, code):
    with pytest.raises(VerificationError) as caught:
        action()
    assert caught.value.code == code


def test_the_memory_survives_a_restart_and_belongs_to_the_log(ward, log):
    ward.cosign(log)
    size = ward.witness.size
    ward.start()
    assert ward.witness.size == size == log.size
    log.append([started()])
    ward.cosign(log)
    assert ward.witness.size == log.size
    assert ward.evidence() == []


def test_it_is_on_disk_before_the_line_is_sent(ward, log):
    offer = log.offer(STUDY, 1, SITE, 0)
    accepted = ward.witness.consider(offer)
    assert not ward.home.witness(ward.scene.trust().log).exists()
    ward.witness.store(accepted)
    assert ward.home.witness(ward.scene.trust().log).read_bytes() == accepted.state.to_bytes()


@pytest.mark.parametrize("content", [b"", b"{}", b"garbage"])
def test_a_damaged_memory_is_an_error_and_never_a_fresh_start(ward, log, content):
    ward.cosign(log)
    ward.home.witness(ward.scene.trust().log).write_bytes(content)
    with pytest.raises(StorageError) as caught:
        ward.start()
    assert caught.value.code == "witness-state-damaged"


def test_a_forked_log_is_never_cosigned_again(ward, log, fork):
    ward.cosign(log)
    known = ward.witness._state.note
    refused(lambda: ward.cosign(fork), "log-forked")
    (evidence,) = ward.evidence()
    assert (evidence.code, evidence.site, evidence.time, evidence.known) == ("log-forked", SITE, NOW, known)
    key = parse_log_key(evidence.log)
    heads = [open_checkpoint(note, key) for note in (evidence.known, evidence.offered)]  # both signed by the log
    assert heads[0].root != heads[1].root
    for _ in range(2):
        refused(lambda: ward.cosign(log), "log-distrusted")  # also the log that it knows, also after a restart
        ward.start()
    assert len(ward.evidence()) == 1
    shutil.rmtree(ward.home.root / "evidence")  # a person has looked at it
    ward.cosign(log)


def test_a_fork_of_the_same_size_is_evidence_too(ward, log, fork):
    ward.cosign(log)
    size = ward.witness.size
    offer = fork.offer(STUDY, 1, SITE, 0, size=size).model_copy(update={"old_size": size, "consistency": ()})
    refused(lambda: ward.witness.consider(offer), "log-forked")
    assert [evidence.code for evidence in ward.evidence()] == ["log-forked"]


def test_a_split_view_shows_in_what_others_cosigned(ward, log, fork):
    ward.cosign(log)
    others = Scene(ward.scene.home, log_key=ward.scene.log_key)
    for site in SITES[1:]:
        _, others.states[site], _ = others.consider(site, fork)
    lines = [others.consider(site, fork)[0] for site in SITES[1:]]
    offer = fork.offer(STUDY, 1, SITE, 0, size=ward.witness.size)
    assert lines
    log.append([started()])
    refused(lambda: ward.cosign(log, cosigned=offer.checkpoint), "log-forked")
    assert [evidence.code for evidence in ward.evidence()] == ["log-forked"]


def test_a_rolled_back_log_is_told_and_then_evidence(ward, log, tmp_path):
    old = Scene(tmp_path / "old", log_key=ward.scene.log_key, reviewer=ward.scene.reviewer)
    log.publish()
    shutil.copytree(ward.scene.home, old.home)
    log.append([round_started(2)])
    ward.cosign(log)
    with old.open(files=FastFiles()) as restored:
        for _ in range(MAX_LATE_OFFERS):
            told = ward.cosign(restored, old_size=0)
            assert told == StaleOffer(size=log.size, note=ward.witness._state.note)
        with pytest.raises(StorageError) as caught:  # an honest server that was restored stops
            restored.note_seen(SITE, told.size, told.note)
        assert caught.value.code == "audit-log-behind"
        refused(lambda: ward.cosign(restored, old_size=0), "log-rolled-back")  # one that insists is kept
    assert [evidence.code for evidence in ward.evidence()] == ["log-rolled-back"]


def test_who_knows_better_and_shows_less_is_convicted_at_once(ward, log, tmp_path):
    old = Scene(tmp_path / "old", log_key=ward.scene.log_key, reviewer=ward.scene.reviewer)
    log.publish()
    shutil.copytree(ward.scene.home, old.home)
    log.append([round_started(2)])
    ward.cosign(log)
    with old.open(files=FastFiles()) as restored:
        offer = restored.offer(STUDY, 1, SITE, 0).model_copy(update={"old_size": ward.witness.size})
        refused(lambda: ward.witness.consider(offer), "log-rolled-back")
    assert len(ward.evidence()) == 1


def test_late_offers_between_two_studies_are_no_evidence(ward, log):
    early = log.offer(STUDY, 1, SITE, 0)
    log.append([started()])
    ward.cosign(log)
    assert ward.witness.consider(early) == StaleOffer(size=ward.witness.size, note=ward.witness._state.note)
    ward.cosign(log)
    assert ward.evidence() == []


def test_an_unreadable_disclosure_is_evidence(ward, log):
    offer = log.offer(STUDY, 1, SITE, 0)
    wrong = offer.disclosed[0].model_copy(update={"key": bytes(32)})
    offer = offer.model_copy(update={"disclosed": (wrong, *offer.disclosed[1:])})
    refused(lambda: ward.witness.consider(offer), "log-entry-unreadable")
    assert [evidence.code for evidence in ward.evidence()] == ["log-entry-unreadable"]


def test_what_anybody_could_have_sent_is_no_evidence(ward, log):
    offer = log.offer(STUDY, 1, SITE, 0)
    for change in ({"checkpoint": "nonsense"}, {"checkpoint": offer.checkpoint.replace(f"\n{log.size}\n", "\n1\n")}):
        with pytest.raises(VerificationError):
            ward.witness.consider(offer.model_copy(update=change))
    assert ward.evidence() == []
    ward.cosign(log)


class FakeStudy:
    """The few fields of a study that freshness needs."""

    def __init__(self, scene):
        from types import SimpleNamespace

        trust = scene.trust(quorum=2)
        members = tuple(SimpleNamespace(name=name, identity=key) for name, key in trust.members.items())
        self.cohort = SimpleNamespace(members=members, witness_quorum=2)

    def sha256(self):
        return STUDY


class TestFreshness:
    def quorum(self, scene, log, sites=SITES[1:]):
        """Let the others cosign; return the note."""
        lines = [scene.consider(site, log)[0] for site in sites]
        return log.add_cosignatures(lines, log.size, quorum=2)

    def ask(self, log, nonce):
        log.append([(WitnessNonce(study=STUDY, site=SITE, nonce=nonce), frozenset({SITE}))])

    def test_a_quorum_over_the_nonce_makes_it_fresh(self, scene, ward, log):
        study, nonce = FakeStudy(scene), ward.witness.nonce(STUDY)
        assert nonce == ward.witness.nonce(STUDY) == "ab" * 32
        self.ask(log, nonce)
        ward.cosign(log)
        ward.witness.take_quorum(study, self.quorum(scene, log))
        assert ward.witness.nonce(STUDY) is None
        ward.start()
        assert ward.witness.nonce(STUDY) is not None

    def test_older_foreign_and_missing_quorums_do_not(self, scene, ward, log):
        study = FakeStudy(scene)
        old = self.quorum(scene, log)
        ward.cosign(log)
        ward.witness.take_quorum(study, old)  # before the nonce was even asked for
        nonce = ward.witness.nonce(STUDY)
        ward.witness.take_quorum(study, old)
        self.ask(log, "cd" * 32)  # somebody else's nonce
        ward.cosign(log)
        ward.witness.take_quorum(study, self.quorum(scene, log))
        assert ward.witness.nonce(STUDY) == nonce
        self.ask(log, nonce)
        ward.cosign(log)
        ward.witness.take_quorum(study, old)
        for note in ("", old, log.checkpoint, "nonsense"):
            ward.witness.take_quorum(study, note)
        assert ward.witness.nonce(STUDY) == nonce
        log.append([started()])
        ward.witness.take_quorum(study, self.quorum(scene, log))  # newer, but this site has not cosigned that tree
        assert ward.witness.nonce(STUDY) == nonce
        ward.cosign(log)
        ward.witness.take_quorum(study, log.cosigned)
        assert ward.witness.nonce(STUDY) is None


def test_the_statement_is_readable_without_our_code(ward, log, fork):
    ward.cosign(log)
    refused(lambda: ward.cosign(fork), "log-forked")
    (folder,) = ward.home.evidence(ward.scene.trust().log).iterdir()
    assert json.loads((folder / "offer.json").read_text())["format"] == "wardround/checkpoint-offer/1"
    assert json.loads((folder / "statement.json").read_text())["payloadType"] == LOG_EVIDENCE_TYPE
