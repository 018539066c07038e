import itertools
import math

import pytest
import torch

from p2pfl.privacy import rdp
from p2pfl.privacy.gaussian import epsilon_of
from p2pfl.privacy.noise import Keyed
from p2pfl.privacy.tree import Tree, sensitivity_squared


@pytest.mark.parametrize(
    ("sigma", "rounds", "epsilon"), [(1, 1000, 20.551992), (4, 1000, 4.010376), (8, 2000, 1.974294)]
)
def test_golden(sigma: float, rounds: int, epsilon: float) -> None:
    """dp-accounting's, by its own Rényi orders; the exact value is less."""
    mu_squared = sensitivity_squared(rounds) / sigma**2
    orders = [1 + x / 10 for x in range(1, 100)] + list(range(11, 64)) + [128, 256, 512, 1024]
    found, _ = rdp.epsilon([order * mu_squared / 2 for order in orders], 1e-6, orders)
    assert found == pytest.approx(epsilon, abs=1e-6)
    assert epsilon_of(math.sqrt(mu_squared), 1e-6) < epsilon


@pytest.mark.parametrize(
    ("rounds", "participations", "apart"), [(7, 1, 1), (7, 2, 3), (8, 3, 2), (9, 9, 1), (12, 4, 3)]
)
def test_bounds_every_way_to_take_part(rounds: int, participations: int, apart: int) -> None:
    nodes = [
        range(start, start + 2**level)
        for level in range(math.ceil(math.log2(rounds + 1)))
        for start in range(0, rounds, 2**level)
    ]
    worst = max(
        sum(sum(turn in node for turn in turns) ** 2 for node in nodes)
        for count in range(participations + 1)
        for turns in itertools.combinations(range(rounds), count)
        if all(later - earlier >= apart for earlier, later in itertools.pairwise(turns))
    )
    bound = sensitivity_squared(rounds, participations, apart)
    assert worst <= bound <= 2 * worst


def test_a_sum_has_the_noise_of_few_nodes() -> None:
    """After t rounds: one draw for each one in the binary form of t, and each draw for as long as its node lasts."""
    tree, source = Tree(20_000, 1.0), Keyed(bytes(32))
    total, totals = torch.zeros(20_000, dtype=torch.float64), []
    for turn in range(1, 14):
        total = total + tree.step(source)
        totals.append(total)
        assert float(total.var()) == pytest.approx(turn.bit_count(), rel=0.05)
    assert float((totals[4] - totals[3]).var()) == pytest.approx(1, rel=0.05)  # 5 = 4 + 1
    assert float((totals[7] * totals[6]).mean()) == pytest.approx(0, abs=0.05)  # 8 shares nothing with 7
    assert float((totals[11] * totals[7]).mean()) == pytest.approx(1, rel=0.05)  # 12 = 8 + 4
