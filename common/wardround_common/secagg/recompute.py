"""The sum of a round from what was kept of it: for the server after a restart, and for a reviewer (`keep_vectors`).

Rules (docs/spec/secagg.md, rule 23). Everything is verified again from the study's keys alone; the operator is
believed in nothing but its own signature over the survivor set.

    >>> opened_mean(rules, plan, kept)
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from wardround_common.rounds import RoundPlan
from wardround_common.secagg.coordinator import Collection, KeyBook, Openings, ParcelBook
from wardround_common.secagg.errors import survivors_invalid
from wardround_common.secagg.rules import Rules
from wardround_common.secagg.sums import RunningSum
from wardround_common.secagg.survivors import open_signed
from wardround_common.signing import Envelope


@dataclass(frozen=True, kw_only=True)
class Kept:
    """What a server keeps of one round, by site: frames as they came, headers, files with masked vectors."""

    offers: Mapping[str, bytes]
    parcels: Mapping[str, bytes]
    headers: Mapping[str, Envelope]
    vectors: Mapping[str, Path]
    survivors: Envelope
    openings: Mapping[str, bytes]


def collected(rules: Rules, plan: RoundPlan, kept: Kept) -> tuple[Collection, RunningSum]:
    """Return the headers and the masked sum of exactly the survivors in the signed set.

    Raises:
        VerificationError: something that was kept does not hold, or is not what the set names.
        StorageError: a vector cannot be read.
    """
    found, _ = open_signed(rules, kept.survivors.to_bytes())
    keys = KeyBook(rules=rules, round=plan.round)
    for site, offer in kept.offers.items():
        keys.add(site, offer)
    parcels = ParcelBook(rules=rules, keys=keys)
    for site, frame in kept.parcels.items():
        parcels.add(site, frame)
    collection, total = Collection(rules=rules, plan=plan, parcels=parcels), RunningSum(rules)
    for site in found.survivors:
        if site not in kept.headers or site not in kept.vectors:
            raise survivors_invalid(f"what {site} sent was not kept")
        total.add_file(kept.vectors[site], collection.accept(site, kept.headers[site]))
        collection.keep(site, kept.headers[site])
    if collection.survivor_set() != found:
        raise survivors_invalid("it does not name the headers that were kept")
    return collection, total


def opened_mean(rules: Rules, plan: RoundPlan, kept: Kept) -> NDArray[np.float32]:
    """Return the mean of the survivors' updates, [parameters] float32.

    Raises:
        VerificationError: something that was kept does not hold, or too little was kept.
        StorageError: a vector cannot be read.
    """
    collection, total = collected(rules, plan, kept)
    openings = Openings(collection=collection, survivors=collection.survivor_set())
    for site, frame in kept.openings.items():
        openings.add(site, frame)
    total.remove(openings.masks())
    return total.mean(survivors=len(collection.survivors))
