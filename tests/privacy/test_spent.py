import pytest

from p2pfl.privacy import rdp
from p2pfl.privacy.discrete import rounded_sensitivity, skellam
from p2pfl.privacy.gaussian import epsilon_of
from p2pfl.privacy.spent import Spent


def test_gaussian_rounds_add_up_exactly() -> None:
    rounds = sum([Spent(0.01)] * 100, Spent())
    assert rounds.epsilon(1e-5) == pytest.approx(epsilon_of(1.0, 1e-5), rel=1e-9)
    assert rounds.accountant == "exact Gaussian"
    assert Spent().epsilon(1e-5) == 0.0


def test_other_mechanisms_add_up_by_their_curves() -> None:
    curve = skellam(*rounded_sensitivity(1.0, 1000.0, 4096), 10 * 500.0**2)
    both = Spent(0.5) + Spent(curve=curve) * 2 + Spent(0.5)
    by_hand = [mu + 2 * cost for mu, cost in zip(rdp.gaussian(1.0), curve, strict=True)]
    assert both.epsilon(1e-5) == rdp.epsilon(by_hand, 1e-5)[0]
    assert both.accountant == "Rényi, orders 2 to 256"
    assert (Spent(curve=curve) + Spent(curve=curve)).curve == (Spent(curve=curve) * 2).curve


@pytest.mark.parametrize("cost", [{"mu_squared": -1.0}, {"mu_squared": float("nan")}, {"curve": (-1.0,) * 255}])
def test_a_cost_is_not_negative(cost: dict) -> None:
    with pytest.raises(ValueError, match="not negative"):
        Spent(**cost)


def test_a_curve_has_all_orders() -> None:
    with pytest.raises(ValueError, match="255 costs, not 2"):
        Spent(curve=(1.0, 2.0))
