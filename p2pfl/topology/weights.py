"""How much a node gives to what it hears: mixing rows that need only what neighbors tell about themselves.

A row is a dict of the *others'* weights; one's own share is always the rest (`own_weight`). So a row sums to one by
construction, also when messages are missing: weights of messages that did not come fall back to oneself.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Hashable, Mapping
from typing import Literal, TypeVar

from p2pfl.topology.graph import Topology

__all__ = [
    "Missing",
    "constant_weights",
    "metropolis_weights",
    "own_weight",
    "push_sum_share",
    "received_weights",
    "target_weights",
    "topology_weights",
    "uniform_weights",
]

Key = TypeVar("Key", bound=Hashable)
Missing = Literal["self", "renormalise"]
"""Who gets the weight of what did not come; see `received_weights`."""


def own_weight(row: Mapping[Key, float]) -> float:
    """What remains for oneself.

    >>> own_weight({"ann": 0.25, "bob": 0.25})
    0.5
    """
    return 1.0 - math.fsum(row.values())


def metropolis_weights(own_degree: int, degrees: Mapping[Key, int], *, lazy: bool = False) -> dict[Key, float]:
    """Metropolis-Hastings: 1 / (1 + the larger of the two degrees). Both ends of a link get the same weight, so the
    mean of all is kept. `lazy` halves them, which makes all eigenvalues non-negative (D² needs it).

    L. Xiao, S. Boyd, S.-J. Kim: "Distributed average consensus with least-mean-square deviation", JPDC 67 (2007).

    >>> metropolis_weights(2, {"ann": 3, "bob": 1})
    {'ann': 0.25, 'bob': 0.3333333333333333}
    """
    share = 0.5 if lazy else 1.0
    return {other: share / (1 + max(own_degree, degree)) for other, degree in degrees.items()}


def uniform_weights(neighbors: Collection[Key]) -> dict[Key, float]:
    """The plain average of oneself and all neighbors. Keeps the mean only where all degrees are equal: elsewhere all
    agree on a mean weighted by degree + 1. See `metropolis_weights`.
    """
    return dict.fromkeys(neighbors, 1 / (1 + len(neighbors)))


def constant_weights(neighbors: Collection[Key], weight: float) -> dict[Key, float]:
    """One weight for every link of the network, such as 1 / (1 + largest degree) or `mixing.best_constant`."""
    return dict.fromkeys(neighbors, weight)


def target_weights(own_degree: int, own_mass: float, others: Mapping[Key, tuple[int, float]]) -> dict[Key, float]:
    """Weights whose limit is the mean weighted by mass, such as numbers of examples.

    `others` holds degree and mass of every neighbor; masses are positive, in any common unit.

    >>> target_weights(1, 10, {"ann": (1, 30)})
    {'ann': 0.5}
    >>> target_weights(1, 30, {"ann": (1, 10)})
    {'ann': 0.16666666666666666}
    """
    own = 1 / (1 + own_degree)
    return {other: min(own, mass / own_mass / (1 + degree)) for other, (degree, mass) in others.items()}


def push_sum_share(out_degree: int) -> float:
    """What a sender on a directed graph gives to each receiver, and keeps for itself, of both value and weight.

    D. Kempe, A. Dobra, J. Gehrke: "Gossip-based computation of aggregate information", FOCS 2003.
    """
    return 1 / (1 + out_degree)


def received_weights(
    row: Mapping[Key, float], received: Collection[Key], missing: Missing = "self"
) -> dict[Key, float]:
    """The row for a round in which only the neighbors in `received` were heard.

    "self" gives the missing weight to oneself, which keeps the mean if both ends of a link missed each other;
    "renormalise" scales the others up, which moves faster and keeps no mean.

    >>> row = {"ann": 0.25, "bob": 0.25}
    >>> received_weights(row, {"ann"})
    {'ann': 0.25}
    >>> received_weights(row, {"ann"}, "renormalise")
    {'ann': 0.3333333333333333}
    """
    heard = {other: weight for other, weight in row.items() if other in received}
    if missing == "self":
        return heard
    total = own_weight(row) + math.fsum(heard.values())
    # Without a share of one's own and with nobody heard, there is nothing to scale: one keeps what one has.
    return {other: weight / total for other, weight in heard.items()} if heard else {}


def topology_weights(topology: Topology, seat: int) -> dict[int, float]:
    """The row of a seat where the whole graph is known: what the family prescribes, else Metropolis.

    On a directed graph: the plain average of what arrives.
    """
    if topology.rows:
        return dict(zip(topology.neighbors(seat), topology.rows[seat], strict=True))
    if not topology.is_symmetric:
        return uniform_weights(topology.senders(seat))
    return metropolis_weights(
        topology.degree(seat), {other: topology.degree(other) for other in topology.neighbors(seat)}
    )
