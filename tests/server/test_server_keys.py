"""The server's own certificate is issued anew in good time, also while the server runs."""

import time
from pathlib import Path

import pytest

from wardround_common.identity.address import Address
from wardround_common.identity.authority import certificate_digest
from wardround_server.keys import RENEW_BEFORE_DAYS, ServerKeys

ADDRESS = Address(host="ward.example.org", port=8443)
DAY = 86_400.0
NOW = time.time()


@pytest.fixture
def keys(tmp_path: Path) -> ServerKeys:
    return ServerKeys.create(tmp_path, name="operator", address=ADDRESS, now=NOW, days=365)


@pytest.mark.parametrize(("days", "left", "renewed"), [(365, RENEW_BEFORE_DAYS + 1, False), (365, 29, True)])
def test_a_years_certificate_is_renewed_in_its_last_month(
    keys: ServerKeys, tmp_path: Path, days: float, left: float, renewed: bool
) -> None:
    after = keys.renewed(tmp_path, address=ADDRESS, now=NOW + (365 - left) * DAY, days=days)
    assert (certificate_digest(after.certificate) != certificate_digest(keys.certificate)) == renewed
    assert certificate_digest(ServerKeys.load(tmp_path).certificate) == certificate_digest(after.certificate)


@pytest.mark.parametrize(("passed", "renewed"), [(0.6, False), (0.7, True)])
def test_a_short_one_in_its_last_third(tmp_path: Path, passed: float, renewed: bool) -> None:
    keys = ServerKeys.create(tmp_path, name="operator", address=ADDRESS, now=NOW, days=1)
    after = keys.renewed(tmp_path, address=ADDRESS, now=NOW + passed * DAY, days=1)
    assert (after is not keys) == renewed


def test_a_server_that_moves_gets_a_certificate_for_its_new_address(keys: ServerKeys, tmp_path: Path) -> None:
    moved = keys.renewed(tmp_path, address=Address(host="new.example.org", port=1), now=NOW, days=365)
    assert moved is not keys
    assert moved.authority.digest == keys.authority.digest, "hospitals need no new pin"
