"""The keystream: golden bytes, statistics, no secrets in a repr."""

import ast
import inspect
import re
from pathlib import Path

import numpy as np
import pytest

from wardround_client import cli
from wardround_client.openstudy import Training, torch_trainer
from wardround_client.randomness import BLOCK, KeystreamRandomness, new_round_seed


def test_stream_is_aes_256_ctr():
    # AES-256 of the zero block under the zero key: NIST AESAVS, KAT "VarTxt/GFSbox" family.
    assert KeystreamRandomness(bytes(32)).bytes(16).hex() == "dc95c078a2408989ad48a21492842087"


def test_calls_go_on_where_the_last_one_stopped():
    one, two = KeystreamRandomness(b"a" * 32), KeystreamRandomness(b"a" * 32)
    assert one.bytes(5) + one.bytes(11) == two.bytes(16)
    assert np.array_equal(one.uniform(7), two.uniform(7))
    assert np.array_equal(one.normal(9), two.normal(9))
    assert not np.array_equal(one.normal(9), KeystreamRandomness(b"b" * 32).normal(9))


def test_uniform():
    values = KeystreamRandomness(b"u" * 32).uniform(200_000)
    assert values.min() >= 0.0
    assert values.max() < 1.0
    assert values.mean() == pytest.approx(0.5, abs=4 / np.sqrt(12 * 200_000))
    assert np.histogram(values, 20, (0, 1))[0].std() < 4 * np.sqrt(10_000)
    assert np.array_equal(values * 2**53, np.round(values * 2**53))


def test_normal():
    n = 400_000
    values = KeystreamRandomness(b"n" * 32).normal(n)
    assert abs(values.mean()) < 4 / np.sqrt(n)
    assert values.var() == pytest.approx(1.0, abs=4 * np.sqrt(2 / n))
    assert (values**3).mean() == pytest.approx(0.0, abs=4 * np.sqrt(15 / n))
    assert (values**4).mean() == pytest.approx(3.0, abs=4 * np.sqrt(96 / n))
    assert np.corrcoef(values[:-1], values[1:])[0, 1] == pytest.approx(0.0, abs=4 / np.sqrt(n))
    # Kolmogorov-Smirnov against the error function, without scipy.
    from math import erf

    grid = np.sort(values)[:: n // 200]
    expected = np.array([0.5 * (1 + erf(x / 2**0.5)) for x in grid])
    assert np.abs(expected - np.arange(len(grid)) * (n // 200) / n).max() < 1.95 / np.sqrt(n)


def test_normal_is_box_and_muller_block_by_block():
    """Against cosine and sine of the whole stream at once; the words are taken one after the other."""
    n = 2 * BLOCK + 77
    uniform = KeystreamRandomness(b"r" * 32).uniform
    slow = np.zeros(n)
    for _ in range(2):
        radius, angle = np.sqrt(-2 * np.log1p(-uniform(n))), 2 * np.pi * uniform(n)
        slow += radius * np.cos(angle) + radius * np.sin(angle)
    fast = KeystreamRandomness(b"r" * 32).normal(n)
    assert np.abs(fast - slow / 2).max() < 1e-14


@pytest.mark.parametrize("word", [0, 1 << 62, 1 << 63, 3 << 62, 2**64 - 1])
def test_normal_at_the_ends_of_its_words(word, monkeypatch):
    """An angle of half a turn has an infinite tangent of its half, and the largest word the longest radius."""
    randomness = KeystreamRandomness(bytes(32))
    monkeypatch.setattr(randomness, "bytes", lambda n: np.full(n // 8, word, "<u8").tobytes())
    radius, angle = np.sqrt(-2 * np.log1p(-(word >> 11) * 2.0**-53)), 2 * np.pi * (word >> 11) * 2.0**-53
    assert randomness.normal(3) == pytest.approx(radius * (np.cos(angle) + np.sin(angle)), abs=1e-14)


def test_tails_are_gaussian():
    """Box and Muller from 53 bits reaches beyond 8; a truncated or uniform-sum generator would lack its tail."""
    n = 4_000_000
    values = np.abs(KeystreamRandomness(b"t" * 32).normal(n))
    for limit, probability in ((3, 2.6998e-3), (4, 6.3342e-5), (5, 5.733e-7)):
        expected = n * probability
        assert abs((values > limit).sum() - expected) < 5 * np.sqrt(expected) + 3
    assert values.max() > 4.9


@pytest.mark.parametrize("rate", [0.5, 0.05, 1e-3, 1.0])
def test_coins_fall_with_the_sample_rate_and_independently(rate):
    """What a Poisson draw needs: every coin by itself, step by step, with probability `rate`."""
    steps, units = 400, 2_000
    randomness = KeystreamRandomness(b"c" * 32)
    coins = np.stack([randomness.uniform(units) < rate for _ in range(steps)])
    n = steps * units
    assert abs(coins.sum() - n * rate) <= 5 * np.sqrt(n * rate * (1 - rate)) + 1e-9
    drawn = coins.sum(axis=1)
    assert np.isclose(drawn.var(), units * rate * (1 - rate), rtol=5 * np.sqrt(2 / steps) + 0.05, atol=1e-9)
    pairs = (coins[:, :-1] & coins[:, 1:]).sum()
    assert abs(pairs - steps * (units - 1) * rate**2) <= 5 * np.sqrt(n * rate**2 * (1 - rate**2)) + 3
    again = (coins[:-1] & coins[1:]).sum()
    assert abs(again - (steps - 1) * units * rate**2) <= 5 * np.sqrt(n * rate**2 * (1 - rate**2)) + 3


def test_noise_and_coins_of_one_stream_are_independent():
    randomness = KeystreamRandomness(b"i" * 32)
    pairs = [(randomness.uniform(1_000).mean(), randomness.normal(1_000).mean()) for _ in range(400)]
    assert abs(np.corrcoef(np.array(pairs).T)[0, 1]) < 5 / np.sqrt(400)


def test_nothing_for_nothing():
    randomness = KeystreamRandomness(bytes(32))
    assert randomness.bytes(0) == b""
    assert len(randomness.uniform(0)) == len(randomness.normal(0)) == 0


def test_the_seed_is_not_in_the_repr():
    assert "secret" not in repr(KeystreamRandomness(b"secretsecretsecretsecretsecret!!"))


def test_seeds_have_32_bytes():
    with pytest.raises(ValueError, match="32 bytes"):
        KeystreamRandomness(bytes(16))
    assert len(new_round_seed()) == 32
    assert new_round_seed() != new_round_seed()


def test_the_daemon_draws_its_seeds_from_the_operating_system_and_trains_with_torch():
    """Only a caller of `run_daemon` could hand in others, and the command line hands in nothing."""
    training = Training()
    assert training.new_seed is new_round_seed
    assert training.make_trainer is torch_trainer
    (call,) = (
        node
        for node in ast.walk(ast.parse(inspect.getsource(cli)))
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "run_daemon"
    )
    assert (len(call.args), call.keywords) == (3, [])


def test_nothing_else_in_the_package_names_another_trainer_or_seed():
    package = Path(cli.__file__).parent
    told = {p.name for p in package.rglob("*.py") if re.search(r"\bTraining\(|new_seed=", p.read_text())}
    assert told == {"daemon.py", "opening.py", "studies.py"}
