"""Whether sums tell their parts: what curious nodes of a gossip course can solve for, by linear algebra.

A node that receives only the weighted sum of its neighbourhood still learns a linear equation in each round, and nodes
that put their equations together can solve them: a neighbourhood of one other node is no sum, and two sums that differ
in one node tell that node. A coalition knows its own terms. What is left of its equations are rows of weights over the
others; a node u is exposed iff the unit vector e_u lies in the space of these rows.

Over several rounds, the rows are taken over one vector for each node, as if models did not move between the rounds:
that is when the equations fit together best. `gossiped` has rows of what is mixed and never trained, in the first
vectors: there, after enough rounds, one node of a ring can solve for all others. A. El Mrini, E. Cyffers, A. Bellet:
"Privacy Attacks in Decentralized Learning", ICML 2024, https://arxiv.org/abs/2402.10001.

What is not exposed cannot be solved for exactly, and no more than that is promised: a sum of two nodes that are alike
tells either well. That is what noise is for.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import numpy.typing as npt

from p2pfl.errors import require

__all__ = ["Exposure", "View", "audit", "gossiped", "refuse_exposure", "sums", "view"]

Weights = npt.NDArray[np.float64]
"""Mixing weights (n, n): row i has what node i makes of all."""
_NEGLIGIBLE = 1e-9
_LEAST_NEIGHBOURS = 3


@dataclass(frozen=True, slots=True)
class View:
    """What a coalition makes of its equations: how many of them are independent, and whom it can solve for."""

    rank: int
    exposed: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Exposure:
    """A node that some others can solve for, by the sums of so many rounds from one on."""

    node: int
    coalition: tuple[int, ...]
    round: int
    rounds: int

    def __str__(self) -> str:
        who = " and ".join(map(str, self.coalition))
        there = f"round {self.round}" if self.rounds == 1 else f"rounds {self.round} to {self.round + self.rounds - 1}"
        return f"node {self.node} is exposed to {who} by the sums of {there}"


def view(rows: Weights, coalition: Collection[int]) -> View:
    """What nodes can solve for who see the values of `rows` (m, n), and know their own vectors.

    >>> view(np.array([[0.5, 0.25, 0.25, 0.0], [0.5, 0.25, 0.0, 0.25]]), [0])
    View(rank=2, exposed=())
    >>> view(np.array([[0.5, 0.25, 0.25, 0.0], [0.5, 0.25, 0.0, 0.25]]), [0, 1])
    View(rank=2, exposed=(2, 3))
    """
    others = np.array(rows, dtype=np.float64)
    others[:, list(coalition)] = 0.0
    _, sizes, directions = np.linalg.svd(others, full_matrices=False)
    rank = int(np.count_nonzero(sizes > _NEGLIGIBLE * sizes.max(initial=0.0)))
    within = np.square(directions[:rank]).sum(axis=0)  # the length of each e_u in the space of the rows, squared
    return View(rank, tuple(int(node) for node in np.flatnonzero(within > 1 - _NEGLIGIBLE)))


def sums(rounds: Sequence[Weights], coalition: Collection[int]) -> Weights:
    """The rows that a coalition sees where each node receives the sum of its neighbourhood, and nothing else."""
    return np.concatenate([weights[sorted(coalition)] for weights in rounds])


def gossiped(weights: Weights, coalition: Collection[int], rounds: int) -> Weights:
    """The rows that a coalition sees where its neighbours send what they have, and mix it without any training.

    Each row is of one message, over what the nodes began with: that of neighbour w in round t is row w of weights^t.
    """
    heard = sorted({int(node) for one in coalition for node in np.flatnonzero(weights[one])} - set(coalition))
    rows, power = [], np.eye(len(weights))
    for _ in range(rounds):
        rows.append(power[heard])
        power = weights @ power
    return np.concatenate(rows)


def audit(plan: Sequence[Weights], colluding: int, rounds: int = 1) -> Exposure | None:
    """The first node that at most `colluding` others can solve for by so many consecutive sums; None if there is none.

    `plan`: the weights of each round, or of one if all are alike. It looks at every coalition: with n nodes, n choose
    `colluding` of them. What a coalition can solve for, a larger one can, too: those that are found are the smallest.
    """
    span = min(rounds, len(plan))
    for size in range(1, colluding + 1):
        for start, window in _windows(plan, span):
            for coalition in combinations(range(len(plan[0])), size):
                found = view(sums(window, coalition), coalition).exposed
                if found:
                    return Exposure(found[0], coalition, start, span)
    return None


def refuse_exposure(plan: Sequence[Weights], colluding: int, rounds: int = 1) -> None:
    """Raise ConfigError unless sums hide each node from `colluding` others, and all sums are of three at least."""
    require(colluding >= 1, f"{colluding} nodes are said to collude; it must be at least 1, who looks at its own sums")
    for round, weights in enumerate(plan):
        for node, row in enumerate(weights):
            others = int(np.count_nonzero(row)) - int(row[node] != 0)
            require(
                others >= _LEAST_NEIGHBOURS,
                f"node {node} has {others} neighbours in round {round}, and the sum of fewer than {_LEAST_NEIGHBOURS} "
                "hides nothing; choose a topology with more",
            )
    found = audit(plan, colluding, rounds)
    require(found is None, f"{found}; choose a topology with more links, or have fewer nodes collude")


def _windows(plan: Sequence[Weights], span: int) -> Iterator[tuple[int, Sequence[Weights]]]:
    """All runs of so many consecutive rounds, with the number of the first."""
    return ((start, plan[start : start + span]) for start in range(len(plan) - span + 1))
