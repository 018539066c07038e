import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from p2pfl.errors import ConfigError
from p2pfl.privacy.clipping import clipped
from p2pfl.privacy.discrete import rounded_sensitivity
from p2pfl.privacy.distributed import Distributed, rotated
from p2pfl.privacy.gaussian import epsilon_of
from p2pfl.privacy.integer_noise import reach, skellam
from p2pfl.privacy.noise import Keyed

KEY = bytes(range(32))


def _sum(way: Distributed, updates: list[Tensor], source: Keyed) -> Tensor:
    total = np.zeros(way.dim, dtype=way.ring(len(updates)).dtype)
    for update in updates:
        total += way.encode(update, KEY, source)
    return way.decode(total, KEY)


def test_the_rotation_keeps_lengths_and_is_its_own_inverse() -> None:
    vector = torch.randn(64, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    assert torch.allclose(rotated(rotated(vector)), vector)
    assert float(rotated(vector).norm()) == pytest.approx(float(vector.norm()))
    by_hand = torch.tensor([[(-1) ** (i & j).bit_count() for j in range(64)] for i in range(64)]).double() / 8
    assert torch.allclose(rotated(vector), by_hand @ vector)


def test_a_sum_without_noise_is_that_of_the_clipped_updates() -> None:
    way = Distributed(100, clients=5, clip=2.0, multiplier=1e-6)
    generator = torch.Generator().manual_seed(1)
    updates = [torch.randn(100, generator=generator) for _ in range(5)]
    exact = sum(clipped(update, 2.0) for update in updates)
    assert torch.allclose(_sum(way, updates, Keyed(KEY)), exact, atol=1e-4)
    assert way.dim == 128


def test_the_noise_is_as_wide_as_was_promised() -> None:
    """Of all ten; eight are counted on, and their noise alone is what is charged for."""
    way = Distributed(4096, clients=10, clip=1.0, multiplier=2.0, absent=0.1, dishonest=0.1)
    noise = _sum(way, [torch.zeros(4096)] * 10, Keyed(KEY))
    assert float(noise.var()) == pytest.approx(4.0 * 10 / 8, rel=0.1)
    fewer = _sum(way, [torch.zeros(4096)] * 8, Keyed(KEY))
    assert float(fewer.var()) == pytest.approx(4.0, rel=0.1)


def test_costs_little_more_than_gaussian_noise() -> None:
    way = Distributed(4096, clients=10, clip=1.0, multiplier=2.0)
    spent = way.cost().epsilon(1e-5)
    assert epsilon_of(0.5, 1e-5) < spent < 1.15 * epsilon_of(0.5, 1e-5)
    assert way.cost(2.0).epsilon(1e-5) == pytest.approx(Distributed(4096, 10, 1.0, 1.0).cost().epsilon(1e-5), rel=0.02)


@given(st.lists(st.floats(-3, 3), min_size=6, max_size=6), st.binary(min_size=32, max_size=32), st.integers(4, 12))
@settings(max_examples=50)
def test_no_rounded_update_is_longer_than_was_charged_for(entries: list[float], seed: bytes, bits: int) -> None:
    """T-D3, with noise that is all but nothing."""
    way = Distributed(6, clients=1, clip=1.0, multiplier=1e-9, bits=bits, absent=0.0, dishonest=0.0)
    sent = way.encode(torch.tensor(entries), KEY, Keyed(seed))
    signed = sent.view(np.int32).astype(np.float64)
    l1, l2 = rounded_sensitivity(1.0, way.scale, way.dim)
    assert np.linalg.norm(signed) <= l2
    assert np.abs(signed).sum() <= l1 + 1e-9


def test_whatever_is_drawn_no_sum_wraps_around() -> None:
    """The largest number that a client can give, from all of them, is still on its side of the middle."""
    way = Distributed(4, clients=10, clip=1.0, multiplier=1.0, bits=18)
    _, l2 = rounded_sensitivity(way.clip, way.scale, way.dim)
    variance = way.local_variance * way.scale**2
    most = l2 + reach(variance)
    drawn = skellam(Keyed(KEY), 10_000, variance)
    assert int(drawn.abs().max()) < reach(variance) < 16 * math.sqrt(variance)
    for largest in (int(most), -int(most)):
        words = np.full(4, 10 * largest, dtype=np.int64).astype(way.ring(10).dtype)
        assert float(way.decode(words, KEY).norm()) == pytest.approx(2 * 10 * most / way.scale, rel=1e-4)


def test_a_sum_tells_how_many_there_are_and_nothing_else_of_anyone() -> None:
    way = Distributed(100, clients=10, clip=1.0, multiplier=1.0)
    total = way.encode(torch.zeros(100), KEY, Keyed(KEY))
    mean = way.mean(total, 5, KEY)
    assert np.allclose(mean.vector, way.decode(total, KEY).numpy() / 5)
    assert mean.weight == 5 and math.isnan(mean.loss) and math.isnan(mean.clipped)
    assert way.size(100) == len(total) == 128


@given(st.integers(1, 60), st.integers(0, 60), st.floats(0, 0.5), st.floats(0, 0.45))
def test_a_sum_that_may_be_told_has_the_noise_that_was_paid_for(
    clients: int, more: int, absent: float, dishonest: float
) -> None:
    """Of the shares in it, those of the dishonest are not counted."""
    way = Distributed(4, clients, 1.0, 0.5, 12, absent, dishonest)
    honest = way.least(clients + more) - math.floor(dishonest * (clients + more) + 1e-9)
    assert honest * way.local_variance >= 0.25 * (1 - 1e-9)


def test_rounding_is_right_in_the_mean() -> None:
    way = Distributed(4, clients=1, clip=1.0, multiplier=1e-9, bits=5, absent=0.0, dishonest=0.0)
    update, source = torch.tensor([0.3, -0.2, 0.1, 0.05]), Keyed(KEY)
    mean = sum(way.decode(way.encode(update, KEY, source), KEY) for _ in range(800)) / 800
    assert torch.allclose(mean, update.double(), atol=4 / (way.scale * math.sqrt(800)))


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ConfigError, match="1000 clients do not fit into 8 bits"):
        Distributed(4, clients=1000, clip=1.0, multiplier=1.0, bits=8)
    with pytest.raises(ConfigError, match=r"tables that are too large; lower course\.secagg\.bits"):
        Distributed(4, clients=10, clip=1.0, multiplier=1.0, bits=32)
    with pytest.raises(ConfigError, match=r"may not fit into the modulus, 2\^32; lower course\.secagg\.bits"):
        Distributed(4, clients=10, clip=1.0, multiplier=0.01, bits=24).ring(100_000)
    with pytest.raises(ConfigError, match="nobody is counted on"):
        Distributed(4, clients=10, clip=1.0, multiplier=1.0, absent=0.6, dishonest=0.4)
