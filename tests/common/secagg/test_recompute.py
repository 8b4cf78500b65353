"""A round computed again from what was kept: by a restarted server, or by a reviewer."""

from dataclasses import replace
from pathlib import Path

import pytest
from peers.masked import Ward

from wardround_common.errors import WardroundError
from wardround_common.secagg.documents import SurvivorSet
from wardround_common.secagg.recompute import Kept, collected, opened_mean


def kept_round(ward: Ward, folder: Path) -> Kept:
    """Run a round with one member lost, keeping everything."""
    keys = ward.key_book(1)
    parcels = ward.parcel_book(keys)
    masked = ward.mask(parcels, ward.updates(), ward.names[:4])
    collection, _ = ward.collect(parcels, masked, folder)
    signed = ward.sign(collection.survivor_set())
    request = collection.request(signed)
    return Kept(
        offers={name: member.offer(1) for name, member in ward.members.items()},
        parcels={name: ward.stores[name].items["secagg-sent-1"] for name in ward.names},
        headers={name: update.header for name, update in masked.items()},
        vectors={name: folder / name for name in masked},
        survivors=signed,
        openings={name: ward.members[name].open(request) for name in ward.names[:3]},
    )


def test_the_mean_is_the_same_for_whoever_computes_it(tmp_path: Path) -> None:
    ward = Ward(n=5)
    kept = kept_round(ward, tmp_path)
    mean = opened_mean(ward.rules, ward.plan(1), kept)
    collection, total = collected(ward.rules, ward.plan(1), kept)
    assert [ward.names[i] for i in collection.survivors] == list(ward.names[:4])
    updates = ward.updates()
    plain = ward.expected(updates, ward.names[:4])
    assert mean.tobytes() == ward.fixed.mean(plain, survivors=4).tobytes()
    assert total.to_bytes() != plain.tobytes()  # still masked


@pytest.mark.parametrize("what", ["header", "vector", "set", "openings", "operator"])
def test_what_was_kept_is_believed_in_nothing(what: str, tmp_path: Path) -> None:
    ward = Ward(n=5)
    kept = kept_round(ward, tmp_path)
    first, second = ward.names[:2]
    spoilt = {
        "header": lambda: replace(kept, headers={n: h for n, h in kept.headers.items() if n != first}),
        "vector": lambda: replace(kept, vectors={**kept.vectors, first: kept.vectors[second]}),
        "set": lambda: replace(kept, survivors=ward.sign(smaller(ward, kept))),
        "openings": lambda: replace(kept, openings=dict(list(kept.openings.items())[:2])),
        "operator": lambda: replace(kept, survivors=Ward(n=5).sign(smaller(ward, kept))),
    }[what]()
    with pytest.raises(WardroundError) as info:
        opened_mean(ward.rules, ward.plan(1), spoilt)
    expected = {"vector": "secagg-vector-invalid", "openings": "secagg-openings-missing"}
    assert info.value.code == expected.get(what, "secagg-survivors-invalid")


def smaller(ward: Ward, kept: Kept) -> SurvivorSet:
    found = SurvivorSet.from_bytes(kept.survivors.payload_bytes())
    return found.model_copy(update={"survivors": found.survivors[:3]})
