"""How fast a network agrees: mixing matrices and their spectral figures.

W[i, j] is the weight that seat i gives to what seat j sends, so one round is `x = W @ x`. W is doubly stochastic, and
the mean is kept, for symmetric topologies under every rule but "uniform" and "target".
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import reduce

import numpy as np
import numpy.typing as npt

from p2pfl.errors import ConfigError
from p2pfl.topology.checks import unknown
from p2pfl.topology.graph import Topology
from p2pfl.topology.schedule import Schedule
from p2pfl.topology.weights import (
    constant_weights,
    metropolis_weights,
    push_sum_share,
    target_weights,
    topology_weights,
    uniform_weights,
)

__all__ = [
    "Matrix",
    "best_constant",
    "consensus_distance",
    "consensus_distance_estimate",
    "expected_contraction",
    "keeps_mean",
    "laplacian",
    "mean_contraction",
    "metropolis_weights",
    "mixing_matrix",
    "rounds_to",
    "schedule_rounds",
    "schedule_sigma",
    "sigma_2",
    "spectral_gap",
    "target_matrix",
]

Matrix = npt.NDArray[np.float64]


def mixing_matrix(topology: Topology, rule: str = "default") -> Matrix:
    """The n × n matrix of a rule.

    "default" takes what the family prescribes, else Metropolis, and for directed topologies push-sum. The others:
    "metropolis", "lazy" (Metropolis, halved), "max-degree", "best-constant", "uniform" (warns where it is biased) and
    "push-sum" (columns sum to one: divide by the weights that travel along). Raises ConfigError for an unknown rule,
    and for one that needs links in both directions on a topology that lacks them.
    """
    if rule not in _RULES:
        raise unknown("mixing rule", rule, _RULES)
    return _RULES[rule](topology)


def _matrix(topology: Topology, row: Callable[[int], Mapping[int, float]]) -> Matrix:
    matrix = np.zeros((topology.n, topology.n))
    for seat in range(topology.n):
        for other, weight in row(seat).items():
            matrix[seat, other] = weight
    np.fill_diagonal(matrix, 1 - matrix.sum(1))
    return matrix


def _two_way(topology: Topology) -> Topology:
    if not topology.is_symmetric:
        raise ConfigError(
            f"topology {topology.family!r} has one-way links, for which this rule is biased: use push-sum"
        )
    return topology


def _metropolis(topology: Topology, *, lazy: bool = False) -> Matrix:
    degrees = [_two_way(topology).degree(seat) for seat in range(topology.n)]

    def row(seat: int) -> dict[int, float]:
        return metropolis_weights(degrees[seat], {j: degrees[j] for j in topology.neighbors(seat)}, lazy=lazy)

    return _matrix(topology, row)


def _constant(topology: Topology, weight: float) -> Matrix:
    return _matrix(_two_way(topology), lambda seat: constant_weights(topology.neighbors(seat), weight))


def _max_degree(topology: Topology) -> Matrix:
    return _constant(topology, 1 / (1 + max(map(len, topology.adjacency))))


def _uniform(topology: Topology) -> Matrix:
    if len({len(topology.senders(seat)) for seat in range(topology.n)}) > 1:
        warnings.warn(
            f"uniform weights on {topology.family!r}, whose degrees differ, agree on a mean weighted by degree + 1: "
            "use metropolis weights",
            stacklevel=3,
        )
    return _matrix(topology, lambda seat: uniform_weights(topology.senders(seat)))


def _push_sum(topology: Topology) -> Matrix:
    matrix = np.zeros((topology.n, topology.n))
    for seat in range(topology.n):
        matrix[[seat, *topology.neighbors(seat)], seat] = push_sum_share(topology.degree(seat))
    return matrix


def _received(topology: Topology) -> Matrix:
    return _matrix(topology, lambda seat: topology_weights(topology, seat))


def _default(topology: Topology) -> Matrix:
    return _received(topology) if topology.is_symmetric else _push_sum(topology)


_RULES: dict[str, Callable[[Topology], Matrix]] = {
    "default": _default,
    "metropolis": _metropolis,
    "lazy": lambda topology: _metropolis(topology, lazy=True),
    "max-degree": _max_degree,
    "best-constant": lambda topology: _constant(topology, best_constant(topology)),
    "uniform": _uniform,
    "push-sum": _push_sum,
}


def keeps_mean(topology: Topology) -> bool:
    """Whether plain averaging leaves the mean where it is: also on one-way links, if all send and hear equally many."""
    return bool(np.allclose(_received(topology).sum(0), 1))


def target_matrix(topology: Topology, masses: Sequence[float]) -> Matrix:
    """The matrix whose limit is the mean weighted by `masses`, one positive number per seat: π @ W == π."""
    if len(masses) != topology.n or min(masses) <= 0:
        raise ConfigError(f"masses must be {topology.n} positive numbers, one for each seat")
    degree = _two_way(topology).degree

    def row(seat: int) -> dict[int, float]:
        return target_weights(degree(seat), masses[seat], {j: (degree(j), masses[j]) for j in topology.neighbors(seat)})

    return _matrix(topology, row)


def laplacian(topology: Topology) -> Matrix:
    """Degrees on the diagonal, -1 at every edge."""
    matrix = np.zeros((topology.n, topology.n))
    for a, b in _two_way(topology).edges:
        matrix[a, b] = matrix[b, a] = -1
    np.fill_diagonal(matrix, -matrix.sum(1))
    return matrix


def best_constant(topology: Topology) -> float:
    """The one weight for all links that agrees soonest: 2 / (λ2 + λn) of the Laplacian (Xiao, Boyd 2004)."""
    if topology.n == 1:
        return 0.0
    values = np.linalg.eigvalsh(laplacian(topology))
    return float(2 / (values[1] + values[-1]))


def sigma_2(matrix: Matrix) -> float:
    """What remains of any disagreement after one round, at worst: ‖W - J‖2, J the matrix of 1 / n.

    For a W that is not doubly stochastic this is no bound; there, the second largest |eigenvalue|: the rate in the end.
    """
    n = len(matrix)
    if n == 1:
        return 0.0
    if np.allclose(matrix.sum(0), 1) and np.allclose(matrix.sum(1), 1):
        return _clean(float(np.linalg.norm(matrix - 1 / n, 2)))
    return _clean(float(np.sort(np.abs(np.linalg.eigvals(matrix)))[-2]))


def _clean(sigma: float) -> float:
    """Take rounding noise for the zero that it stands for, and for the one: ln of either decides over rounds."""
    if sigma < 1e-9:
        return 0.0
    return 1.0 if sigma > 1 - 1e-12 else sigma


def spectral_gap(matrix: Matrix) -> float:
    """1 - σ2: from 0 (never agrees) to 1 (agrees in one round)."""
    return 1 - sigma_2(matrix)


def rounds_to(sigma: float, target: float = 1e-3) -> float:
    """Rounds until the disagreement has shrunk to `target` of itself; infinite if it never does.

    >>> rounds_to(0.5), rounds_to(0.0), rounds_to(1.0)
    (10, 1, inf)
    """
    if sigma <= 0:
        return 1
    if sigma >= 1:
        return math.inf
    return max(1, math.ceil(math.log(target) / math.log(sigma)))


def schedule_sigma(schedule: Schedule, *, samples: int = 200) -> float:
    """What remains of a disagreement per round, on average over the rounds.

    Periodic: the product over a period, to the power 1 / period (0 if it is exact). Random: the square root of
    `expected_contraction`, over `samples` rounds.
    """
    if schedule.period is None:
        return _clean(math.sqrt(expected_contraction(schedule, samples=samples)))
    if schedule.period == 1:
        return sigma_2(mixing_matrix(schedule.at(0)))
    product = reduce(lambda done, t: mixing_matrix(schedule.at(t)) @ done, range(schedule.period), np.eye(schedule.n))
    return _clean(sigma_2(product) ** (1 / schedule.period))


def schedule_rounds(schedule: Schedule, target: float = 1e-3, *, samples: int = 200) -> float:
    """Rounds until the disagreement has shrunk to `target` of itself, at worst; if drawn, in expectation."""
    if schedule.period is None or schedule.period == 1:
        return rounds_to(schedule_sigma(schedule, samples=samples), target)
    product = np.eye(schedule.n)
    for done in range(1, 20 * schedule.period + 1):
        product = mixing_matrix(schedule.at(done - 1)) @ product
        if sigma_2(product) <= target:
            return done
    return rounds_to(schedule_sigma(schedule), target)


def expected_contraction(schedule: Schedule, *, samples: int = 200) -> float:
    """The worst factor by which E Σ‖x - mean‖² shrinks per round, over the first `samples` rounds: λ2 of E[WᵀW].

    With one-way links the receivers take the plain average, so the mean moves; what counts is the spread round the new
    mean: the largest eigenvalue of E[Wᵀ(I - J)W].
    """
    return float(np.linalg.eigvalsh(_expected_square(schedule, samples))[-1])


def mean_contraction(schedule: Schedule, *, samples: int = 200) -> float:
    """The same factor for values that are independent at the start, instead of the worst ones."""
    return float(np.trace(_expected_square(schedule, samples))) / max(1, schedule.n - 1)


def _expected_square(schedule: Schedule, samples: int) -> Matrix:
    total = np.zeros((schedule.n, schedule.n))
    for t in range(samples):
        matrix = _received(schedule.at(t))
        centred = matrix - matrix.mean(0)
        centred -= centred.mean(1, keepdims=True)  # what all seats share does not count, before as after
        total += centred.T @ centred
    return total / samples


def consensus_distance(values: npt.ArrayLike) -> float:
    """Ξ² = (1 / n) Σ ‖x_i - mean‖² of n × d values: how far the nodes are apart."""
    table = np.atleast_2d(np.asarray(values, dtype=np.float64).T).T
    return float(((table - table.mean(0)) ** 2).sum() / len(table))


def consensus_distance_estimate(own: npt.ArrayLike, neighbors: Sequence[npt.ArrayLike]) -> float:
    """What one node can tell of Ξ² from its neighbors' values alone: half the mean of ‖x_i - x_j‖²."""
    here = np.asarray(own, dtype=np.float64)
    return float(np.mean([((here - np.asarray(there)) ** 2).sum() for there in neighbors])) / 2 if neighbors else 0.0
