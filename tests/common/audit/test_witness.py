import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from peers.auditing import NOW, SITES, STUDY, Scene, play_round, started
from peers.disks import FastFiles

from wardround_common.audit.note import Checkpoint, add_lines, log_key_of, sign_checkpoint, sign_cosignature
from wardround_common.audit.seal import Sealer
from wardround_common.audit.tiles import RightEdge, inclusion_proof, leaf_hash
from wardround_common.audit.witness import WitnessState, consider, verify_cosignature, verify_quorum
from wardround_common.documents import canonical_json
from wardround_common.errors import VerificationError
from wardround_common.rounds import CheckpointOffer, Disclosed
from wardround_common.signing import public_key_text

SITE = "st-elsewhere"


@pytest.fixture
def scene(tmp_path):
    return Scene(tmp_path)


@pytest.fixture
def log(scene):
    with scene.open(files=FastFiles()) as log:
        play_round(scene, log, 1)
        yield log


@pytest.fixture
def fork(scene, tmp_path):
    """Another history, signed with the real log key."""
    other = Scene(tmp_path / "fork", log_key=scene.log_key)
    other.home.mkdir()
    with other.open(files=FastFiles()) as log:
        yield log


def refused(scene, log, code):
    with pytest.raises(VerificationError) as caught:
        scene.consider(SITE, log)
    assert caught.value.code == code


def by_hand(scene, events, *, key=None, alter=None):
    """Return an offer over hand-made entries; `events` are plaintexts."""
    sealer, edge = Sealer(segment=bytes(8), seed=bytes(32)), RightEdge()
    sealed = [sealer.seal(event, time=0) for event in events]
    for entry, _ in sealed:
        edge.add(leaf_hash(entry))
    tiles = {tile.name.level: tile.data for tile in edge.partial_tiles()}
    head = Checkpoint(origin="operator.wardround", size=edge.size, root=edge.root())
    disclosed = tuple(
        Disclosed(
            index=index,
            entry=entry,
            key=message_key if key is None else key,
            proof=inclusion_proof(index, edge.size, lambda level, _, width: tiles[level][: 32 * width]),
        )
        for index, (entry, message_key) in enumerate(sealed)
    )
    offer = CheckpointOffer(
        study=STUDY, round=1, checkpoint=sign_checkpoint(head, scene.log_key), old_size=0, consistency=(),
        disclosed=alter(disclosed) if alter else disclosed,
    )  # fmt: skip
    return consider(None, offer, log=scene.trust().log, key=scene.sites[SITE], name=SITE, clock=scene.clock)


def test_first_offer(scene, log):
    line, state, events = scene.consider(SITE, log)
    assert [event.kind for event in events] == ["round.started", "update.received"]
    assert events[1].site == SITE
    assert state == WitnessState(log=log.verifier_key, size=log.size, root=state.root, note=log.checkpoint)
    assert WitnessState.from_bytes(state.to_bytes()) == state
    key = public_key_text(scene.sites[SITE].public_key())
    assert verify_cosignature(line, log.checkpoint, SITE, key) == NOW


def test_growth_and_repetition(scene, log):
    scene.cosign(log)
    assert scene.consider(SITE, log)[2] == ()  # the same checkpoint again, nothing outstanding
    play_round(scene, log, 2)
    _, state, events = scene.consider(SITE, log)
    assert (state.size, [event.round for event in events]) == (log.size, [2, 2])


def test_roll_back_is_refused(scene, log, fork):
    scene.cosign(log)
    fork.append([started()])
    offer = fork.offer(STUDY, 1, SITE, 0)
    with pytest.raises(VerificationError) as caught:
        consider(scene.states[SITE], offer, log=log.verifier_key, key=scene.sites[SITE], name=SITE, clock=scene.clock)
    assert caught.value.code == "log-rolled-back"


def test_a_fork_of_the_same_size_is_refused(scene, log, fork):
    scene.cosign(log)
    play_round(scene, fork, 1)
    assert fork.size == log.size
    refused(scene, fork, "log-forked")


def test_a_grown_fork_is_refused(scene, log, fork):
    scene.cosign(log)
    for round_ in (1, 2):
        play_round(scene, fork, round_)
    refused(scene, fork, "log-forked")


def test_another_log_is_refused(scene, log):
    scene.cosign(log)
    scene.states[SITE] = scene.states[SITE].model_copy(update={"log": "other" + log.verifier_key})
    refused(scene, log, "log-replaced")


def test_a_proof_from_another_size_is_refused(scene, log):
    scene.cosign(log)
    play_round(scene, log, 2)
    for old_size in (0, 1, scene.states[SITE].size - 1, log.size):
        offer = log.offer(STUDY, 2, SITE, old_size)
        with pytest.raises(VerificationError) as caught:
            consider(
                scene.states[SITE], offer, log=log.verifier_key, key=scene.sites[SITE], name=SITE, clock=scene.clock
            )
        assert caught.value.code == "log-offer-stale"
        assert str(scene.states[SITE].size) in str(caught.value)
    offer = log.offer(STUDY, 2, SITE, 3)
    with pytest.raises(VerificationError) as caught:
        consider(None, offer, log=log.verifier_key, key=scene.sites[SITE], name=SITE, clock=scene.clock)
    assert caught.value.code == "log-offer-stale"


@pytest.mark.parametrize("change", [
    lambda o: {"consistency": o.consistency[:-1]},
    lambda o: {"consistency": ()},
    lambda o: {"consistency": (*o.consistency, bytes(32))},
    lambda o: {"consistency": (b"short",)},
])  # fmt: skip
def test_wrong_consistency_proofs(scene, log, change):
    scene.cosign(log)
    play_round(scene, log, 2)
    offer = log.offer(STUDY, 2, SITE, scene.states[SITE].size)
    with pytest.raises(VerificationError) as caught:
        consider(
            scene.states[SITE], offer.model_copy(update=change(offer)), log=log.verifier_key, key=scene.sites[SITE],
            name=SITE, clock=scene.clock,
        )  # fmt: skip
    assert caught.value.code == "log-forked"


def test_a_checkpoint_by_another_key_is_refused(scene, log):
    stranger = log_key_of("operator.wardround", Ed25519PrivateKey.generate().public_key())
    offer = log.offer(STUDY, 1, SITE, 0)
    for key, code in ((str(stranger), "note-not-signed"), ("operator.wardround+", "note-malformed")):
        with pytest.raises(VerificationError) as caught:
            consider(None, offer, log=key, key=scene.sites[SITE], name=SITE, clock=scene.clock)
        assert caught.value.code == code


EVENT = canonical_json({"kind": "server.stop", "v": 1})


def test_hand_made_offers_work(scene):
    assert [event.kind for event in by_hand(scene, [EVENT, EVENT, EVENT])[2]] == ["server.stop"] * 3


@pytest.mark.parametrize(("change", "code"), [
    ({"key": bytes(32)}, "log-entry-unreadable"),
    ({"key": b""}, "log-entry-unreadable"),
    ({"alter": lambda d: (d[1], d[0])}, "log-entry-unreadable"),
    ({"alter": lambda d: (d[0], d[0])}, "log-entry-unreadable"),
    ({"alter": lambda d: (d[0].model_copy(update={"index": 1}),)}, "log-proof-invalid"),
    ({"alter": lambda d: (d[0].model_copy(update={"index": 99}),)}, "log-proof-invalid"),
    ({"alter": lambda d: (d[0].model_copy(update={"proof": ()}),)}, "log-proof-invalid"),
    ({"alter": lambda d: (d[0].model_copy(update={"entry": d[1].entry}),)}, "log-proof-invalid"),
    ({"alter": lambda d: (d[0].model_copy(update={"entry": b""}),)}, "log-proof-invalid"),
])  # fmt: skip
def test_wrong_disclosures(scene, change, code):
    with pytest.raises(VerificationError) as caught:
        by_hand(scene, [EVENT, EVENT], **change)
    assert caught.value.code == code


@pytest.mark.parametrize(("event", "code"), [
    (b"not json", "log-entry-unreadable"),
    (b'{"kind":"round.started","v":1}', "log-entry-unreadable"),
    (b'{"v":1,"kind":"server.stop"}', "log-entry-unreadable"),
    (canonical_json({"kind": "server.stop", "v": 2}), "log-event-unknown"),
    (canonical_json({"kind": "new.kind", "v": 1}), "log-event-unknown"),
])  # fmt: skip
def test_ciphertext_of_something_else_is_not_cosigned(scene, event, code):
    """Inclusion of ciphertext says nothing about its content."""
    with pytest.raises(VerificationError) as caught:
        by_hand(scene, [event])
    assert caught.value.code == code


class TestQuorum:
    HEAD = Checkpoint(origin="operator.wardround", size=7, root=bytes(32))

    def note(self, scene, sites):
        lines = [sign_cosignature(self.HEAD, site, scene.sites[site], 5) for site in sites]
        return add_lines(sign_checkpoint(self.HEAD, scene.log_key), lines)

    def test_enough(self, scene):
        trust = scene.trust()
        for sites in (SITES, SITES[:2]):
            assert verify_quorum(self.note(scene, sites), trust.log, trust.members, 2) == self.HEAD

    @pytest.mark.parametrize("sites", [(), SITES[:1]])
    def test_too_few(self, scene, sites):
        trust = scene.trust()
        with pytest.raises(VerificationError) as caught:
            verify_quorum(self.note(scene, sites), trust.log, trust.members, 2)
        assert caught.value.code == "log-quorum-missing"

    def test_one_hospital_twice_counts_once(self, scene):
        trust = scene.trust()
        again = sign_cosignature(self.HEAD, SITES[0], scene.sites[SITES[0]], 6)
        note = self.note(scene, SITES[:1]) + again + "\n"
        with pytest.raises(VerificationError) as caught:
            verify_quorum(note, trust.log, trust.members, 2)
        assert caught.value.code == "log-quorum-missing"

    def test_strangers_do_not_count(self, scene):
        trust = scene.trust()
        stranger = sign_cosignature(self.HEAD, SITES[1], Ed25519PrivateKey.generate(), 6)
        note = self.note(scene, SITES[:1]) + stranger + "\n"
        with pytest.raises(VerificationError) as caught:
            verify_quorum(note, trust.log, trust.members, 2)
        assert caught.value.code == "log-quorum-missing"

    def test_cosignatures_over_another_checkpoint(self, scene):
        trust = scene.trust()
        other = Checkpoint(origin="operator.wardround", size=8, root=bytes(32))
        line = sign_cosignature(other, SITES[1], scene.sites[SITES[1]], 6)
        with pytest.raises(VerificationError) as caught:
            verify_quorum(self.note(scene, SITES[:1]) + line + "\n", trust.log, trust.members, 1)
        assert caught.value.code == "note-signature-invalid"

    def test_misuse(self, scene):
        trust = scene.trust()
        with pytest.raises(ValueError, match="quorum"):
            verify_quorum(self.note(scene, SITES), trust.log, trust.members, 0)
        one_key = dict.fromkeys(SITES, trust.members[SITES[0]])
        with pytest.raises(ValueError, match="distinct"):
            verify_quorum(self.note(scene, SITES), trust.log, one_key, 2)

    def test_a_cosigners_key_is_no_logs_key(self, scene):
        from wardround_common.audit.note import cosigner_key_of

        trust = scene.trust()
        key = str(cosigner_key_of(SITES[0], trust.members[SITES[0]]))
        with pytest.raises(VerificationError) as caught:
            verify_quorum(self.note(scene, SITES), key, trust.members, 2)
        assert caught.value.code == "log-key-wrong-kind"


def test_a_line_of_another_site_does_not_count(scene, log):
    line, _, _ = scene.consider(SITE, log)
    with pytest.raises(VerificationError) as caught:
        verify_cosignature(line, log.checkpoint, "northside", public_key_text(scene.sites["northside"].public_key()))
    assert caught.value.code == "cosignature-wrong-key"
    play_round(scene, log, 2)
    with pytest.raises(VerificationError) as caught:
        verify_cosignature(line, log.checkpoint, SITE, public_key_text(scene.sites[SITE].public_key()))
    assert caught.value.code == "note-signature-invalid"
    for nonsense in ("", "\n\n", line + "\n" + line, "— x"):
        with pytest.raises(VerificationError):
            verify_cosignature(nonsense, log.checkpoint, "northside", public_key_text(scene.log_key.public_key()))
