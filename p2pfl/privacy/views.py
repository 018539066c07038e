"""What somebody learns who sees several messages that are linear in the inputs, with Gaussian noise that they share.

    view = signals @ inputs + noises @ z,    z ~ N(0, I) unknown to who looks

For one node, whose input changes by at most `sensitivity`, the whole view is one Gaussian mechanism with
mu² = sensitivity² m^T (N N^T)^+ m, m being its column of the signals; infinite if some combination of messages shows m
without noise. Rounds with fresh noise add up their mu²; see gaussian.py. One accountant for local noise, for a
coordinator's, and for noise that cancels between neighbours:

Y. Allouah, A. Koloskova, A. El Firdoussi, M. Jaggi, R. Guerraoui: "The Privacy Power of Correlated Noise in
Decentralized Learning" (DECOR), ICML 2024, https://arxiv.org/abs/2405.01031. Deviation: mu is that of the exact
covariance, not of its bound by the algebraic connectivity.

What is gossiped on with one draw of noise must go in as the joint view that it is: the sum of what each message shows
alone is no upper bound.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from itertools import combinations

import numpy as np
import numpy.typing as npt

from p2pfl.topology.graph import Topology

__all__ = ["correlated_mu", "view_mu", "worst_mu"]

Matrix = npt.NDArray[np.float64]

_TOLERANCE = 1e-9  # of what is left of a signal that the noise reaches
_MOST_WORK = 1e9  # multiplications: about a second


def view_mu(signal: Matrix, noises: Matrix, sensitivity: float = 1.0) -> float:
    """mu of the node whose input enters the messages as `signal` (messages,); `noises` is (messages, draws).

    >>> view_mu(np.array([1.0, 1.0]), np.eye(2))  # the same input twice, with a draw for each
    1.4142135623730951
    """
    size = float(np.linalg.norm(signal))
    if size == 0:
        return 0.0
    if not noises.size:
        return math.inf
    draws, *_ = np.linalg.lstsq(noises, signal, rcond=None)
    if np.linalg.norm(noises @ draws - signal) > _TOLERANCE * size:
        return math.inf
    return sensitivity * float(np.linalg.norm(draws))


def correlated_mu(
    graph: Topology, independent: float, correlated: float, colluders: Collection[int] = ()
) -> dict[int, float]:
    """mu of each honest seat in a round in which each node sends one update, with noise of its own and of each link.

    `independent` and `correlated`: standard deviations, as multiples of the sensitivity. The noise of a link is added
    at one end and subtracted at the other. Who looks sees all messages, and knows what the colluders know.
    """
    honest = [each for each in range(graph.n) if each not in colluders]
    covariance = independent**2 * np.eye(len(honest))
    places = {each: place for place, each in enumerate(honest)}
    for one, place in places.items():
        for other in graph.neighbors(one):
            if other in places:
                covariance[place, place] += correlated**2
                covariance[place, places[other]] -= correlated**2
    squares = np.diag(np.linalg.inv(covariance))
    return {each: math.sqrt(float(squares[place])) for each, place in places.items()}


def worst_mu(graph: Topology, independent: float, correlated: float, colluders: int) -> tuple[float, ...]:
    """The largest mu of each seat over all coalitions of so many others, if need be by way of an upper bound.

    Who may be all alone among the honest has its independent noise only. Where there are too many coalitions to try,
    everybody is taken to be.
    """
    alone = 1 / independent
    worst = [alone if len(graph.neighbors(seat)) <= colluders else 0.0 for seat in range(graph.n)]
    if min(worst) == alone or math.comb(graph.n, colluders) * graph.n**3 > _MOST_WORK:
        return (alone,) * graph.n
    for coalition in combinations(range(graph.n), colluders):
        for seat, mu in correlated_mu(graph, independent, correlated, coalition).items():
            worst[seat] = max(worst[seat], mu)
    return tuple(worst)
