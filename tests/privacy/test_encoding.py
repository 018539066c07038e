import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pfl.errors import ConfigError, RemoteProtocolError
from p2pfl.privacy.encoding import FIGURES, Encoding, Ring

SEED = b"d" * 32


def vectors(n: int, d: int, scale: float = 1.0) -> np.ndarray:
    return np.random.default_rng(n * d).normal(scale=scale, size=(n, d))


@pytest.mark.parametrize("bits", [8, 16, 24])
@pytest.mark.parametrize("n", [3, 10, 100])
def test_the_mean_is_within_the_bound(n: int, bits: int) -> None:
    encoding = Encoding(bits=bits, clip=4.0)
    ring, x = encoding.ring(n), vectors(n, 500)
    words = [encoding.encode(row, 1.0, 0.5, ring, bytes([i]) * 32) for i, row in enumerate(x)]
    mean = encoding.decode(np.sum(words, axis=0, dtype=ring.dtype), n)
    error = np.abs(mean.vector - np.clip(x, -4, 4).mean(axis=0))
    assert error.max() <= encoding.error
    assert mean.weight == n and mean.loss == pytest.approx(0.5, abs=16 / encoding.top)


def test_weights_are_inside_the_sum() -> None:
    encoding, ring = Encoding(bits=24, clip=4.0), Ring(64)
    x, weights, losses = vectors(4, 50), [1.0, 0.5, 0.25, 0.0], [0.1, 2.0, 40.0, 7.0]
    words = [encoding.encode(*each, ring, SEED) for each in zip(x, weights, losses, strict=True)]
    mean = encoding.decode(np.sum(words, axis=0, dtype=ring.dtype), 4)
    expected = np.average(np.clip(x, -4, 4), axis=0, weights=weights)
    assert np.abs(mean.vector - expected).max() <= 4 * encoding.error / sum(weights)
    assert mean.weight == pytest.approx(1.75, abs=1e-6)
    assert mean.loss == pytest.approx((0.1 + 0.5 * 2 + 0.25 * 16) / 1.75, abs=1e-4)  # 40 is more than a loss may be


def test_rounding_is_right_on_average() -> None:
    encoding, ring = Encoding(bits=8, clip=1.0), Ring(32)
    x = np.full(20_000, 0.1234)
    words = encoding.encode(x, 1.0, 0.0, ring, SEED)
    mean = encoding.decode(words, 1).vector
    assert np.unique(mean).size == 2  # the two numbers about it
    assert mean.mean() == pytest.approx(0.1234, abs=4 * encoding.error / math.sqrt(x.size))


def test_what_is_too_large_is_clipped_and_counted() -> None:
    encoding, ring = Encoding(bits=16, clip=0.5), Ring(32)
    words = encoding.encode(np.array([-9.0, 0.1, 0.5, 9.0]), 1.0, math.nan, ring, SEED)
    mean = encoding.decode(words, 1)
    assert mean.vector[[0, 3]].tolist() == [-0.5, 0.5]
    assert mean.clipped == pytest.approx(0.5, abs=1e-4) and mean.loss == 0.0
    assert words.max() <= encoding.top


@settings(max_examples=30, deadline=None)
@given(st.integers(8, 24), st.lists(st.floats(-1e6, 1e6), max_size=20), st.floats(0, 1), st.floats())
def test_whatever_is_encoded_is_in_range(bits: int, entries: list[float], weight: float, loss: float) -> None:
    encoding = Encoding(bits=bits)
    words = encoding.encode(np.array(entries), weight, loss, encoding.ring(1000), SEED)
    assert len(words) == len(entries) + FIGURES
    encoding.check(words, 1)


def test_one_who_sends_what_nobody_can_have_is_noticed() -> None:
    encoding, ring = Encoding(bits=16), Ring(32)
    total = encoding.encode(np.zeros(10), 1.0, 0.0, ring, SEED)
    total[5] += np.uint32(2**31)
    with pytest.raises(RemoteProtocolError, match="somebody's is out of range"):
        encoding.decode(total, 3)


def test_a_sum_without_weight_is_none() -> None:
    encoding, ring = Encoding(), Ring(32)
    with pytest.raises(RemoteProtocolError, match="no weight"):
        encoding.decode(encoding.encode(np.zeros(3), 0.0, 0.0, ring, SEED), 1)


@pytest.mark.parametrize(("bits", "clients", "ring"), [(16, 65536, 32), (16, 65537, 64), (24, 256, 32), (24, 257, 64)])
def test_the_ring_is_as_large_as_the_sum_may_be(bits: int, clients: int, ring: int) -> None:
    assert Encoding(bits=bits).ring(clients) == Ring(ring)


@pytest.mark.parametrize(
    ("setting", "value"), [("bits", 7), ("bits", 25), ("clip", 0.0), ("clip", math.inf), ("most_loss", -1.0)]
)
def test_mistakes_name_the_field(setting: str, value: float) -> None:
    with pytest.raises(ConfigError, match=f"course.secagg.{setting} is {value}; it must be"):
        Encoding(**{setting: value})


@pytest.mark.parametrize(("vector", "weight"), [([math.nan], 1.0), ([math.inf], 1.0), ([0.0], 1.1), ([0.0], math.nan)])
def test_what_cannot_be_encoded(vector: list[float], weight: float) -> None:
    with pytest.raises(ValueError, match="only a finite vector"):
        Encoding().encode(np.array(vector), weight, 0.0, Ring(32), SEED)
