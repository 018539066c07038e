"""What one node of a gossip solves for."""

from __future__ import annotations

import numpy as np
import pytest

from p2pfl.attacks.reconstruction import solve, view
from p2pfl.topology.families import build
from p2pfl.topology.mixing import mixing_matrix


@pytest.mark.parametrize(("rounds", "others"), [(1, {1, 7}), (2, {1, 2, 6, 7}), (3, {1, 2, 3, 5, 6, 7})])
def test_on_a_ring_it_sees_a_hop_farther_each_round(rounds: int, others: set[int]) -> None:
    weights = view(build("ring", 8), 0, rounds)
    assert solve(weights, weights @ np.ones(8)).known == {0, *others}
    assert np.linalg.matrix_rank(weights[1:, 1:]) == 2 * rounds


def test_after_four_rounds_node_0_of_a_ring_of_eight_has_all_seven_inputs() -> None:
    weights = view(build("ring", 8), 0, 4)
    assert np.linalg.matrix_rank(weights[:, 1:]) == 7
    inputs = np.random.default_rng(0).normal(size=(8, 2, 3))
    solved = solve(weights, np.tensordot(weights, inputs, 1))
    assert solved.known == set(range(8))
    assert solved.rank == 8
    np.testing.assert_allclose(solved.inputs, inputs, atol=1e-12)


def test_the_view_is_what_is_sent() -> None:
    graph = build("star", 5)
    models = np.random.default_rng(1).normal(size=5)
    seen = [models[2]]
    for mixed in (models, mixing_matrix(graph) @ models):
        seen.append(mixed[0])
    np.testing.assert_allclose(view(graph, 2, 2) @ models, seen)


def test_leaves_of_a_star_stay_hidden_from_one_another() -> None:
    weights = view(build("star", 6), 1, 10)
    assert solve(weights, weights @ np.ones(6)).known == {0, 1}


def test_what_is_nearly_alone_in_a_message_is_not_known() -> None:
    assert solve(np.array([[1.0, 0.1]]), np.ones(1)).known == set()
