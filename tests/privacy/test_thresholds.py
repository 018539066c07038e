import math

import pytest

from p2pfl.errors import ConfigError
from p2pfl.privacy.thresholds import Plan, Resilience, hypergeometric_plan, plan

GOLDEN = [  # of google/federated-compute: n, adversaries, drop-outs, active, degree, threshold
    (10, 0.33, 0.33, False, 8, 4), (100, 0.33, 0.33, False, 68, 34), (1000, 0.33, 0.33, False, 286, 150),
    (100, 0.45, 0.45, False, 92, 46), (1000, 0.45, 0.45, False, 822, 417), (100, 0.3, 0.3, True, 92, 62),
    (1000, 0.3, 0.3, True, 872, 584), (100, 0.05, 0.33, False, 28, 6), (100, 0.05, 0.33, True, 72, 39),
    (1000, 0.05, 0.33, True, 398, 223), (100, 0.33, 0.05, False, 34, 29), (100, 0.33, 0.05, True, 42, 37),
    (1000, 0.33, 0.05, True, 132, 109), (100, 0.05, 0.05, False, 12, 6), (100, 0.05, 0.05, True, 16, 11),
    (1000, 0.05, 0.05, True, 52, 37), (100, 0.33, 0.0, False, 26, 25),
]  # fmt: skip


@pytest.mark.parametrize(("n", "adversaries", "dropouts", "active", "degree", "threshold"), GOLDEN)
def test_googles_rows(n: int, adversaries: float, dropouts: float, active: bool, degree: int, threshold: int) -> None:
    resilience = Resilience(adversaries, dropouts, active)
    assert hypergeometric_plan(n, resilience) == Plan(degree, threshold)


@pytest.mark.parametrize(
    ("n", "adversaries", "dropouts", "active"),
    [(1000, 0.33, 0.33, True), (100, 0.5, 0.45, False), (100, 0.1, 0.45, True), (100, 0.9, 0.1, False)],
)
def test_what_nobody_can_bear(n: int, adversaries: float, dropouts: float, active: bool) -> None:
    with pytest.raises(ConfigError, match=f"are more than {n} clients can bear"):
        plan(n, Resilience(adversaries, dropouts, active))


@pytest.mark.parametrize("active", [False, True])
@pytest.mark.parametrize("n", range(3, 20))
def test_few_clients_are_all_neighbours(n: int, active: bool) -> None:
    found = plan(n, Resilience(0.05, 0.1, active))
    assert found.degree == n - 1
    assert found.threshold >= 2 * n // 3 + 1 and found.threshold > math.ceil(0.05 * n)
    if active:
        assert found.threshold > math.ceil(1.05 * n / 2)


def test_few_clients_of_whom_many_are_adversaries() -> None:
    assert plan(10, Resilience(0.4, 0.0, active=True)) == Plan(9, 8)
    with pytest.raises(ConfigError, match="more than 10 clients can bear with consistency"):
        plan(10, Resilience(0.9, 0.0, active=True))
    with pytest.raises(ConfigError, match="of 1 clients hides nothing"):
        plan(1, Resilience(0.0, 0.0, active=True))


@pytest.mark.parametrize("n", [20, 23, 50, 101, 200])
def test_two_sets_that_reveal_meet_in_an_honest_client(n: int) -> None:
    found = plan(n, Resilience(0.05, 0.1, active=True))
    assert found.degree % 2 == 0 or found.degree == n - 1
    assert 2 * found.threshold > found.degree + 1 + math.floor(0.05 * found.degree)
