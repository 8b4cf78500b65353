"""Keeps the round that is being trained in the vault, so that a killed daemon loses a minute and not hours.

Rules.
- At most once in `PARK_EVERY_S`, between two steps, and so seldom that it takes at most `LARGEST_SHARE` of the time,
  however large adapter and data are; the file is destroyed with the round's seed.
- A round that cannot be parked (disk full) trains on, and one whose parked state does not open starts again from its
  seed: parking saves time and decides nothing.
Not done here: what is parked (`training.parking`).

    >>> VaultParking(vault, "0123456789abcdef-step-3").found()  # doctest: +SKIP
"""

import time
from collections.abc import Callable

from wardround_client.vault import Vault
from wardround_common.errors import StorageError
from wardround_common.logging import get_logger

PARK_EVERY_S = 60.0
"""A minute is little to lose."""

LARGEST_SHARE = 0.05
"""Parking seals the adapter three times over (values and Adam's moments)."""

log = get_logger("client.parking")


class VaultParking:
    """Parks one round in a vault (`training.parking.Parking`).

    Args:
        vault: where it is sealed.
        name: the round's name in it.
        clock: monotonic, in seconds.
    """

    def __init__(self, vault: Vault, name: str, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._vault, self._name, self._clock = vault, name, clock
        self._next = clock() + PARK_EVERY_S

    def __repr__(self) -> str:
        return f"VaultParking({self._name!r})"

    def found(self) -> bytes | None:
        """Return what was parked, or None if there is nothing that opens."""
        if not self._vault.holds(self._name):
            return None
        try:
            return self._vault.open(self._name)
        except StorageError as error:
            log.warning("the parked round does not open; it starts again from its seed", code=error.code)
            return None

    def keep(self, parked: Callable[[], bytes]) -> None:
        """Seal what `parked` returns if the last time is long enough ago."""
        began = self._clock()
        if began < self._next:
            return
        try:
            self._vault.seal(self._name, parked())
        except StorageError as error:
            log.warning("the round cannot be parked; training goes on", code=error.code, why=error.message)
        ended = self._clock()
        self._next = ended + max(PARK_EVERY_S, (ended - began) / LARGEST_SHARE)
