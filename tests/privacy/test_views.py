import math

import numpy as np
import pytest

from p2pfl.privacy.gaussian import epsilon_of
from p2pfl.privacy.views import correlated_mu, view_mu, worst_mu
from p2pfl.topology.families import build
from p2pfl.topology.mixing import laplacian, mixing_matrix


@pytest.mark.parametrize(
    ("family", "independent", "correlated", "eavesdropper", "neighbour", "epsilon"),
    [
        ("ring", 1, 0, 1.000000, 1.000000, 4.3772),
        ("ring", 1, 10, 0.362604, 0.400898, 1.3949),
        ("ring", 1, 100, 0.353646, 0.378210, 1.3569),
        ("ring", 0.5, 10, 0.711718, 0.767995, 2.9650),
        ("full", 1, 10, 0.355095, 0.379579, 1.3630),
        ("full", 1, 100, 0.353569, 0.377981, 1.3565),
    ],
)
def test_golden(
    family: str, independent: float, correlated: float, eavesdropper: float, neighbour: float, epsilon: float
) -> None:
    graph = build(family, 8)
    mu = correlated_mu(graph, independent, correlated)[0]
    assert mu == pytest.approx(eavesdropper, abs=5e-7)
    assert correlated_mu(graph, independent, correlated, [7])[0] == pytest.approx(neighbour, abs=5e-7)
    assert worst_mu(graph, independent, correlated, 1)[0] == pytest.approx(neighbour, abs=5e-7)
    assert epsilon_of(mu, 1e-5) == pytest.approx(epsilon, abs=5e-5)
    spectrum = np.linalg.eigvalsh(laplacian(graph))
    assert mu**2 == pytest.approx(np.mean(1 / (independent**2 + correlated**2 * spectrum)), abs=1e-9)


def test_is_the_view_of_all_draws() -> None:
    """The covariance is that of a draw for each node and one for each link."""
    graph = build("watts-strogatz", 9, degree=4, seed=3)
    links = [(a, b) for a in range(9) for b in graph.neighbors(a) if a < b]
    noises = np.hstack((0.7 * np.eye(9), np.zeros((9, len(links)))))
    for at, (a, b) in enumerate(links):
        noises[a, 9 + at], noises[b, 9 + at] = 3.0, -3.0
    assert correlated_mu(graph, 0.7, 3.0)[4] == pytest.approx(view_mu(np.eye(9)[4], noises), rel=1e-9)


def test_who_is_alone_has_its_own_noise_only() -> None:
    ring = build("ring", 8)
    assert worst_mu(ring, 0.5, 100.0, 2) == (2.0,) * 8
    assert correlated_mu(ring, 0.5, 100.0, [1, 7])[0] == pytest.approx(2.0)


def test_more_coalitions_than_can_be_tried_are_bounded() -> None:
    assert worst_mu(build("full", 60), 0.5, 100.0, 5) == (2.0,) * 60


def _gossiped(rounds: int, observer: int, sigma: float, n: int = 8) -> tuple[np.ndarray, np.ndarray]:
    """What a node of a ring hears in so many gossip steps of one noisy input: signals (messages, n) and noises."""
    ring = build("ring", n)
    mixing, power, rows = mixing_matrix(ring, "metropolis"), np.eye(n), []
    for _ in range(rounds):
        rows += [power[other] for other in (*ring.neighbors(observer), observer)]
        power = mixing @ power
    signals = np.array(rows)
    return signals, sigma * np.delete(signals, observer, axis=1)  # it knows its own draw


@pytest.mark.parametrize(("rounds", "node", "marginal"), [(3, 2, 0.737), (8, 4, 0.539)])
def test_messages_of_one_draw_show_more_together_than_each_alone(rounds: int, node: int, marginal: float) -> None:
    signals, noises = _gossiped(rounds, 0, 1.0)
    assert view_mu(signals[:, node], noises) == pytest.approx(1.0, abs=1e-6)
    assert marginal < 1.0  # what the sum over messages would claim


def test_without_noise_a_node_solves_for_all_inputs() -> None:
    """T-D7: gossip alone hides nothing, and the accountant says so."""
    signals, _ = _gossiped(4, 0, 1.0)
    inputs = np.random.default_rng(1).normal(size=8)
    heard = signals @ inputs
    known = np.delete(signals, 0, axis=1)
    assert np.linalg.matrix_rank(known) == 7
    solved, *_ = np.linalg.lstsq(known, heard - signals[:, 0] * inputs[0], rcond=None)
    assert np.allclose(solved, inputs[1:], atol=1e-9)
    for node in range(1, 8):
        assert view_mu(signals[:, node], np.zeros((len(signals), 1))) == math.inf
        assert view_mu(signals[:, node], np.zeros((len(signals), 0))) == math.inf


def test_what_is_not_in_the_view_costs_nothing() -> None:
    assert view_mu(np.zeros(3), np.eye(3)) == 0.0
    assert view_mu(np.array([1.0, 0.0]), np.array([[0.0], [1.0]])) == math.inf
