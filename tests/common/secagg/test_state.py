"""A member's state: a crash at any write leads to the same messages, secrets end with their key, nothing shows them."""

from pathlib import Path

import pytest
from peers.masked import Crash, Ward

from wardround_common.documents import sha256_digest
from wardround_common.errors import StorageError, VerificationError
from wardround_common.secagg.member import Member
from wardround_common.secagg.state import MAX_OPEN_ROUNDS, MemberState, RoundSecrets, StateFile


def names_of(ward: Ward, site: str) -> set[str]:
    return set(ward.stores[site].items)


@pytest.mark.parametrize("writes", range(8))
def test_a_crash_at_any_write_and_a_restart_give_a_correct_sum(writes: int, tmp_path: Path) -> None:
    """One member dies at its n-th write, restarts and is asked again, as the server does after a reconnect."""
    ward, site = Ward(n=3), "site-001"
    updates = ward.updates()
    ward.stores[site].crash_after = writes

    def insist(call: str, *arguments: object) -> object:
        try:
            return getattr(ward.members[site], call)(*arguments)
        except Crash:
            ward.stores[site].crash_after = None
            return getattr(ward.restart(site), call)(*arguments)

    real = ward.members[site]
    proxy = type(
        "Insisting", (), {c: (lambda self, *a, c=c: insist(c, *a)) for c in ("offer", "share", "mask", "open")}
    )()
    ward.members[site] = real
    book = ward.key_book(1, ["site-000", "site-002"])
    book.add(site, proxy.offer(1))
    parcels = ward.parcel_book(book, ["site-000", "site-002"])
    parcels.add(site, proxy.share(1, book.list_for(site)))
    masked = ward.mask(parcels, updates, ["site-000", "site-002"])
    masked[site] = proxy.mask(ward.plan(1), parcels.kit(site), updates[site])
    collection, total = ward.collect(parcels, masked, tmp_path)
    openings = ward.open(collection, ["site-000", "site-002"])
    openings.add(site, proxy.open(collection.request(ward.sign(collection.survivor_set()))))
    total.remove(openings.masks())
    assert total.to_bytes() == ward.expected(updates, ward.names).tobytes()


@pytest.mark.parametrize("writes", [0, 1])
def test_forgetting_destroys_the_key_and_then_everything_of_the_round(writes: int, tmp_path: Path) -> None:
    """Dying before the first write changes nothing; dying before the second leaves sealed bytes without a key."""
    ward, site = Ward(n=3), "site-000"
    ward.run(1, ward.updates(), tmp_path)
    ward.members[site].offer(2)
    ward.stores[site].crash_after = writes
    with pytest.raises(Crash):
        ward.members[site].forget(1)
    ward.stores[site].crash_after = None
    assert ("secagg-key-1" in names_of(ward, site)) == (writes == 0)
    assert (ward.restart(site).survivors(1) is not None) == (writes == 0)
    ward.restart(site).forget(1)
    assert names_of(ward, site) == {"secagg-state", "secagg-key-2"}
    assert [e.round for e in StateFile(ward.stores[site], ward.rules.study).load().rounds] == [2]
    with pytest.raises(VerificationError) as over:
        ward.restart(site).offer(1)
    assert over.value.code == "secagg-round-unknown"


def test_a_state_from_a_backup_is_refused_as_a_whole(tmp_path: Path) -> None:
    """Backups leave round keys out. Going on from an old chain would seal two messages under one key."""
    ward, site = Ward(n=4), "site-000"
    backup = None
    _, before, _ = ward.run(1, ward.updates(), tmp_path)
    ward.members[site].offer(2)
    backup = {name: data for name, data in ward.stores[site].items.items() if "-key-" not in name}
    ward.stores[site].items = dict(backup)
    for call in (lambda m: m.offer(2), lambda m: m.offer(3), lambda m: m.survivors(1)):
        with pytest.raises(StorageError) as info:
            call(ward.restart(site))
        assert info.value.code == "secagg-state-damaged"
    ward.stores[site].items = {}  # what the message tells a person to do
    ward.restart(site)
    total, _, found = ward.run(2, ward.updates(2), tmp_path, before=before)
    assert found.survivors == ward.names
    assert total.to_bytes() == ward.expected(ward.updates(2), ward.names).tobytes()


def test_too_many_open_rounds_are_refused() -> None:
    member = Ward(n=3).members["site-000"]
    for round_ in range(1, MAX_OPEN_ROUNDS + 1):
        member.offer(round_)
    with pytest.raises(VerificationError) as info:
        member.offer(MAX_OPEN_ROUNDS + 1)
    assert info.value.code == "secagg-round-pinned"


@pytest.mark.parametrize("damage", [b"", b"{}", b"\xff", None])
def test_damaged_state_is_said_so(damage: bytes | None) -> None:
    ward, site = Ward(n=3), "site-000"
    ward.members[site].offer(1)
    store = ward.stores[site]
    if damage is None:
        store.items["secagg-key-1"] = bytes(32)
    else:
        store.items["secagg-state"] = damage
    with pytest.raises(StorageError) as info:
        ward.restart(site).offer(1)
    assert info.value.code == "secagg-state-damaged"


def test_another_study_s_state_and_lost_parcels_are_said_so() -> None:
    ward, site = Ward(n=3), "site-000"
    book = ward.key_book(1)
    ward.members[site].share(1, book.list_for(site))
    ward.stores[site].destroy("secagg-sent-1")
    with pytest.raises(StorageError):
        ward.members[site].share(1, book.list_for(site))
    with pytest.raises(StorageError):
        StateFile(ward.stores[site], sha256_digest(b"other")).load()


def test_a_name_outside_the_study_is_misuse() -> None:
    ward = Ward(n=3)
    with pytest.raises(ValueError, match="no such member"):
        Member(rules=ward.rules, site="elsewhere", key=ward.operator, store=ward.stores["site-000"])


def test_no_secret_is_in_a_repr(tmp_path: Path) -> None:
    ward, site = Ward(n=3), "site-000"
    ward.run(1, ward.updates(), tmp_path)
    file = StateFile(ward.stores[site], ward.rules.study)
    state = file.load()
    secrets = file.open_round(state, 1)
    shown = " ".join(map(repr, (ward.members[site], file, state, *state.chains, secrets, *secrets.peers))) + str(
        secrets
    )
    for holder in (secrets, *secrets.peers, *state.chains, state):
        for value in (v for v in vars(holder).values() if isinstance(v, bytes) and v):
            assert repr(value)[2:10] not in shown
    assert repr(secrets) == "RoundSecrets(…)"
    assert repr(MemberState(study=ward.rules.study, carrier=bytes(32))) == "MemberState(…)"
    assert isinstance(secrets, RoundSecrets)
