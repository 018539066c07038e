"""What one node of a gossip solves for: everybody's input, from the models that its neighbours have sent it in time.

As long as nodes only mix, x(t) = W^t x(0), whatever a node hears is linear in the inputs, with weights that all know.
A. El Mrini, E. Cyffers, A. Bellet: "Privacy Attacks in Decentralized Learning", ICML 2024,
https://arxiv.org/abs/2402.10001, the attack on gossip averaging: solve for them. Noise is what stops it.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from p2pfl.topology.graph import Topology
from p2pfl.topology.mixing import Matrix, mixing_matrix

__all__ = ["Solved", "solve", "view"]

_TOLERANCE = 1e-6


def view(graph: Topology, seat: int, rounds: int, rule: str = "default") -> Matrix:
    """With which weights inputs are in what a seat knows: its own, then what each neighbour sends, round by round.

    Neighbours are in the order of their seats; in the first round they send their inputs. (1 + rounds * degree, n).
    """
    mixing, power = mixing_matrix(graph, rule), np.eye(graph.n)
    rows = [power[[seat]]]
    for _ in range(rounds):
        rows.append(power[list(graph.senders(seat))])
        power = mixing @ power
    return np.concatenate(rows)


class Solved(NamedTuple):
    """What the messages determine."""

    inputs: Matrix
    """(n, ...): of least norm, where they are not determined."""
    known: frozenset[int]
    """The seats whose inputs are determined, that of who looks among them."""
    rank: int
    """How many independent combinations of all inputs are known."""


def solve(weights: Matrix, messages: Matrix) -> Solved:
    """The inputs (n, ...) of `messages` (messages, ...) that are `weights` (messages, n) times them, as of `view`.

    By least squares: exact without noise. With noise the error is no bound on what can be known; see privacy/views.py.
    """
    found, _, rank, _ = np.linalg.lstsq(weights, messages.reshape(len(messages), -1), rcond=_TOLERANCE)
    shown = np.linalg.pinv(weights, rcond=_TOLERANCE) @ weights  # a projection: 1 where an input is determined
    known = frozenset(np.flatnonzero(np.diag(shown) > 1 - _TOLERANCE).tolist())
    inputs = found.astype(np.float64, copy=False).reshape(weights.shape[1], *messages.shape[1:])
    return Solved(inputs, known, int(rank))
