"""Every row of "Attacks and what happens" in docs/spec/secagg.md, against a hostile peer in memory."""

import base64
import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from peers.masked import ADAPTER, STUDY, Ward

from wardround_common.documents import sha256_digest
from wardround_common.envelope.hpke import WrapBroken, unwrap, wrap
from wardround_common.errors import VerificationError, WardroundError
from wardround_common.rounds import BlobRef, RoundPlan
from wardround_common.secagg import derive, shamir
from wardround_common.secagg.coordinator import Collection, KeyBook, Openings, ParcelBook, _receipt
from wardround_common.secagg.documents import (
    MASKED_HEADER_TYPE,
    SURVIVOR_SET_TYPE,
    MaskedHeader,
    OpeningSeal,
    Parcels,
    RoundContext,
    SurvivorSet,
    require_signature,
    signature_of,
)
from wardround_common.secagg.errors import Equivocation
from wardround_common.secagg.frames import KeyList, Kit, Opening, OpenRequest, ParcelSet
from wardround_common.secagg.keys import make_entry
from wardround_common.secagg.member import Member
from wardround_common.secagg.openings import open_boxes, opening_seal
from wardround_common.secagg.parcels import pair_context
from wardround_common.secagg.rules import check_thresholds
from wardround_common.secagg.state import StateFile
from wardround_common.secagg.sums import RunningSum
from wardround_common.secagg.survivors import survivor_set
from wardround_common.signing import Envelope, sign_document


def code(info: pytest.ExceptionInfo[WardroundError]) -> str:
    assert "\n" not in str(info.value)
    assert info.value.next_step
    return info.value.code


# -- keys


def substituted(ward: Ward, book: KeyBook, victim: str, round_: int) -> bytes:
    """Return a key list in which the server put its own mask key in the victim's place, signed by a key of its own."""
    listed = KeyList.decode(book.list_for(ward.names[0]), members=ward.n)
    server = derive.PrivateKey.from_seed(bytes(32))
    mine = make_entry(ward.rules, round_, victim, server, server, Ed25519PrivateKey.generate())
    entries = tuple(mine if entry.index == mine.index else entry for entry in listed.entries)
    return KeyList(round=round_, entries=entries).encode()


def test_substituted_keys_are_refused_before_anything_is_shared() -> None:
    ward = Ward(n=3)
    forged = substituted(ward, ward.key_book(1), ward.names[1], 1)
    before = dict(ward.stores[ward.names[0]].items)
    with pytest.raises(VerificationError) as info:
        ward.members[ward.names[0]].share(1, forged)
    assert code(info) == "secagg-keys-invalid"
    assert ward.stores[ward.names[0]].items == before


UNUSABLE = {
    "point zero": lambda key: key[:-32] + bytes(32),
    "point of order 8": lambda key: (
        key[:-32]
        + bytes.fromhex("e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800")  # RFC 7748's curve
    ),
    "lattice": lambda key: b"\xff" * 1184 + key[-32:],
}


@pytest.mark.parametrize("kind", ["mask_key", "carrier_key"])
@pytest.mark.parametrize("how", UNUSABLE)
def test_keys_for_which_nothing_can_be_wrapped_leave_their_sender_out(kind: str, how: str) -> None:
    """A low-order point would make the shared secret known to all; the library refuses it with a bare ValueError."""
    ward = Ward(n=3)
    listed = KeyList.decode(ward.key_book(1).list_for("site-000"), members=3)
    bad = ward.resigned(replace(listed.entries[1], **{kind: UNUSABLE[how](getattr(listed.entries[1], kind))}), 1)
    with pytest.raises(VerificationError, match="of site-001 is no usable") as info:
        KeyBook(rules=ward.rules, round=1).add("site-001", KeyList(round=1, entries=(bad,)).encode())
    assert code(info) == "secagg-keys-invalid"
    shown = KeyList(round=1, entries=(listed.entries[0], bad, listed.entries[2])).encode()
    with pytest.raises(VerificationError, match="of site-001 is no usable") as info:
        ward.members["site-000"].share(1, shown)
    assert code(info) == "secagg-keys-invalid"


def test_ones_own_keys_cannot_be_replaced() -> None:
    ward = Ward(n=3)
    book = ward.key_book(1)
    listed = KeyList.decode(book.list_for(ward.names[0]), members=3)
    for entries in (
        listed.entries[1:],
        (replace(listed.entries[0], mask_key=listed.entries[1].mask_key), *listed.entries[1:]),
    ):
        with pytest.raises(VerificationError) as info:
            ward.members[ward.names[0]].share(1, KeyList(round=1, entries=entries).encode())
        assert code(info) == "secagg-keys-invalid"


def test_a_carrier_key_that_the_member_did_not_sign_is_refused() -> None:
    ward = Ward(n=3)
    listed = KeyList.decode(ward.key_book(1).list_for(ward.names[0]), members=3)
    other = listed.entries[2]
    changed = replace(listed.entries[1], carrier_key=other.carrier_key, carrier_signature=other.carrier_signature)
    with pytest.raises(VerificationError) as info:
        ward.members[ward.names[0]].share(1, KeyList(round=1, entries=(listed.entries[0], changed, other)).encode())
    assert code(info) == "secagg-keys-invalid"


def test_invented_members_have_no_index() -> None:
    ward, larger = Ward(n=3), Ward(n=4)
    offer = KeyList.decode(larger.members["site-003"].offer(1), members=4).entries
    listed = KeyList.decode(ward.key_book(1).list_for("site-000"), members=3).entries
    with pytest.raises(WardroundError) as info:
        ward.members["site-000"].share(1, KeyList(round=1, entries=(*listed, *offer)).encode())
    assert code(info) == "secagg-frame-invalid"


def test_keys_of_an_earlier_round_are_refused(tmp_path: Path) -> None:
    """Ephemeral keys reused across rounds: by the server that replays them, or by a member that offers them again."""
    ward = Ward(n=3)
    ward.run(1, ward.updates(), tmp_path)
    old = KeyList.decode(ward.members["site-001"].offer(1), members=3).entries[0]
    book = ward.key_book(2)
    listed = KeyList.decode(book.list_for("site-000"), members=3)
    replayed = KeyList(round=2, entries=tuple(old if e.index == 1 else e for e in listed.entries)).encode()
    with pytest.raises(VerificationError) as info:
        ward.members["site-000"].share(2, replayed)
    assert code(info) == "secagg-keys-invalid"
    with pytest.raises(VerificationError) as info:
        KeyBook(rules=ward.rules, round=2).add("site-001", KeyList(round=2, entries=(old,)).encode())
    assert code(info) == "secagg-keys-invalid"


def test_a_second_offer_or_another_member_s_is_refused_by_the_server() -> None:
    ward = Ward(n=3)
    book = ward.key_book(1)
    lone = Member(rules=ward.rules, site="site-001", key=ward.keys["site-001"], store=Ward(n=3).stores["site-001"])
    for site, offer in (("site-001", lone.offer(1)), ("site-002", lone.offer(1)), ("site-001", lone.offer(2))):
        with pytest.raises(VerificationError) as info:
            book.add(site, offer)
        assert code(info) == "secagg-keys-invalid"


def test_other_keys_for_the_same_round_are_refused() -> None:
    ward = Ward(n=4)
    full, part = ward.key_book(1), ward.key_book(1, ward.names[:3])
    member = ward.members["site-000"]
    first = member.share(1, full.list_for("site-000"))
    assert member.share(1, full.list_for("site-000")) == first
    with pytest.raises(VerificationError) as info:
        member.share(1, part.list_for("site-000"))
    assert code(info) == "secagg-round-pinned"


# -- parameters


@pytest.mark.parametrize(
    ("numbers", "reason"),
    [
        ((2, 0, 2, 2), "three members"),
        ((5, 1, 3, 5), "2t > n"),
        ((5, 1, 6, 5), "t <= n"),
        ((5, 1, 4, 3), "min_cohort"),
        ((5, 3, 5, 4), "min_cohort"),
        ((5, 1, 4, 6), "min_cohort"),
    ],
)
def test_weak_parameters_are_refused_by_both_sides(numbers: tuple[int, int, int, int], reason: str) -> None:
    n, colluders, threshold, min_cohort = numbers
    with pytest.raises(ValueError, match=reason):
        check_thresholds(n=n, colluders=colluders, threshold=threshold, min_cohort=min_cohort)
    with pytest.raises(ValueError, match=reason):
        _ = Ward(n=n, colluders=colluders, threshold=threshold, min_cohort=min_cohort).members


@pytest.mark.parametrize("changes", [{"ring": "u16"}, {"study": sha256_digest(b"other")}])
def test_another_ring_or_study_gives_another_context(changes: dict[str, str]) -> None:
    """No message names a ring or a bound: a server that computes with others only spoils its own round."""
    ward = Ward(n=3)
    parcels = ward.parcel_book(ward.key_book(1))
    masked = ward.mask(parcels, ward.updates())
    hostile = Collection(rules=replace(ward.rules, **changes), plan=ward.plan(1), parcels=parcels)
    with pytest.raises(VerificationError) as info:
        hostile.accept("site-000", masked["site-000"].header)
    assert code(info) == "secagg-header-invalid"


# -- parcels


def spoil(kit: bytes, n: int, change: str) -> bytes:
    found = Kit.decode(kit, members=n)
    (first, a), (second, b), *rest = found.parcels
    changed = {
        "forged box": ((first, replace(a, box=a.box[:-1] + bytes([a.box[-1] ^ 1]))), (second, b)),
        "swapped": ((first, b), (second, a)),
        "seed removed": ((first, replace(a, seed=b"")), (second, replace(b, seed=b""))),
        "foreign introduction": ((first, replace(a, introduction_signature=b.introduction_signature)), (second, b)),
    }[change]
    return Kit(round=found.round, roster=found.roster, parcels=(*changed, *rest)).encode()


@pytest.mark.parametrize("change", ["forged box", "swapped", "seed removed", "foreign introduction"])
def test_a_spoilt_parcel_makes_its_receiver_sit_out(change: str) -> None:
    ward = Ward(n=3)
    parcels = ward.parcel_book(ward.key_book(1))
    member = ward.members["site-000"]
    with pytest.raises(VerificationError) as info:
        member.mask(ward.plan(1), spoil(parcels.kit("site-000"), 3, change), ward.updates()["site-000"])
    assert code(info) == "secagg-parcel-invalid"


def test_a_server_cannot_choose_a_pair_s_seed() -> None:
    """HPKE authenticates nobody: a seed that the server wrapped itself is caught by the box that names its digest."""
    ward = Ward(n=3)
    book = ward.key_book(1)
    parcels = ward.parcel_book(book)
    found = Kit.decode(parcels.kit("site-001"), members=3)
    index = next(i for i, p in found.parcels if p.seed)
    context = pair_context(ward.rules, 1, (index, book.peer(index).document), (1, book.peer(1).document))
    mine = wrap(bytes(32), base64.b64encode(book.peer(1).mask_key).decode(), derive.digest(context))
    forged = tuple((i, replace(p, seed=mine) if i == index else p) for i, p in found.parcels)
    with pytest.raises(VerificationError) as info:
        ward.members["site-001"].mask(ward.plan(1), replace(found, parcels=forged).encode(), ward.updates()["site-001"])
    assert code(info) == "secagg-parcel-invalid"


def test_a_truncated_or_unsigned_set_of_parcels_is_refused_by_the_server() -> None:
    ward = Ward(n=3)
    keys = ward.key_book(1)
    frame = ward.members["site-000"].share(1, keys.list_for("site-000"))
    book = ParcelBook(rules=ward.rules, keys=keys)
    with pytest.raises(WardroundError) as info:
        book.add("site-000", frame[:-70])
    assert code(info) == "secagg-frame-invalid"
    found = ParcelSet.decode(frame, members=3)
    for bad in (
        replace(found, parcels=found.parcels[1:]).encode(),
        frame[:-1] + bytes([frame[-1] ^ 1]),
        replace(found, keys=bytes(32)).encode(),
    ):
        with pytest.raises(VerificationError) as info:
            book.add("site-000", bad)
        assert code(info) == "secagg-reply-invalid"
    with pytest.raises(VerificationError) as info:
        book.add("site-001", frame)
    assert code(info) == "secagg-reply-invalid"


def test_what_opens_a_dropped_member_s_masks_does_not_open_its_parcels() -> None:
    """Review correction (i): the root opens mask material only, so a dropped member is no colluder."""
    ward = Ward(n=3)
    parcels = ward.parcel_book(ward.key_book(1))
    file = StateFile(ward.stores["site-001"], STUDY)
    secrets = file.open_round(file.load(), 1)
    box = next(p for i, p in Kit.decode(parcels.kit("site-001"), members=3).parcels if i == 0)
    labels = ("mask-key", "box", "token", "step", "chain", *(f"seed-{i}" for i in range(3)))
    name = derive.RoundName(study=STUDY, round=1)
    for salt in (b"", derive.digest(name)):
        derived = [derive.derive(secrets.root, label, salt) for label in labels]
        for key in [secrets.root, *derived, *(derive.derive(k, "box", b"") for k in derived)]:
            assert derive.unseal(key, box.box, b"") is None
    key = derive.mask_key(secrets.root, name)
    with pytest.raises(WrapBroken):
        unwrap(box.introduction, key, b"")


# -- plans


def test_foreign_plans_rounds_and_rosters_are_refused(tmp_path: Path) -> None:
    ward = Ward(n=4)
    parcels = ward.parcel_book(ward.key_book(1))
    kit, values, member = parcels.kit("site-000"), ward.updates()["site-000"], ward.members["site-000"]
    foreign = RoundPlan(study=sha256_digest(b"other"), round=1, cohort=ward.names, adapter=ADAPTER)
    found = Kit.decode(kit, members=4)
    trials = [
        (foreign, kit, "secagg-plan-foreign"),
        (ward.plan(2), kit, "secagg-round-unknown"),
        (ward.plan(1), replace(found, round=2).encode(), "secagg-plan-foreign"),
        (ward.plan(1), replace(found, roster=found.roster[1:]).encode(), "secagg-plan-foreign"),
        (ward.plan(1), replace(found, parcels=found.parcels[1:]).encode(), "secagg-plan-foreign"),
        (ward.plan(1), replace(found, roster=found.roster[:2]).encode(), "secagg-cohort-too-small"),
    ]
    for plan, hostile, expected in trials:
        with pytest.raises(WardroundError) as info:
            member.mask(plan, hostile, values)
        assert code(info) == expected
    member.mask(ward.plan(1), kit, values)


def test_a_lost_upload_is_not_masked_again_for_another_cohort() -> None:
    """The attack that breaks retrying protocols: keep the "lost" upload, get one without a member, subtract."""
    ward = Ward(n=5)
    parcels = ward.parcel_book(ward.key_book(1))
    member, values = ward.members["site-000"], ward.updates()["site-000"]
    first = member.mask(ward.plan(1), parcels.kit("site-000"), values)
    again = ward.restart("site-000").mask(ward.plan(1), parcels.kit("site-000"), values)
    assert (again.header, again.vector.tobytes()) == (first.header, first.vector.tobytes())
    found = Kit.decode(parcels.kit("site-000"), members=5)
    smaller = Kit(round=1, roster=found.roster[:-1], parcels=found.parcels[:-1]).encode()
    other_adapter = ward.plan(1, BlobRef(digest=sha256_digest(b"suppressing"), length=7))
    for plan, kit in ((ward.plan(1), smaller), (other_adapter, parcels.kit("site-000"))):
        with pytest.raises(VerificationError) as info:
            ward.restart("site-000").mask(plan, kit, values)
        assert code(info) == "secagg-round-pinned"


def test_another_update_is_never_masked_with_the_same_masks() -> None:
    ward = Ward(n=3)
    parcels = ward.parcel_book(ward.key_book(1))
    updates = ward.updates()
    ward.members["site-000"].mask(ward.plan(1), parcels.kit("site-000"), updates["site-000"])
    with pytest.raises(VerificationError) as info:
        ward.members["site-000"].mask(ward.plan(1), parcels.kit("site-000"), updates["site-001"])
    assert code(info) == "secagg-round-pinned"


def test_different_models_to_different_members_open_nothing(tmp_path: Path) -> None:
    """Review correction (ii): a gradient-suppressing adapter for all others would leave the victim alone in the sum."""
    ward = Ward(n=3)
    parcels = ward.parcel_book(ward.key_book(1))
    updates, suppressing = ward.updates(), ward.plan(1, BlobRef(digest=sha256_digest(b"suppressing"), length=7))
    plans = {"site-000": ward.plan(1), "site-001": suppressing, "site-002": suppressing}
    masked = {s: ward.members[s].mask(plan, parcels.kit(s), updates[s]) for s, plan in plans.items()}
    with pytest.raises(VerificationError) as info:
        ward.collect(parcels, masked, tmp_path)
    assert code(info) == "secagg-header-invalid"
    for plan in (ward.plan(1), suppressing):  # whatever the server tells them, headers of the other group do not verify
        hostile = Collection(rules=ward.rules, plan=plan, parcels=parcels)
        for site, update in masked.items():
            hostile._receipts[ward.rules.index(site)] = forced_receipt(ward, site, update.header)
        request = hostile.request(ward.sign(hostile.survivor_set()))
        for member in ward.members.values():
            with pytest.raises(VerificationError) as info:
                member.open(request)
            assert code(info) == "secagg-survivors-invalid"


def forced_receipt(ward: Ward, site: str, header: Envelope) -> object:
    return _receipt(ward.rules.index(site), MaskedHeader.from_bytes(header.payload_bytes()), header)


# -- vectors


@pytest.mark.parametrize("change", [lambda b: b[:-4], lambda b: b + bytes(4), lambda b: bytes([b[0] ^ 1]) + b[1:]])
def test_a_spoilt_vector_is_excluded_and_changes_nothing(change: object, tmp_path: Path) -> None:
    ward = Ward(n=3)
    parcels = ward.parcel_book(ward.key_book(1))
    masked = ward.mask(parcels, ward.updates())["site-000"]
    collection, total = Collection(rules=ward.rules, plan=ward.plan(1), parcels=parcels), RunningSum(ward.rules)
    path = tmp_path / "upload"
    path.write_bytes(change(masked.vector.tobytes()))
    with pytest.raises(VerificationError) as info:
        total.add_file(path, collection.accept("site-000", masked.header))
    assert code(info) == "secagg-vector-invalid"
    assert not any(total.to_bytes())
    with pytest.raises(WardroundError) as info:
        total.add_file(tmp_path / "missing", collection.accept("site-000", masked.header))
    assert code(info) == "secagg-vector-unreadable"


@pytest.mark.parametrize("ring", ["u32", "u16"])
def test_the_largest_values_of_all_members_do_not_overflow(ring: str, tmp_path: Path) -> None:
    ward = Ward(n=7, changes={"ring": ring})
    bounds = np.repeat([s.bound for s in ward.rules.segments], [s.length for s in ward.rules.segments])
    for values in (bounds * 1e6, -bounds, np.full(bounds.size, 3e38)):
        ward = Ward(n=7, changes={"ring": ring})
        updates = dict.fromkeys(ward.names, values.astype(np.float32))
        total, _, _ = ward.run(1, updates, tmp_path)
        assert np.allclose(total.mean(survivors=7), np.clip(values, -bounds, bounds), rtol=1e-3)


# -- opening


def masked_ward(tmp_path: Path, **options: int) -> tuple[Ward, Collection, RunningSum, dict[str, np.ndarray]]:
    ward = Ward(**{"n": 5, **options})
    updates = ward.updates()
    parcels = ward.parcel_book(ward.key_book(1))
    collection, total = ward.collect(parcels, ward.mask(parcels, updates), tmp_path)
    return ward, collection, total, updates


def request_for(
    ward: Ward, collection: Collection, sites: tuple[int, ...], *, key: Ed25519PrivateKey | None = None
) -> tuple[bytes, SurvivorSet]:
    receipts = tuple(receipt for receipt in collection.receipts if receipt.index in sites)
    found = survivor_set(ward.rules, collection.context, receipts)
    envelope = sign_document(found.to_bytes(), SURVIVOR_SET_TYPE, key or ward.operator)
    return OpenRequest(round=1, survivors=envelope.to_bytes(), receipts=receipts).encode(), found


def test_both_kinds_of_share_cannot_be_asked_for(tmp_path: Path) -> None:
    """A set either names a member or does not; for a second set the member keeps both requests as evidence."""
    ward, collection, _, _ = masked_ward(tmp_path)
    first, _ = request_for(ward, collection, (0, 1, 2, 3, 4))
    second, _ = request_for(ward, collection, (0, 1, 2, 3))
    member = ward.members["site-000"]
    reply = member.open(first)
    with pytest.raises(Equivocation) as info:
        member.open(second)
    assert code(info) == "secagg-equivocation"
    assert [SurvivorSet.from_bytes(e.payload_bytes()).survivors for e in (info.value.first, info.value.second)] == [
        ward.names,
        ward.names[:4],
    ]
    assert member.open(first) == reply


def test_opening_twice_gives_the_same_bytes_or_nothing_also_after_a_restart(tmp_path: Path) -> None:
    ward, collection, _, _ = masked_ward(tmp_path)
    first, found = request_for(ward, collection, (0, 1, 2, 3, 4))
    second, _ = request_for(ward, collection, (0, 2, 3))
    reply = ward.members["site-000"].open(first)
    assert ward.restart("site-000").open(first) == reply
    assert ward.restart("site-000").survivors(1) == found
    with pytest.raises(Equivocation):
        ward.restart("site-000").open(second)
    ward.restart("site-000").forget(1)
    for request in (first, second):
        with pytest.raises(VerificationError) as info:
            ward.restart("site-000").open(request)
        assert code(info) == "secagg-round-unknown"


def test_only_two_sets_signed_by_the_operator_are_an_accusation(tmp_path: Path) -> None:
    ward, collection, _, _ = masked_ward(tmp_path)
    ward.members["site-000"].open(request_for(ward, collection, (0, 1, 2, 3, 4))[0])
    forged, _ = request_for(ward, collection, (0, 1, 2, 3), key=Ed25519PrivateKey.generate())
    with pytest.raises(VerificationError) as info:
        ward.members["site-000"].open(forged)
    assert code(info) == "secagg-survivors-invalid"
    assert not isinstance(info.value, Equivocation)


def test_a_survivor_set_by_another_key_is_refused(tmp_path: Path) -> None:
    ward, collection, _, _ = masked_ward(tmp_path)
    request, _ = request_for(ward, collection, (0, 1, 2, 3, 4), key=ward.keys["site-001"])
    with pytest.raises(VerificationError) as info:
        ward.members["site-000"].open(request)
    assert code(info) == "secagg-survivors-invalid"


@pytest.mark.parametrize("change", ["foreign signature", "vector", "own vector", "order", "without oneself", "outside"])
def test_a_survivor_set_whose_headers_do_not_hold_is_refused(change: str, tmp_path: Path) -> None:
    ward, collection, _, _ = masked_ward(tmp_path)
    r = collection.receipts
    receipts = {
        "foreign signature": (r[0], replace(r[1], signature=r[2].signature), *r[2:]),
        "vector": (r[0], replace(r[1], vector=bytes(32)), *r[2:]),
        "own vector": (replace(r[0], vector=bytes(32)), *r[1:]),
        "order": r,
        "without oneself": r[1:],
        "outside": r[:3],
    }[change]
    found = survivor_set(ward.rules, collection.context, receipts)
    if change == "order":
        found = found.model_copy(update={"survivors": found.survivors[::-1]})
    if change == "outside":
        found = found.model_copy(update={"survivors": (*found.survivors[:2], "site-009")})
    request = OpenRequest(round=1, survivors=ward.sign(found).to_bytes(), receipts=receipts).encode()
    with pytest.raises(VerificationError) as info:
        ward.members["site-000"].open(request)
    assert code(info) == "secagg-survivors-invalid"
    assert ward.members["site-000"].survivors(1) is None


def test_members_outside_the_roster_cannot_survive(tmp_path: Path) -> None:
    ward = Ward(n=5)
    parcels = ward.parcel_book(ward.key_book(1), ward.names[:4])
    collection, _ = ward.collect(parcels, ward.mask(parcels, ward.updates()), tmp_path)
    receipts = (*collection.receipts, replace(collection.receipts[0], index=4))
    found = survivor_set(ward.rules, collection.context, receipts)
    request = OpenRequest(round=1, survivors=ward.sign(found).to_bytes(), receipts=receipts).encode()
    with pytest.raises(VerificationError) as info:
        ward.members["site-000"].open(request)
    assert code(info) == "secagg-survivors-invalid"


def test_a_cohort_below_the_minimum_is_refused(tmp_path: Path) -> None:
    ward, collection, _, _ = masked_ward(tmp_path, min_cohort=4)
    request, _ = request_for(ward, collection, (0, 1, 2))
    with pytest.raises(VerificationError) as info:
        ward.members["site-000"].open(request)
    assert code(info) == "secagg-cohort-too-small"


def test_an_honest_server_refuses_too_small_a_cohort_itself(tmp_path: Path) -> None:
    ward = Ward(n=5, min_cohort=4)
    keys = ward.key_book(1)
    with pytest.raises(VerificationError) as info:
        ward.parcel_book(keys, ward.names[:3]).kit("site-000")
    assert code(info) == "secagg-cohort-too-small"
    ward = Ward(n=5, min_cohort=4)
    parcels = ward.parcel_book(ward.key_book(1))
    collection, _ = ward.collect(parcels, ward.mask(parcels, ward.updates(), ward.names[:3]), tmp_path)
    with pytest.raises(VerificationError) as info:
        collection.survivor_set()
    assert code(info) == "secagg-cohort-too-small"
    with pytest.raises(VerificationError) as info:
        Ward(n=5, threshold=4).members["site-000"].share(1, Ward(n=5).key_book(1, ("site-000",)).list_for("site-000"))
    assert code(info) == "secagg-round-unknown"


def test_sharing_with_too_few_is_refused() -> None:
    ward = Ward(n=5)
    book = ward.key_book(1, ward.names[:2])
    with pytest.raises(VerificationError) as info:
        ward.members["site-000"].share(1, book.list_for("site-000"))
    assert code(info) == "secagg-cohort-too-small"


# -- different sets to different members


def usable(ward: Ward, collection: Collection, replies: dict[str, bytes], found: SurvivorSet) -> dict[int, set[int]]:
    """Return {owner: holders whose share the server could read} with everything that it got for one set."""
    opened = {ward.rules.index(s): Opening.decode(reply, members=ward.n) for s, reply in replies.items()}
    same = {index: o for index, o in opened.items() if o.survivors == derive.digest(found)}
    boxes = open_boxes(
        ward.rules, same, derive.digest(found), collection.parcels.beacon, lambda _: collection.parcels.roster
    )
    return {owner: set(shares) for owner, shares in boxes.items()}


def test_one_drop_and_a_split_view_at_the_threshold_open_nothing(tmp_path: Path) -> None:
    """n = 9, c = 2, t = 6: one member is away, half of the others hear of another set. Nothing the server got opens."""
    ward = Ward(n=9, colluders=2, threshold=6, min_cohort=6)
    updates = ward.updates()
    parcels = ward.parcel_book(ward.key_book(1))
    collection, _ = ward.collect(parcels, ward.mask(parcels, updates, ward.names[:8]), tmp_path)
    views = {}
    with_victim, a = request_for(ward, collection, tuple(range(8)))
    without_victim, b = request_for(ward, collection, tuple(range(1, 8)))
    for site in ("site-000", "site-001", "site-002", "site-003"):
        views[site] = ward.members[site].open(with_victim)
    for site in ("site-004", "site-005", "site-006", "site-007"):
        views[site] = ward.members[site].open(without_victim)
    assert usable(ward, collection, views, a) == {}
    assert usable(ward, collection, views, b) == {}
    openings = Openings(collection=collection, survivors=a)
    for site in list(views)[:4]:
        openings.add(site, views[site])
    assert not openings.enough
    with pytest.raises(VerificationError) as info:
        openings.masks()
    assert code(info) == "secagg-openings-missing"


def test_sets_cannot_be_mixed_to_strip_the_sum_to_two_members(tmp_path: Path) -> None:
    """n = 9, c = 0, t = 5. By counting shares alone, overlapping sets would open seven roots and two self seeds.

    Every member hears of another set of five. Were openings not sealed to their set, the server would hold five
    shares of each root that it needs; so first the count, then that none of them can be read.
    """
    ward = Ward(n=9)
    assert ward.rules.threshold == 5
    parcels = ward.parcel_book(ward.key_book(1))
    collection, _ = ward.collect(parcels, ward.mask(parcels, ward.updates()), tmp_path)
    victims, sets = (0, 1), mixed_sets()
    roots = {w: sum(w not in view for view in sets.values()) for w in range(9) if w not in victims}
    assert min(roots.values()) >= 5
    assert min(sum(v in view for view in sets.values()) for v in victims) >= 5
    replies, found = {}, {}
    for index, view in sets.items():
        request, found[index] = request_for(ward, collection, tuple(sorted(view)))
        replies[ward.names[index]] = ward.members[ward.names[index]].open(request)
    assert all(usable(ward, collection, replies, each) == {} for each in found.values())


def mixed_sets() -> dict[int, set[int]]:
    """Return a set of five for each of nine members, itself included, that leaves out all but 0 and 1 five times."""
    gone = {index: {2 + (index - 2 + step) % 7 for step in (1, 2, 3, 4)} for index in range(2, 9)}
    gone |= {0: {2, 3, 4, 5}, 1: {5, 6, 7, 8}}
    return {index: set(range(9)) - left_out for index, left_out in gone.items()}


def test_a_dropped_member_s_shares_are_of_its_root_and_a_survivor_s_of_its_seed(tmp_path: Path) -> None:
    ward = Ward(n=5)
    parcels = ward.parcel_book(ward.key_book(1))
    collection, _ = ward.collect(parcels, ward.mask(parcels, ward.updates(), ward.names[:4]), tmp_path)
    openings = ward.open(collection)
    boxes = open_boxes(ward.rules, openings._openings, openings._digest, parcels.beacon, lambda _: parcels.roster)
    for owner, shares in boxes.items():
        file = StateFile(ward.stores[ward.names[owner]], STUDY)
        secrets = file.open_round(file.load(), 1)
        points = {i + 1: np.frombuffer(s, np.uint8) for i, s in list(shares.items())[: ward.rules.threshold]}
        assert shamir.combine(points).tobytes() == (secrets.root if owner == 4 else secrets.self_seed)


# -- members that lie


def reshare(ward: Ward, liar: str, book: KeyBook, change: str) -> bytes:
    """Return parcels of a liar that shared something else than it masks with."""
    file = StateFile(ward.stores[liar], STUDY)
    state = file.load()
    secrets = file.open_round(state, 1)
    lie = {"self seed": {"self_seed": bytes(32)}, "root": {"root": bytes(32)}}[change]
    file.save(file.with_round(state, secrets.model_copy(update=lie)))
    parcels = ward.members[liar].share(1, book.list_for(liar))
    after = file.load()
    shared = file.open_round(after, 1)
    truth = {name: getattr(secrets, name) for name in lie}
    file.save(file.with_round(after, shared.model_copy(update=truth)))
    return parcels


@pytest.mark.parametrize(("change", "drops"), [("self seed", False), ("root", True)])
def test_a_member_that_shared_another_secret_fails_the_round_unnamed(change: str, drops: bool, tmp_path: Path) -> None:
    ward = Ward(n=5)
    book, liar = ward.key_book(1), "site-004"
    parcels = ParcelBook(rules=ward.rules, keys=book)
    for name in ward.names:
        parcels.add(
            name,
            reshare(ward, name, book, change) if name == liar else ward.members[name].share(1, book.list_for(name)),
        )
    survivors = ward.names[:4] if drops else ward.names
    collection, _ = ward.collect(parcels, ward.mask(parcels, ward.updates(), survivors), tmp_path)
    with pytest.raises(VerificationError) as info:
        ward.open(collection).masks()
    assert code(info) == "secagg-shares-inconsistent"
    assert "cannot be told" in str(info.value)
    assert liar not in str(info.value)


def test_a_member_that_masks_with_other_seeds_garbles_the_sum(tmp_path: Path) -> None:
    ward, liar = Ward(n=5), "site-002"
    parcels = ward.parcel_book(ward.key_book(1))
    masked = ward.mask(parcels, ward.updates())
    update = masked[liar]
    garbage = update.vector + np.uint32(12345)
    header = MaskedHeader.from_bytes(update.header.payload_bytes())
    blob = BlobRef(digest="sha256:" + hashlib.sha256(garbage.tobytes()).hexdigest(), length=garbage.nbytes)
    lie = sign_document(header.model_copy(update={"vector": blob}).to_bytes(), MASKED_HEADER_TYPE, ward.keys[liar])
    masked[liar] = replace(update, header=lie, vector=garbage)
    collection, total = ward.collect(parcels, masked, tmp_path)
    openings = ward.open(collection, [s for s in ward.names if s != liar])
    total.remove(openings.masks())
    with pytest.raises(VerificationError) as info:
        total.mean(survivors=5)
    assert code(info) == "secagg-sum-garbled"


def test_a_value_beyond_the_bounds_is_out_of_range() -> None:
    ward = Ward(n=3)
    point = ward.fixed
    total = np.zeros(ward.rules.length, np.uint32)
    for update in ward.updates().values():
        total += point.encode(update)
    total[5] = 2**31 - 1
    with pytest.raises(VerificationError) as info:
        point.mean(total, survivors=3)
    assert code(info) == "secagg-sum-out-of-range"
    total[5] = 2**31  # the most negative number has no positive counterpart
    with pytest.raises(VerificationError) as info:
        point.mean(total, survivors=3)
    assert code(info) == "secagg-sum-out-of-range"


@pytest.mark.parametrize("change", ["signature", "set", "missing pad", "sender"])
def test_an_opening_that_does_not_hold_is_not_used(change: str, tmp_path: Path) -> None:
    ward, collection, _, _ = masked_ward(tmp_path)
    request, found = request_for(ward, collection, (0, 1, 2, 3, 4))
    honest = Opening.decode(ward.members["site-000"].open(request), members=5)
    bad = {
        "signature": replace(honest, signature=bytes(64)),
        "set": replace(honest, survivors=bytes(32)),
        "missing pad": replace(honest, pads=honest.pads[1:]),
        "sender": replace(honest, sender=1),
    }[change]
    if change in ("set", "missing pad"):
        bad = replace(bad, signature=signature_of(opening_seal(ward.rules, bad), ward.keys["site-000"]))
    with pytest.raises(VerificationError) as info:
        Openings(collection=collection, survivors=found).add("site-000", bad.encode())
    assert code(info) == "secagg-reply-invalid"


def test_a_context_names_study_round_plan_model_roster_and_ring() -> None:
    """Review correction (ii), for the key derivation of the masks."""
    ward = Ward(n=3)
    parcels = ward.parcel_book(ward.key_book(1))
    context = Collection(rules=ward.rules, plan=ward.plan(1), parcels=parcels).context
    assert set(RoundContext.model_fields) == {"format", "study", "round", "plan", "adapter", "roster", "ring", "length"}
    assert (context.study, context.adapter, context.roster) == (STUDY, ADAPTER.digest, ward.names)
    seed = bytes(32)
    for change in ({"round": 2}, {"adapter": STUDY}, {"plan": STUDY}, {"roster": ward.names[:2]}, {"ring": "u16"}):
        other = context.model_copy(update=change)
        assert derive.derive(seed, "pair", derive.digest(other)) != derive.derive(seed, "pair", derive.digest(context))


def test_parcels_documents_are_not_interchangeable() -> None:
    """A signature over one kind of document never counts for another."""
    ward = Ward(n=3)
    parcels = Parcels(study=STUDY, round=1, site="site-000", keys=STUDY, body=STUDY)
    signature = signature_of(parcels, ward.keys["site-000"])
    with pytest.raises(VerificationError):
        require_signature(
            OpeningSeal(study=STUDY, round=1, site="site-000", survivors=STUDY, body=STUDY),
            ward.rules.identities[0],
            signature,
        )
