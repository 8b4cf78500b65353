"""A hostile operator with its real key against real hospitals, in memory and over gRPC with TLS.

The operator runs the honest code as far as it helps and then lies. Expected results: docs/spec/secagg.md, "Attacks".
"""

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flwr.app import Message
from flwr.serverapp import Grid
from peers.masked_federation import NAMES, MaskedWorld
from peers.ward import Ward, running

from wardround_common.adapter import encode_tensors
from wardround_common.audit.events import AttackReported, ClientDropped, RoundFailed
from wardround_common.documents import Document, canonical_json
from wardround_common.envelope.hpke import PrivateKey
from wardround_common.errors import ProtocolError, TrainingError, VerificationError
from wardround_common.identity.keys import load_identity_key
from wardround_common.rounds import (
    EQUIVOCATION_TYPE,
    BlobRef,
    Equivocated,
    EquivocationReport,
    KeysOffered,
    KeysWanted,
    OpeningWanted,
    Refused,
    RoundAnswer,
    RoundPlan,
    Shared,
    SharesWanted,
    document_format,
)
from wardround_common.secagg.coordinator import Collection, KeyBook, Openings, ParcelBook
from wardround_common.secagg.documents import SURVIVOR_SET_TYPE, SurvivorSet
from wardround_common.secagg.frames import KeyList
from wardround_common.secagg.keys import make_entry
from wardround_common.signing import Envelope, open_envelope, parse_public_key, sign_document
from wardround_common.study import Study
from wardround_common.updates import secagg_rules
from wardround_server.rounds.gathering import answer_entries
from wardround_server.rounds.witnessing import exchange, require_quorum
from wardround_server.transport.flower import pack, unpack
from wardround_server.transport.grid import GrpcGrid

Content = tuple[Document, tuple[BlobRef, ...]]
Reply = tuple[bytes, tuple[BlobRef, ...]]


@dataclass
class Operator:
    """The server's side, step by step; every message may be replaced."""

    world: MaskedWorld
    grid: Grid
    said: dict[str, Reply] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.rules = secagg_rules(self.world.study, self.world.layout.trained)
        self.desk = self.world.desk(poll_s=0.01)

    @property
    def sites(self) -> tuple[str, ...]:
        return self.rules.names

    def ask(self, kind: str, content: dict[str, Content], round_: int = 1) -> dict[str, Reply]:
        """Send, wait for all, and return the replies; a hospital that wants a fresh checkpoint gets it."""
        replies = exchange(
            self.grid, self.desk, kind, round_, content, enough=lambda: False, waiting=lambda missing: None
        )
        self.said = {site: unpack(reply) for site, reply in replies}
        assert self.said.keys() == content.keys()
        return self.said

    def refused(self) -> dict[str, str]:
        return {site: Refused.from_bytes(document).code for site, (document, _) in self.said.items()}

    # -- an honest round 1, up to wherever the attack begins

    def keys(self) -> KeyBook:
        wanted = KeysWanted(study=self.rules.study, round=1)
        self.ask("query.secagg_keys", dict.fromkeys(self.sites, (wanted, ())))
        self.offers = {site: KeysOffered.from_bytes(document).keys for site, (document, _) in self.said.items()}
        return self.book(self.offers)

    def book(self, offers: dict[str, bytes]) -> KeyBook:
        book = KeyBook(rules=self.rules, round=1)
        for site, offer in offers.items():
            book.add(site, offer)
        return book

    def share(self, book: KeyBook) -> ParcelBook:
        self.ask("query.secagg_share", {site: self.shown(book.list_for(site)) for site in book.sites})
        self.frames = {site: self.world.blobs.read(blobs[0]) for site, (_, blobs) in self.said.items()}
        return self.parcels(book, self.frames)

    def parcels(self, book: KeyBook, frames: dict[str, bytes]) -> ParcelBook:
        parcels = ParcelBook(rules=self.rules, keys=book)
        for site, frame in frames.items():
            parcels.add(site, frame)
        return parcels

    def shown(self, keys: bytes) -> Content:
        blob = self.world.blobs.put(keys)
        return SharesWanted(study=self.rules.study, round=1, keys=blob), (blob,)

    def plan(self, round_: int = 1, **changes: Any) -> RoundPlan:
        adapter = self.world.blobs.put(self.first)
        cosigned = self.world.audit.cosigned
        fields = {"study": self.rules.study, "round": round_, "cohort": self.sites, "adapter": adapter}
        return RoundPlan(**{**fields, "witnessed": cosigned, **changes})

    @property
    def first(self) -> bytes:
        return encode_tensors(self.world.initial)

    def train(self, plan: RoundPlan, parcels: ParcelBook, sites: tuple[str, ...] = ()) -> dict[str, Reply]:
        kits = {site: self.world.blobs.put(parcels.kit(site)) for site in sites or self.sites}
        return self.ask("train", {site: (plan, (plan.adapter, kit)) for site, kit in kits.items()}, plan.round)

    def collected(self, plan: RoundPlan, parcels: ParcelBook, survivors: tuple[str, ...] = ()) -> Collection:
        collection = Collection(rules=self.rules, plan=plan, parcels=parcels)
        for site in survivors or self.answers:
            collection.keep(site, self.answers[site])
        return collection

    def masked(self) -> tuple[RoundPlan, ParcelBook]:
        """Run round 1 until every vector is here."""
        # A plan may be pinned once only: the checkpoint in it must be the one after the fresh nonces.
        self.greet()
        parcels = self.share(self.keys())
        plan = self.plan()
        self.train(plan, parcels)
        self.trained = {site: RoundAnswer.from_bytes(document) for site, (document, _) in self.said.items()}
        self.answers = {site: answer.header for site, answer in self.trained.items()}
        return plan, parcels

    def greet(self) -> None:
        require_quorum(self.grid, self.desk, 1)

    def opening(self, collection: Collection) -> tuple[Content, SurvivorSet]:
        found = collection.survivor_set()
        request = collection.request(self.desk.sign(found.to_bytes(), SURVIVOR_SET_TYPE))
        return (OpeningWanted(study=self.rules.study, round=1, request=request), ()), found


@pytest.fixture(params=["memory", pytest.param("grpc", marks=pytest.mark.slow)])
def operator(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[..., Operator]]:
    """Return a maker of worlds whose hospitals are asked in memory, or over gRPC by the real server."""
    with ExitStack() as stack:
        made = _over_grpc if request.param == "grpc" else _in_memory
        yield lambda **options: made(stack, tmp_path, {"n": 5, "rounds": 2, **options})


def _in_memory(stack: ExitStack, folder: Path, options: dict[str, Any]) -> Operator:
    world = MaskedWorld(folder, **options)
    stack.callback(world.close)
    return Operator(world, world.memory_grid())


def _over_grpc(stack: ExitStack, folder: Path, options: dict[str, Any]) -> Operator:
    ward = Ward(folder / "ward")
    ward.start()
    stack.callback(ward.stop)
    sites = {name: ward.enrol(name) for name in NAMES[: options["n"]]}
    keys = {name: load_identity_key(site.home / "keys" / "identity.key") for name, site in sites.items()}
    (folder / "world").mkdir()
    world = MaskedWorld(folder / "world", keys=keys, blobs=ward.blobs, **options)
    stack.callback(world.close)
    for name, hospital in world.hospitals.items():
        hospital.blobs = sites[name].blobs
        hospital.restart()
    sessions = [site.session(world.hospitals[name].handle) for name, site in sites.items()]
    stack.enter_context(running(*sessions))
    ward.wait_for(*((name, "up") for name in sites))
    members = {name: site.enrolled.identity for name, site in sites.items()}
    return Operator(world, GrpcGrid(ward.hub, study=world.study.sha256(), members=members))


def test_substituted_keys_are_refused_before_anything_is_shared(operator: Callable[..., Operator]):
    """The operator puts itself in the middle of one member; it has no identity key of that member."""
    op = operator()
    book = op.keys()
    victim = op.sites[1]
    listed = KeyList.decode(book.list_for(op.sites[0]), members=len(op.sites))
    key = PrivateKey.from_seed(bytes(32))
    mine = make_entry(op.rules, 1, victim, key, key, Ed25519PrivateKey.generate())
    entries = tuple(mine if entry.index == 1 else entry for entry in listed.entries)
    forged = op.shown(KeyList(round=1, entries=entries).encode())
    op.ask("query.secagg_share", dict.fromkeys(op.sites, forged))
    assert set(op.refused().values()) == {"refused"}
    assert op.share(book).roster == (0, 1, 2, 3, 4), "the true keys are still shared for"


def test_other_parameters_than_the_cosigned_ones_cannot_be_said(operator: Callable[..., Operator]):
    """Threshold, ring, clip and minimum cohort are the study's: another text is a study that nobody approved."""
    op = operator()
    study = op.world.study
    assert study.secagg is not None
    weaker = [
        study.model_copy(update={"secagg": study.secagg.model_copy(update={"ring": "u16"})}),
        study.model_copy(update={"privacy": study.privacy.model_copy(update={"clip_norm": 100.0})}),
        study.model_copy(
            update={
                "cohort": study.cohort.model_copy(update={"colluders": 0, "min_cohort": 3}),
                "secagg": study.secagg.model_copy(update={"threshold": 3}),
            }
        ),
    ]
    for other in weaker:
        Study.from_bytes(other.to_bytes())
        wanted = KeysWanted(study=other.sha256(), round=1)
        op.ask("query.secagg_keys", dict.fromkeys(op.sites, (wanted, ())))
        assert {document_format(document) for document, _ in op.said.values()} == {"wardround/refused/1"}


def test_a_split_view_opens_nothing_and_a_second_set_is_reported(operator: Callable[..., Operator]):
    """Both kinds of share for one hospital: some are told that it survived, some that it vanished."""
    op = operator()
    plan, parcels = op.masked()
    victim, others = op.sites[4], op.sites[:4]
    alive, with_victim = op.opening(op.collected(plan, parcels))
    dead, without = op.opening(op.collected(plan, parcels, others))
    first, second = others[:2], others[2:]
    told = op.ask("query.unmask", {**dict.fromkeys(first, alive), **dict.fromkeys(second, dead)})
    for found, group, survivors in ((with_victim, first, ()), (without, second, others)):
        openings = Openings(collection=op.collected(plan, parcels, survivors), survivors=found)
        for site in group:
            openings.add(site, Shared.from_bytes(told[site][0]).opening)
        assert not openings.enough
        with pytest.raises(VerificationError, match="are needed"):
            openings.masks()
    told = op.ask("query.unmask", {**dict.fromkeys(first, dead), **dict.fromkeys(second, alive)})
    for site, (document, _) in told.items():
        key = parse_public_key(op.world.study.member(site).identity)
        envelope = Equivocated.from_bytes(document).report
        report = EquivocationReport.from_bytes(open_envelope(envelope, EQUIVOCATION_TYPE, [key]))
        sets = {SurvivorSet.from_bytes(one.payload_bytes()).survivors for one in (report.first, report.second)}
        assert sets == {op.sites, others}
        assert op.world.hospitals[site].home.attack(op.rules.study).exists()
    assert victim not in told


def test_opening_again_gives_the_same_bytes_or_nothing_also_after_a_restart(operator: Callable[..., Operator]):
    op = operator()
    plan, parcels = op.masked()
    everybody, _ = op.opening(op.collected(plan, parcels))
    fewer, _ = op.opening(op.collected(plan, parcels, op.sites[:4]))
    site = op.sites[0]
    first = op.ask("query.unmask", {site: everybody})[site]
    op.world.hospitals[site].restart()
    assert op.ask("query.unmask", {site: everybody})[site] == first
    assert document_format(op.ask("query.unmask", {site: fewer})[site][0]) == "wardround/equivocated/1"
    op.world.hospitals[site].restart()
    for asked in (fewer, everybody):
        op.ask("query.unmask", {site: asked})
        assert op.refused() == {site: "refused"}, "it has left the study"


def test_a_lost_upload_is_not_masked_again_for_another_cohort(operator: Callable[..., Operator]):
    """The operator keeps one vector, says that it was lost, and asks the others again without that member."""
    op = operator()
    plan, _ = op.masked()
    others = op.sites[:4]
    without = op.parcels(op.book(op.offers), {site: op.frames[site] for site in others})
    before = dict(op.said)
    again = op.train(plan, without, others)
    for site, reply in again.items():
        assert reply == before[site], "the same bytes, under the first roster"
    op.train(op.plan(adapter=plan.adapter, witnessed=""), without, others)
    assert set(op.refused().values()) == {"refused"}
    op.train(op.plan(2), without, others)
    assert set(op.refused().values()) == {"refused"}, "no next round before the first one is witnessed"


def test_another_model_for_some_members_trains_and_opens_nothing(operator: Callable[..., Operator]):
    """A gradient-suppressing adapter for all but the victim would show the victim's update in the sum."""
    op = operator()
    op.greet()
    parcels = op.share(op.keys())
    suppressing = op.world.blobs.put(op.first[:-4] + b"\0\0\x80\x3f")
    op.train(op.plan(adapter=suppressing), parcels, op.sites[:4])
    assert set(op.refused().values()) == {"refused"}
    for site in op.sites[:4]:
        assert op.world.hospitals[site].ledger.spent(op.rules.study) is None, "nothing was spent"


def test_a_plan_with_the_wrong_company_costs_nothing(operator: Callable[..., Operator]):
    op = operator()
    op.greet()
    parcels = op.share(op.keys())
    plan, site = op.plan(), op.sites[0]
    other_kit = op.world.blobs.put(parcels.kit(op.sites[1]))
    spoilt = bytearray(parcels.kit(site))
    spoilt[-1] ^= 1
    wrong: list[tuple[BlobRef, ...]] = [
        (),
        (plan.adapter,),
        (other_kit, plan.adapter),
        (plan.adapter, other_kit),
        (plan.adapter, op.world.blobs.put(bytes(spoilt))),
    ]
    for blobs in wrong:
        op.ask("train", {site: (plan, blobs)})
        assert op.refused() == {site: "refused"}
    assert op.world.hospitals[site].ledger.spent(op.rules.study) is None


def test_keys_are_made_for_rounds_of_the_study_only(operator: Callable[..., Operator]):
    op = operator()
    for round_ in (3, 4, 1_000):
        wanted = KeysWanted(study=op.rules.study, round=round_)
        op.ask("query.secagg_keys", dict.fromkeys(op.sites, (wanted, ())))
        assert set(op.refused().values()) == {"refused"}


def test_a_sealed_study_knows_no_masks(tmp_path: Path):
    world = MaskedWorld(tmp_path)
    try:
        hospital = world.hospitals["general"]
        hospital.open.masking = None
        with pytest.raises(ProtocolError) as caught:
            hospital.studies.offer_keys(KeysWanted(study=world.study.sha256(), round=1))
        assert caught.value.code == "study-not-masked"
    finally:
        world.close()


class Crash(BaseException):
    """The process is killed."""


def test_a_second_survivor_set_is_refused_reported_logged_and_ends_the_study(tmp_path: Path):
    """The server is killed between two openings and comes back with an older database: it signs another set."""
    world = MaskedWorld(tmp_path, n=5, rounds=2, spare_rounds=1, deadline_s=20.0)
    try:
        keep, openings = world.state.keep, []

        def crashing(study: str, round_: int, kind: Any, site: str, body: bytes) -> None:
            keep(study, round_, kind, site, body)
            openings.extend([site] if kind == "opening" else [])
            if len(openings) == 2:
                raise Crash

        world.state.keep = crashing  # type: ignore[method-assign]
        with pytest.raises(Crash):
            world.run()
        with world.database.transaction() as db:
            db.execute("DELETE FROM secagg WHERE kind IN ('set', 'answer', 'opening')")
        world.restart_server()
        silent = "cardiology"
        opened = {site for site in world.cast.members if site != silent}  # memory grid: all had opened by then
        hospital = world.hospitals[silent]

        def away(message: Message) -> Message | None:
            return None if message.metadata.message_type == "train" else hospital(message)

        world.peers[silent] = away
        with pytest.raises(TrainingError) as caught:
            world.run()
        assert caught.value.code == "round-spoilt"
        assert [event.reason for event in world.events(RoundFailed)] == ["attacked"]
        reports = world.events(AttackReported)
        assert {event.site for event in reports} == opened
        for site in opened:
            evidence = world.hospitals[site].home.attack(world.study.sha256())
            assert Envelope.from_bytes(evidence.read_bytes()) in [event.report for event in reports]
            with pytest.raises(VerificationError) as left:
                world.hospitals[site].open.require_masking().require_unharmed()
            assert left.value.code == "study-attacked"
            assert world.hospitals[site].open.agreed.reported, "it cosigned only what shows its report"
    finally:
        world.close()


def test_a_report_that_the_log_leaves_out_is_not_cosigned_over(tmp_path: Path, capsys, caplog):
    world = MaskedWorld(tmp_path, n=5, rounds=2)
    try:
        op = Operator(world, world.memory_grid())
        plan, parcels = op.masked()
        site = op.sites[0]
        for survivors in (op.sites, op.sites[:4]):
            asked, _ = op.opening(op.collected(plan, parcels, survivors))
            op.ask("query.unmask", {site: asked})
        assert document_format(op.said[site][0]) == "wardround/equivocated/1"
        failed = RoundFailed(study=op.rules.study, round=1, reason="not-opened")
        answer = op.trained[site]
        world.audit.append([*answer_entries(plan, site, answer), (failed, frozenset(op.sites))])
        offer = world.audit.offer(op.rules.study, 1, site, world.audit.witnessed(site))
        op.ask("query.cosign", {site: (offer, ())})
        assert op.refused() == {site: "refused"}
        assert "log-sum-disagrees" in capsys.readouterr().out + caplog.text  # wherever logging goes in this process
    finally:
        world.close()


def test_a_header_in_another_members_name_does_not_count(tmp_path: Path):
    world = MaskedWorld(tmp_path, n=5, rounds=1)
    try:
        liar, victim = world.hospitals["general"], world.hospitals["trauma"]

        def peer(message: Message) -> Message | None:
            reply = liar(message)
            document, blobs = unpack(reply)
            if message.metadata.message_type != "train" or not blobs:
                return reply
            answer = RoundAnswer.from_bytes(document)
            payload = {**json.loads(answer.header.payload_bytes()), "site": victim.name}
            forged = sign_document(canonical_json(payload), answer.header.payloadType, liar.key)
            return Message(pack(answer.model_copy(update={"header": forged}).to_bytes(), blobs), reply_to=message)

        world.peers["general"] = peer
        assert world.run()
        assert [(e.site, e.reason) for e in world.events(ClientDropped)] == [("general", "bad-signature")]
    finally:
        world.close()
