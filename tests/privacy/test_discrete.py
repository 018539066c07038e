import math

import pytest

from p2pfl.privacy import rdp
from p2pfl.privacy.discrete import discrete_gaussian, honest_share, rounded_sensitivity, skellam

SCALE, DIM = 1000.0, 4096


def test_golden() -> None:
    l1, l2 = rounded_sensitivity(1.0, SCALE, DIM)
    assert l2 / SCALE == pytest.approx(1.00102747215, abs=5e-12)
    assert l1 / SCALE == pytest.approx(64.0657582176, abs=5e-11)
    curve = skellam(l1, l2, 10 * (0.5 * SCALE) ** 2)
    assert curve[8 - 2] == pytest.approx(1.60329021661, abs=5e-12)
    assert rdp.epsilon(curve, 1e-5)[0] == pytest.approx(2.817399384, abs=5e-10)


def test_wide_noise_costs_what_gaussian_noise_does() -> None:
    l1, l2 = rounded_sensitivity(1.0, SCALE, DIM)
    plain = rdp.gaussian(l2 / (math.sqrt(10) * 500))
    assert discrete_gaussian(l1, l2, DIM, 500.0, 10) == pytest.approx(plain, rel=1e-12)
    assert skellam(l1, l2, 10 * 500.0**2) == pytest.approx(plain, rel=2e-3)


def test_narrow_noise_costs_more() -> None:
    """Sums of few and narrow discrete Gaussians are none: the published terms, by hand."""
    l1, l2, sigma, dim = 3.0, 2.0, 0.4, 4
    tau = 10 * math.exp(-2 * math.pi**2 * sigma**2 / 2)
    one, two = l1 / (math.sqrt(2) * sigma), l2 / (math.sqrt(2) * sigma)
    by_hand = min(two**2 + tau * dim, two**2 + 2 * one * tau + tau**2 * dim, (two + 2 * tau) ** 2)
    assert discrete_gaussian(l1, l2, dim, sigma, 2)[0] == pytest.approx(by_hand)


def test_short_vectors_are_bounded_by_the_worst_rounding() -> None:
    assert rounded_sensitivity(1.0, 1.0, 1)[1] == pytest.approx(
        min(2.0, math.sqrt(1 + 0.25 + 1.0 * (1 + 0.5)))
    )  # sqrt(2 ln(1/beta)) is 1


@pytest.mark.parametrize(("absent", "dishonest", "each"), [(0.0, 0.0, 1.0), (0.2, 0.1, 10 / 7), (0.3, 0.3, 2.5)])
def test_only_the_honest_are_counted_on(absent: float, dishonest: float, each: float) -> None:
    assert honest_share(10.0, 10, absent, dishonest) == pytest.approx(each)


def test_very_narrow_noise_has_a_bound_of_its_own() -> None:
    """The other term of the corollary, by hand."""
    assert skellam(3.0, 2.0, 1.0)[0] == pytest.approx(2 * 4 / 2 + min((3 * 4 + 18) / 4, 9 / 2))
