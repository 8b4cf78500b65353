"""Where a round is parked: how often, sealed, and never in the way of training."""

from peers.roundbench import RoundBench as Bench

from wardround_client.parking import PARK_EVERY_S, VaultParking
from wardround_client.rounds import vault_name
from wardround_client.vault import Vault
from wardround_common.errors import StorageError


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def test_once_a_minute_sealed_and_found_again(tmp_path):
    vault, clock = Vault(tmp_path / "sealed", tmp_path / "local.key"), Clock()
    parking = VaultParking(vault, "study-step-1", clock=clock)
    assert parking.found() is None
    asked = []

    def parked():
        asked.append(clock.now)
        return b"state at %d" % clock.now

    for second in range(0, 200, 5):
        clock.now = float(second)
        parking.keep(parked)
    assert asked == [PARK_EVERY_S, 2 * PARK_EVERY_S, 3 * PARK_EVERY_S]
    assert VaultParking(vault, "study-step-1").found() == b"state at 180"
    assert b"state" not in (tmp_path / "sealed" / "study-step-1").read_bytes()


def test_what_takes_long_is_parked_less_often(tmp_path):
    vault, clock = Vault(tmp_path / "sealed", tmp_path / "local.key"), Clock()
    parking = VaultParking(vault, "study-step-1", clock=clock)
    began = []

    def slow():
        began.append(clock.now)
        clock.now += 30.0
        return b"state"

    for _ in range(2_000):
        clock.now += 1.0
        parking.keep(slow)
    assert began == [60.0, 690.0, 1320.0, 1950.0], "30 s in every 630"


def test_a_full_disk_and_a_damaged_file_stop_no_training(tmp_path, monkeypatch):
    vault, clock = Vault(tmp_path / "sealed", tmp_path / "local.key"), Clock()
    parking = VaultParking(vault, "study-step-1", clock=clock)
    clock.now = 100.0
    parking.keep(lambda: b"state")
    (tmp_path / "sealed" / "study-step-1").write_bytes(b"damaged")
    assert parking.found() is None

    tried = []

    def full(*_):
        tried.append(clock.now)
        raise StorageError("file-not-written", "no space left on device", next_step="free some")

    monkeypatch.setattr(vault, "seal", full)
    clock.now = 200.0
    parking.keep(lambda: b"state")
    assert tried == [200.0]


def test_what_was_parked_goes_with_the_seed(tmp_path):
    bench = Bench(tmp_path)
    vault = Vault(bench.home / "sealed", bench.home / "keys" / "local.key")
    name = vault_name(bench.study.sha256(), "step", 1)

    def train(*given):
        (bench.home / "sealed" / name).write_bytes(b"parked")
        return bench.train(*given)

    bench.answer(bench.plan(1), train)
    assert bench.sealed_names() == ["adam-1"]
    assert not vault.holds(name)
