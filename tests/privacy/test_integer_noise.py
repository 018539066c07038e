"""T-D2: the distribution of what is drawn. The key is fixed, so that the test is the same each time."""

import math

import pytest
import torch

from p2pfl.privacy.integer_noise import MOST_VARIANCE, discrete_gaussian, skellam
from p2pfl.privacy.noise import Keyed

DRAWS = 100_000


def _excess(drawn: torch.Tensor, chance: dict[int, float]) -> float:
    """Pearson's chi², less its mean, in standard deviations. What is rare counts as one."""
    counts = {value: int((drawn == value).sum()) for value in chance}
    common = {value: chance[value] for value in chance if chance[value] * DRAWS > 10}
    rest = 1 - sum(common.values())
    chi = sum((counts[value] - DRAWS * p) ** 2 / (DRAWS * p) for value, p in common.items())
    chi += (DRAWS - sum(counts[value] for value in common) - DRAWS * rest) ** 2 / (DRAWS * rest)
    return (chi - len(common)) / math.sqrt(2 * len(common))


@pytest.mark.parametrize("variance", [1, 5])
def test_discrete_gaussian(variance: int) -> None:
    drawn = discrete_gaussian(Keyed(bytes(32)), DRAWS, variance)
    assert drawn.dtype == torch.int64
    weights = {x: math.exp(-x * x / (2 * variance)) for x in range(-60, 61)}
    total = math.fsum(weights.values())
    assert _excess(drawn, {x: weight / total for x, weight in weights.items()}) < 3


@pytest.mark.parametrize("variance", [0.3, 6.0])
def test_skellam(variance: float) -> None:
    drawn = skellam(Keyed(bytes(32)), DRAWS, variance)
    poisson = [math.exp(k * math.log(variance / 2) - variance / 2 - math.lgamma(k + 1)) for k in range(80)]
    chance = {
        x: math.fsum(poisson[k] * poisson[k - x] for k in range(max(0, x), min(80, 80 + x))) for x in range(-30, 31)
    }
    assert _excess(drawn, chance) < 3


@pytest.mark.parametrize("variance", [250_000, MOST_VARIANCE])
def test_wide_noise_is_nearly_normal(variance: int) -> None:
    draws = 30_000
    for drawn in (discrete_gaussian(Keyed(bytes(32)), draws, variance), skellam(Keyed(bytes(32)), draws, variance)):
        assert float(drawn.double().var()) == pytest.approx(variance, rel=4 * math.sqrt(2 / draws))
        expected = (1 + torch.erf((drawn.double().sort().values + 0.5) / math.sqrt(2 * variance))) / 2
        distance = float((expected - torch.arange(1, draws + 1) / draws).abs().max())
        assert distance < 1.63 / math.sqrt(draws) + 1 / math.sqrt(variance)


def test_any_length() -> None:
    for numel in (0, 1, 3):
        assert discrete_gaussian(Keyed(bytes(32)), numel, 4).shape == (numel,)
        assert skellam(Keyed(bytes(32)), numel, 4).shape == (numel,)


def test_a_variance_that_does_not_fit_is_refused() -> None:
    for variance in (0, MOST_VARIANCE + 1):
        with pytest.raises(ValueError, match="must lie in"):
            discrete_gaussian(Keyed(bytes(32)), 1, variance)
    for variance in (0, 1e10):
        with pytest.raises(ValueError, match="must lie in"):
            skellam(Keyed(bytes(32)), 1, variance)
