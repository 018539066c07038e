"""Golden values: dp-accounting 0.6.0 and opacus 1.6.0, which agree with a direct sum to 1e-9."""

import math

import pytest

from p2pfl.privacy import rdp

GOLDEN = [  # rate, sigma, rounds, delta, epsilon at integer orders, the order, epsilon by privacy loss distributions
    (0.01, 1.1, 10000, 1e-5, 5.654308000, 5, 5.192620),
    (256 / 60000, 1.1, 14062, 1e-5, 2.596981179, 8, 2.381686),
    (0.1, 1.0, 100, 1e-5, 7.972921510, 3, 7.046603),
    (0.05, 0.8, 200, 1e-5, 8.753964702, 3, 7.702170),
    (0.02, 2.0, 1000, 1e-6, 1.645434531, 14, 1.521607),
    (0.2, 4.0, 50, 1e-3, 1.097167181, 9, 0.941568),
    (1, 10, 100, 1e-6, 5.222428661, 6, 4.886554),
    (1, 1.0, 1, 1e-5, 4.752728337, 5, 4.377178),
]


@pytest.mark.parametrize(("rate", "sigma", "rounds", "delta", "epsilon", "order", "tighter"), GOLDEN)
def test_golden(
    rate: float, sigma: float, rounds: int, delta: float, epsilon: float, order: int, tighter: float
) -> None:
    spent = [rounds * cost for cost in rdp.sampled_gaussian(rate, sigma)]
    found, at = rdp.epsilon(spent, delta)
    assert found == pytest.approx(epsilon, abs=1e-9)
    assert at == order
    assert found > tighter  # a looser bound of the same


@pytest.mark.parametrize(
    ("rate", "sigma", "order", "cost"),
    [
        (0.01, 1.1, 2, 1.28510081605e-4),
        (0.01, 1.1, 8, 5.84070335520e-4),
        (0.01, 1.1, 32, 8.46941643368),
        (0.1, 1, 4, 0.0586726069601),
        (1, 2, 8, 1.0),
    ],
)
def test_one_order(rate: float, sigma: float, order: int, cost: float) -> None:
    assert rdp.sampled_gaussian(rate, sigma)[order - 2] == pytest.approx(cost, rel=1e-11)


@pytest.mark.parametrize("order", [2, 5, 17])
def test_is_the_published_sum(order: int) -> None:
    rate, sigma = 0.3, 1.7
    terms = (
        math.comb(order, k) * (1 - rate) ** (order - k) * rate**k * math.exp((k * k - k) / (2 * sigma**2))
        for k in range(order + 1)
    )
    expected = math.log(math.fsum(terms)) / (order - 1)
    assert rdp.sampled_gaussian(rate, sigma)[order - 2] == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("rate", "rounds", "epsilon", "delta", "fractional"),
    [(0.01, 1000, 2, 1e-5, 1.02229), (0.1, 100, 8, 1e-5, 0.993726), (1, 100, 4, 1e-6, 12.67838)],
)
def test_calibration(rate: float, rounds: int, epsilon: float, delta: float, fractional: float) -> None:
    sigma = rdp.noise_multiplier(epsilon, delta, rounds, rate)
    assert fractional < sigma < 1.005 * fractional  # which was found with orders between the integers, too
    assert rdp.epsilon([rounds * cost for cost in rdp.sampled_gaussian(rate, sigma)], delta)[0] <= epsilon
    less = sigma * (1 - 1e-9)
    assert rdp.epsilon([rounds * cost for cost in rdp.sampled_gaussian(rate, less)], delta)[0] > epsilon


def test_what_can_be_no_mechanism_is_refused() -> None:
    with pytest.raises(ValueError, match="rate is 0"):
        rdp.sampled_gaussian(0, 1)


def test_bounds_privacy_loss_distributions() -> None:
    """The tightest accountant that there is, where it is installed."""
    accounting = pytest.importorskip("dp_accounting", reason="needs dp-accounting: pip install dp-accounting")
    for rate, sigma, rounds, delta, epsilon, _, tighter in GOLDEN:
        event = accounting.PoissonSampledDpEvent(rate, accounting.GaussianDpEvent(sigma))
        found = accounting.pld.PLDAccountant().compose(event, rounds).get_epsilon(delta)
        assert found == pytest.approx(tighter, abs=1e-3)
        assert found < epsilon
