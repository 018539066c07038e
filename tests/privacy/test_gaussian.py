import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pfl.privacy.gaussian import delta_of, epsilon_of, mu_for, noise_multiplier, smallest


@pytest.mark.parametrize(
    ("sigma", "rounds", "delta", "epsilon"),
    [(10, 100, 1e-6, 4.886554), (1, 1, 1e-5, 4.377178), (1.1, 100, 1e-5, 79.28)],
)
def test_golden(sigma: float, rounds: int, delta: float, epsilon: float) -> None:
    assert epsilon_of(math.sqrt(rounds) / sigma, delta) == pytest.approx(epsilon, rel=1e-4 if epsilon > 50 else 2e-7)


def test_calibration_golden() -> None:
    assert noise_multiplier(4, 1e-6, 100) == pytest.approx(11.9352, abs=5e-5)


@given(st.floats(0.01, 30), st.floats(1e-12, 0.4))
def test_epsilon_is_the_smallest_that_holds(mu: float, delta: float) -> None:
    epsilon = epsilon_of(mu, delta)
    assert delta_of(mu, epsilon) <= delta
    if epsilon:
        assert delta_of(mu, epsilon * (1 - 1e-6)) > delta


@given(st.floats(0.05, 50), st.floats(1e-10, 0.1))
def test_mu_goes_back(epsilon: float, delta: float) -> None:
    assert epsilon_of(mu_for(epsilon, delta), delta) == pytest.approx(epsilon, rel=1e-6)


def test_delta_by_integration() -> None:
    """The hockey-stick divergence of N(mu, 1) from N(0, 1), by a sum."""
    mu, epsilon, step = 1.3, 0.7, 1e-3
    density = [math.exp(-x * x / 2) / math.sqrt(2 * math.pi) for x in (step * k for k in range(-12000, 12000))]
    shifted = [
        math.exp(-((x - mu) ** 2) / 2) / math.sqrt(2 * math.pi) for x in (step * k for k in range(-12000, 12000))
    ]
    stick = math.fsum(max(0.0, p - math.exp(epsilon) * q) for p, q in zip(shifted, density, strict=True)) * step
    assert delta_of(mu, epsilon) == pytest.approx(stick, abs=1e-6)


def test_the_far_tail_joins_the_near_one() -> None:
    """Where the tail underflows, an expansion takes over; delta falls on both sides of it."""
    deltas = [delta_of(0.2, epsilon) for epsilon in (5.5, 5.9, 5.999, 6.001, 6.1, 6.5)]
    assert deltas == sorted(deltas, reverse=True)
    assert all(delta > 0 for delta in deltas)


def test_extremes() -> None:
    assert epsilon_of(0.0, 1e-5) == 0.0
    assert epsilon_of(1e-9, 1e-5) == 0.0
    assert epsilon_of(math.inf, 1e-5) == math.inf
    assert epsilon_of(1000.0, 1e-5) == pytest.approx(500_000, rel=0.02)
    with pytest.raises(ValueError, match="delta is 0"):
        epsilon_of(1.0, 0)
    with pytest.raises(ValueError, match="no number"):
        smallest(lambda _: False)
