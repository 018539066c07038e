import math
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pfl.errors import ConfigError
from p2pfl.topology import Topology, build, fixed, topology_weights, varying
from p2pfl.topology import mixing as m
from p2pfl.topology.random_graphs import regular, watts_strogatz

# Spectral gap under Metropolis weights, and rounds to 1e-3.
TABLE = [
    ("chain", 16, 0.0128, 536), ("chain", 64, 0.0008, 8599), ("chain", 256, 5e-5, 137605),
    ("ring", 16, 0.0508, 133), ("ring", 64, 0.0032, 2149), ("ring", 256, 0.0002, 34400),
    ("torus", 16, 0.400, 14), ("torus", 64, 0.117, 56), ("torus", 256, 0.030, 224),
    ("hypercube", 16, 0.400, 14), ("hypercube", 64, 0.286, 21), ("hypercube", 256, 0.222, 28),
    ("exponential", 16, 0.400, 14), ("exponential", 64, 0.286, 21), ("exponential", 256, 0.222, 28),
    ("star", 16, 0.0625, 108), ("star", 64, 0.0156, 439), ("star", 256, 0.0039, 1765),
    ("full", 16, 1.0, 1), ("full", 64, 1.0, 1), ("full", 256, 1.0, 1),
]  # fmt: skip


@pytest.mark.parametrize(("family", "n", "gap", "rounds"), TABLE)
def test_spectral_gaps_of_fixed_families(family: str, n: int, gap: float, rounds: int) -> None:
    sigma = m.sigma_2(m.mixing_matrix(build(family, n).union))
    digits = 10 ** -len(f"{gap:f}".rstrip("0").split(".")[1])  # as many as the table prints
    assert 1 - sigma == pytest.approx(gap, abs=digits)
    assert m.rounds_to(sigma) == rounds


@pytest.mark.parametrize(
    ("n", "four", "eight", "small"), [(16, 0.278, 0.550, 0.176), (64, 0.141, 0.375, 0.079), (256, 0.119, 0.320, 0.043)]
)
def test_spectral_gaps_of_random_families_lie_in_a_band(n: int, four: float, eight: float, small: float) -> None:
    """One draw each in the table: other seeds differ."""
    for found, published, slack in (
        (regular(n, 4), four, 0.25),
        (regular(n, 8), eight, 0.15),
        (watts_strogatz(n, 4, 0.3), small, 0.5),
    ):
        assert m.spectral_gap(m.mixing_matrix(found)) == pytest.approx(published, rel=slack)


@given(st.integers(3, 60))
def test_ring_closed_form(n: int) -> None:
    theta = [(1 + 2 * math.cos(2 * math.pi * k / n)) / 3 for k in range(1, n)]
    assert m.sigma_2(m.mixing_matrix(fixed.ring(n))) == pytest.approx(max(map(abs, theta)), abs=1e-9)


@pytest.mark.parametrize("bits", range(1, 8))
def test_hypercube_and_exponential_closed_forms(bits: int) -> None:
    for family in (fixed.hypercube, fixed.exponential):
        assert m.spectral_gap(m.mixing_matrix(family(2**bits))) == pytest.approx(2 / (1 + bits))


@given(st.integers(3, 60))
def test_star_closed_form(n: int) -> None:
    assert m.spectral_gap(m.mixing_matrix(fixed.star(n))) == pytest.approx(1 / n)


def limit(matrix: m.Matrix, values: np.ndarray) -> np.ndarray:
    return np.linalg.matrix_power(matrix, 5000) @ values


def test_uniform_weights_are_biased_on_a_star_and_say_so() -> None:
    star, values = fixed.star(10), np.arange(10.0)
    with pytest.warns(UserWarning, match="uniform weights on 'star'.* use metropolis"):
        uniform = m.mixing_matrix(star, "uniform")
    assert limit(uniform, values) == pytest.approx(90 / 28)  # 3.214
    assert limit(m.mixing_matrix(star), values) == pytest.approx(4.5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        m.mixing_matrix(fixed.ring(5), "uniform")


connected = st.builds(lambda n, seed: watts_strogatz(n, 4, 0.3, seed), st.integers(5, 20), st.integers(0, 20))


@settings(max_examples=40)
@given(connected, st.sampled_from(["default", "metropolis", "lazy", "max-degree", "best-constant"]))
def test_symmetric_rules_are_doubly_stochastic(topology: Topology, rule: str) -> None:
    matrix = m.mixing_matrix(topology, rule)
    assert np.allclose(matrix, matrix.T)
    assert matrix.sum(1) == pytest.approx(np.ones(topology.n))
    assert matrix.sum(0) == pytest.approx(np.ones(topology.n))
    assert m.sigma_2(matrix) < 1
    if rule != "best-constant":
        assert matrix.min() >= 0
    if rule == "lazy":
        assert np.linalg.eigvalsh(matrix).min() >= -1e-12


@settings(max_examples=30)
@given(connected)
def test_best_constant_beats_all_constants(topology: Topology) -> None:
    best = m.sigma_2(m.mixing_matrix(topology, "best-constant"))
    eye, laplacian = np.eye(topology.n), m.laplacian(topology)
    for weight in np.linspace(0.01, 0.6, 30):
        assert best <= m.sigma_2(eye - weight * laplacian) + 1e-9
    assert best <= m.sigma_2(m.mixing_matrix(topology, "max-degree")) + 1e-9


@settings(max_examples=40)
@given(connected, st.data())
def test_target_weights_keep_the_weighted_mean(topology: Topology, data: st.DataObject) -> None:
    masses = data.draw(st.lists(st.floats(1, 20), min_size=topology.n, max_size=topology.n))
    matrix = m.target_matrix(topology, masses)
    share = np.array(masses) / sum(masses)
    assert matrix.min() >= -1e-12
    assert share @ matrix == pytest.approx(share)
    values = np.arange(topology.n, dtype=float)
    assert limit(matrix, values) == pytest.approx(float(share @ values))


@settings(max_examples=30)
@given(st.integers(3, 16), st.integers(1, 2), st.integers(0, 9))
def test_push_sum_finds_the_mean_on_one_way_links(n: int, fanout: int, seed: int) -> None:
    found = varying.epidemic_local(n, fanout, seed)
    values, masses = np.arange(n, dtype=float), np.ones(n)
    for t in range(300):
        matrix = m.mixing_matrix(found.at(t), "push-sum")
        assert matrix.sum(0) == pytest.approx(np.ones(n))
        values, masses = matrix @ values, matrix @ masses
    assert masses.sum() == pytest.approx(n)
    assert values / masses == pytest.approx(np.full(n, (n - 1) / 2))


def test_weighted_push_sum_is_exact() -> None:
    masses = np.arange(1.0, 17)
    values = masses * np.arange(16.0)
    expected = values.sum() / masses.sum()
    for t in range(4):
        matrix = m.mixing_matrix(varying.one_peer_exponential(16).at(t))
        values, masses = matrix @ values, matrix @ masses
    assert np.abs(values / masses - expected).max() < 1e-13


@settings(max_examples=40)
@given(connected, st.data())
def test_links_lost_at_both_ends_keep_the_mean(topology: Topology, data: st.DataObject) -> None:
    """Rule "self": dropping edges from the row of both ends leaves a doubly stochastic matrix."""
    lost = data.draw(st.sets(st.sampled_from(topology.edges)))
    matrix = np.zeros((topology.n, topology.n))
    for seat in range(topology.n):
        for other, weight in topology_weights(topology, seat).items():
            if (min(seat, other), max(seat, other)) not in lost:
                matrix[seat, other] = weight
        matrix[seat, seat] = 1 - matrix[seat].sum()
    assert np.allclose(matrix, matrix.T) and matrix.min() >= 0


@pytest.mark.parametrize(("s", "oracle", "local"), [(2, 0.325, 0.423), (4, 0.196, 0.239), (7, 0.115, 0.131)])
def test_epidemic_learning_contracts_in_one_round_as_measured(s: int, oracle: float, local: float) -> None:
    for schedule, published in ((varying.epidemic_oracle(96, s), oracle), (varying.epidemic_local(96, s), local)):
        assert m.mean_contraction(schedule, samples=20) == pytest.approx(published, rel=0.05)


def test_expected_contraction_of_random_matchings() -> None:
    """W² = W, so that λ2 of E[WᵀW] is 1 - n / (2 (n - 1)) exactly."""
    found = m.expected_contraction(varying.random_matching(8), samples=3000)
    assert found == pytest.approx(1 - 8 / 14, rel=0.05)


def test_a_fixed_graph_contracts_by_sigma_squared() -> None:
    ring = fixed.ring(7)
    assert m.expected_contraction(ring, samples=1) == pytest.approx(m.sigma_2(m.mixing_matrix(ring)) ** 2)


def test_rounds_to() -> None:
    assert m.rounds_to(0.0) == 1
    assert m.rounds_to(1.0) == math.inf
    assert m.rounds_to(0.5, 0.25) == 2


@pytest.mark.parametrize(
    ("family", "n", "sigma", "rounds"),
    [("one-peer-exponential", 16, 0.0, 4), ("base", 12, 0.0, 7), ("moshpit", 27, 0.0, 2), ("full", 5, 0.0, 1)],
)
def test_exact_schedules_take_their_period(family: str, n: int, sigma: float, rounds: int) -> None:
    more = {"dims": 3} if family == "moshpit" else {}
    schedule = build(family, n, **more)
    assert m.schedule_sigma(schedule) == sigma
    assert m.schedule_rounds(schedule) == (3 if family == "moshpit" else rounds)


def test_an_inexact_period_takes_several() -> None:
    schedule = varying.one_peer_exponential(12)
    matrix, taken = np.eye(12), 0
    while np.linalg.norm(matrix - 1 / 12, 2) > 1e-3:
        matrix = m.mixing_matrix(schedule.at(taken)) @ matrix
        taken += 1
    assert m.schedule_rounds(schedule) == taken > schedule.period


def test_consensus_distance() -> None:
    assert m.consensus_distance([[0.0, 0.0], [2.0, 0.0]]) == 1.0
    assert m.consensus_distance([1.0, 3.0]) == 1.0


def test_the_estimate_from_all_others_is_unbiased_but_for_n() -> None:
    """Averaged over all seats of a full graph, half the mean of ‖x_i - x_j‖² is Ξ² n / (n - 1)."""
    values = np.random.default_rng(0).normal(size=(6, 3))
    rows = [m.consensus_distance_estimate(values[i], [values[j] for j in range(6) if j != i]) for i in range(6)]
    assert np.mean(rows) == pytest.approx(m.consensus_distance(values) * 6 / 5)
    assert m.consensus_distance_estimate([1.0], []) == 0.0


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: m.mixing_matrix(fixed.ring(4), "metropolys"), "'metropolys' is unknown: did you mean 'metropolis'"),
        (lambda: m.mixing_matrix(fixed.exponential(4), "metropolis"), "one-way links.* use push-sum"),
        (lambda: m.target_matrix(fixed.ring(4), [1, 2, 3, 0]), "masses must be 4 positive numbers"),
    ],
)
def test_mistakes_are_named(make: object, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        make()  # type: ignore[operator]  # a lambda of the table above


def test_single_seats_agree_already() -> None:
    alone = Topology.from_edges(1, [])
    for rule in ("default", "lazy", "max-degree", "best-constant", "uniform", "push-sum"):
        assert m.sigma_2(m.mixing_matrix(alone, rule)) == 0.0
