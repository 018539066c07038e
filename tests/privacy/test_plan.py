import math

import pytest

from p2pfl.errors import ConfigError
from p2pfl.privacy.distributed import Distributed
from p2pfl.privacy.gaussian import epsilon_of
from p2pfl.privacy.plan import plan_of, shared_plan
from p2pfl.privacy.spec import PrivacySpec
from p2pfl.privacy.spent import Spent


def test_the_noise_is_found_for_an_epsilon() -> None:
    (plan,) = plan_of(PrivacySpec("cdp", epsilon=4.0, delta=1e-6), 1000, [(1.0,) * 100])
    assert plan.multiplier == pytest.approx(11.9352, abs=5e-5)
    spent = sum((plan.cost(round, round) for round in range(100)), Spent())
    assert spent.epsilon(1e-6) == pytest.approx(4.0, rel=1e-9)
    assert plan.total.epsilon(1e-6) <= 4.0 * (1 + 1e-12)


def test_replacing_takes_twice_the_noise() -> None:
    spec = PrivacySpec("ldp", epsilon=4.0, delta=1e-6, adjacency="replace-one")
    (plan,) = plan_of(spec, 1000, [(spec.sensitivity**2,) * 100])
    assert plan.multiplier == pytest.approx(2 * 11.93518588, rel=1e-6)


def test_all_nodes_have_noise_for_the_one_that_is_worst_off() -> None:
    safe, exposed = plan_of(PrivacySpec("decor", epsilon=2.0), 8, [(0.2, 0.2), (1.0, 0.5)])
    assert safe.multiplier == exposed.multiplier
    assert exposed.total.epsilon(8**-1.1) == pytest.approx(2.0)
    assert safe.total.epsilon(8**-1.1) < 1.5
    assert exposed.cost(1, 0) == Spent(0.5 / exposed.multiplier**2)


def test_delta_is_less_than_one_in_the_nodes() -> None:
    (plan,) = plan_of(PrivacySpec("cdp", noise_multiplier=1.0), 100, [(1.0,)])
    assert plan.delta == pytest.approx(100**-1.1)
    with pytest.raises(ConfigError, match=r"privacy\.delta is 0\.01; it must be less than one in"):
        plan_of(PrivacySpec("cdp", noise_multiplier=1.0, delta=0.01), 100, [(1.0,)])


def test_who_takes_part_less_often_needs_less_noise() -> None:
    (plan,) = plan_of(PrivacySpec("cdp", noise_multiplier=2.0, participations=4), 100, [(1.0,) * 50])
    assert plan.participations == 4
    assert plan.total == Spent(1.0)


def test_a_tree_is_paid_for_at_once() -> None:
    spec = PrivacySpec("cdp", noise_multiplier=4.0, mechanism="tree", participations=1, delta=1e-6)
    (plan,) = plan_of(spec, 1000, [(1.0,) * 1000])
    assert plan.total == Spent(10 / 16)
    assert plan.total.epsilon(1e-6) == epsilon_of(math.sqrt(10) / 4, 1e-6)
    assert plan.cost(3, 0) == plan.total
    assert plan.cost(4, 1) == Spent()


def test_a_budget_that_is_too_small_is_refused_before_anything_runs() -> None:
    with pytest.raises(ConfigError, match=r"epsilon_max is 1, and 10 rounds would make epsilon \d"):
        plan_of(PrivacySpec("cdp", noise_multiplier=1.0, epsilon_max=1.0), 100, [(1.0,) * 10])
    plan_of(PrivacySpec("cdp", epsilon=1.0, epsilon_max=1.0), 100, [(1.0,) * 10])


def shared(multiplier: float) -> Distributed:
    return Distributed(4096, clients=10, clip=1.0, multiplier=multiplier)


def test_noise_in_shares_is_found_for_an_epsilon() -> None:
    plan = shared_plan(PrivacySpec("ddp", epsilon=4.0, delta=1e-6), 1000, 100, shared)
    assert plan.total == shared(plan.multiplier).cost() * 100
    assert plan.cost(7, 3) == shared(plan.multiplier).cost()
    assert plan.total.epsilon(1e-6) <= 4.0 < (shared(plan.multiplier / 1.02).cost() * 100).epsilon(1e-6)
    assert 12.67838 < plan.multiplier < 1.02 * 12.67838, (
        "that of Gaussian noise, by the same accountant, and steps of 1%"
    )
    assert float(f"{plan.multiplier:.5e}") == plan.multiplier


def test_noise_in_shares_may_be_given() -> None:
    spec = PrivacySpec("ddp", noise_multiplier=2.0, adjacency="replace-one", participations=3)
    plan = shared_plan(spec, 1000, 100, shared)
    assert plan.multiplier == 2.0
    assert plan.total == shared(2.0).cost(2.0) * 3


def test_roundings_that_cost_more_than_is_there_are_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"epsilon is 0\.5, and roundings alone cost more; raise course\.secagg\.bits"
    ):
        shared_plan(
            PrivacySpec("ddp", epsilon=0.5, delta=1e-6), 1000, 1, lambda z: Distributed(1 << 20, 100, 1.0, z, bits=10)
        )
    with pytest.raises(ConfigError, match=r"epsilon_max is 1, and 100 rounds would make epsilon"):
        shared_plan(PrivacySpec("ddp", noise_multiplier=2.0, epsilon_max=1.0), 1000, 100, shared)
