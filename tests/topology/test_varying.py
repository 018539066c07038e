import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pfl.errors import ConfigError
from p2pfl.topology import Cycle, fixed, varying
from p2pfl.topology.mixing import Matrix, laplacian, mixing_matrix
from p2pfl.topology.random_graphs import watts_strogatz
from p2pfl.topology.weights import own_weight, received_weights, topology_weights


def product(cycle: Cycle) -> Matrix:
    found = np.eye(cycle.n)
    for topology in cycle.rounds:
        found = mixing_matrix(topology) @ found
    return found


@pytest.mark.parametrize("n", range(2, 33))
def test_one_peer_exponential_is_exact_for_powers_of_two_only(n: int) -> None:
    error = np.abs(product(varying.one_peer_exponential(n)) - 1 / n).max()
    assert (error < 1e-12) == (n & (n - 1) == 0)
    if n == 12:
        assert error == pytest.approx(0.042, abs=5e-4)


@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_base_graph_is_exact_for_every_n(k: int) -> None:
    for n in range(1, 41):
        cycle = varying.base_graph(n, k)
        assert np.abs(product(cycle) - 1 / n).max() < 1e-12
        assert cycle.period <= 2 * math.log(n, k + 1) + 2 + 1e-9  # the bound of the paper
        for topology in cycle.rounds:
            matrix = mixing_matrix(topology)
            assert max(map(len, topology.adjacency)) <= k
            assert np.array_equal(matrix, matrix.T) and matrix.min() >= -1e-12


@pytest.mark.parametrize(("side", "dims"), [(3, 2), (4, 2), (2, 4), (3, 3), (5, 1)])
def test_full_moshpit_grids_are_exact(side: int, dims: int) -> None:
    cycle = varying.moshpit(side**dims, dims)
    assert cycle.period == dims
    assert {len(others) for topology in cycle.rounds for others in topology.adjacency} == {side - 1}
    assert np.abs(product(cycle) - 1 / side**dims).max() < 1e-12


def test_moshpit_with_gaps_still_mixes() -> None:
    cycle = varying.moshpit(14, 2, side=4)
    assert cycle.union.is_connected
    assert 0 < np.linalg.norm(product(cycle) - 1 / 14, 2) < 0.4


def shrinkage(seed: int, rounds: int) -> list[float]:
    """Of the variance of 8 x 8 seats on a grid, by round, where a tenth of them is away in each."""
    random, cycle = np.random.default_rng(seed), varying.moshpit(64)
    rows = [[topology_weights(topology, seat) for seat in range(64)] for topology in cycle.rounds]
    x = random.standard_normal(64)
    mean, variance, found = x.mean(), x.var(), []
    for number in range(rounds):
        there = set(np.flatnonzero(random.random(64) >= 0.1).tolist())
        w = np.eye(64)
        for seat in there:
            row = received_weights(rows[number % 2][seat], there, "renormalise")
            w[seat, list(row)] = list(row.values())
            w[seat, seat] = own_weight(row)
        x = w @ x
        found.append(x.var() / variance)
    assert x.mean() == pytest.approx(mean, abs=1e-12), "who is there keeps the mean"
    return found


def test_moshpit_averages_without_those_who_are_away() -> None:
    """The figures that one run of the algorithm gave lie among those of other seeds, which differ by factors."""
    found = np.array([shrinkage(seed, 6) for seed in range(15)])
    figures = np.array([0.15, 0.018, 0.0037, 0.0012, 7e-5, 1e-5])
    assert (found.min(0) < figures).all() and (figures < found.max(0)).all()
    assert (np.abs(np.log(np.median(found, 0) / figures)) < np.log(2.5)).all()


@given(st.integers(1, 40), st.integers(0, 3), st.integers(0, 9))
def test_matchings_pair_everybody(n: int, seed: int, t: int) -> None:
    degrees = [len(others) for others in varying.random_matching(n, seed).at(t).adjacency]
    assert sorted(degrees) == [0] * (n % 2) + [1] * (n - n % 2)


def test_random_matching_contracts_as_computed_by_hand() -> None:
    """E W = a I + (1 - a) J with a = 1/2 - 1 / (2 (n - 1)), and W² = W."""
    n, draws = 8, 4000
    schedule = varying.random_matching(n)
    mean = sum(mixing_matrix(schedule.at(t)) for t in range(draws)) / draws
    expected = np.full((n, n), 1 / (2 * (n - 1)))
    np.fill_diagonal(expected, 0.5)
    assert np.abs(mean - expected).max() < 0.03


def test_epidemic_oracle_gives_everybody_the_same_degree() -> None:
    schedule = varying.epidemic_oracle(30, 7)
    assert {len(others) for t in range(5) for others in schedule.at(t).adjacency} == {7}


def test_epidemic_local_gives_everybody_its_fanout_and_binomial_arrivals() -> None:
    schedule = varying.epidemic_local(96, 3)
    rounds = [schedule.at(t) for t in range(60)]
    assert {len(others) for topology in rounds for others in topology.adjacency} == {3}
    alone = sum(not topology.senders(seat) for topology in rounds for seat in range(96)) / (60 * 96)
    assert alone == pytest.approx(math.exp(-3), abs=0.01)  # 0.047 at n = 96


@settings(max_examples=40)
@given(st.integers(5, 30), st.integers(0, 9))
def test_matchings_cut_up_the_edges(n: int, seed: int) -> None:
    graph = watts_strogatz(n, 4, 0.3, seed)
    parts = varying.matchings(graph)
    assert sorted(edge for part in parts for edge in part) == sorted(graph.edges)
    assert all(len({seat for edge in part for seat in edge}) == 2 * len(part) for part in parts)
    assert len(parts) <= 2 * max(map(len, graph.adjacency)) - 1


def connectivity(parts: tuple[tuple[tuple[int, int], ...], ...], chances: tuple[float, ...], n: int) -> float:
    total = np.zeros((n, n))
    for chance, part in zip(chances, parts, strict=True):
        for a, b in part:
            total[[a, b], [a, b]] += chance
            total[a, b] -= chance
            total[b, a] -= chance
    return float(np.linalg.eigvalsh(total)[1])


@pytest.mark.parametrize("budget", [0.25, 0.5, 0.9])
def test_activation_keeps_the_budget_and_connects_better_than_even_shares(budget: float) -> None:
    graph = fixed.clustered(20)  # bridges matter more than links inside a clique
    parts, chances = varying.matchings(graph), varying.activation(graph, budget)
    assert all(0 <= chance <= 1 for chance in chances)
    assert sum(chances) == pytest.approx(budget * len(parts), abs=1e-3)
    even = budget * np.linalg.eigvalsh(laplacian(graph))[1]
    assert connectivity(parts, chances, 20) > 1.02 * even


def test_activation_is_near_the_optimum_of_a_problem_solved_by_grid() -> None:
    graph = fixed.edge_list(5, [(0, 1), (1, 2), (2, 3), (3, 4), (4, 0), (0, 2)])
    parts = varying.matchings(graph)
    assert len(parts) == 3
    steps = np.linspace(0, 1, 51)
    best = max(connectivity(parts, (p, q, 1.5 - p - q), 5) for p in steps for q in steps if 0 <= 1.5 - p - q <= 1)
    assert connectivity(parts, varying.activation(graph, 0.5), 5) > best - 2e-3


def test_matcha_spends_its_budget() -> None:
    schedule = varying.matcha(fixed.torus(16), budget=0.5)
    links = [len(schedule.at(t).edges) for t in range(400)]
    assert sum(links) / 400 == pytest.approx(0.5 * 32, rel=0.06)
    assert schedule.family == "matcha"


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: varying.base_graph(5, 0), "k = 0"),
        (lambda: varying.moshpit(9, 0), "dims = 0"),
        (lambda: varying.moshpit(9, 2, side=2), "holds only 4 of n = 9"),
        (lambda: varying.epidemic_oracle(5, 3), "is even"),
        (lambda: varying.epidemic_local(5, 5), "fanout = 5"),
        (lambda: varying.activation(fixed.ring(4), 0.0), "budget = 0.0"),
    ],
)
def test_mistakes_are_named(make: object, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        make()  # type: ignore[operator]  # a lambda of the table above
