"""Where to draw the seats: the same place every time, within the unit circle."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from p2pfl.topology.fixed import grid, torus
from p2pfl.topology.graph import Topology

__all__ = ["Points", "layout"]

Points = npt.NDArray[np.float64]  # n × 2, x to the right and y down, within the unit circle


def layout(topology: Topology) -> Points:
    """Places for all seats: trees spread from their root, what looks alike from every seat on a circle, grids as grids,
    and everything else such that distances on paper come near to hops.
    """
    if topology.is_tree:
        return _fit(_line(topology.n) if max(map(len, topology.adjacency)) <= 2 else _radial(topology))
    if topology.n <= 8 or _turns(topology):
        return _circle(topology.n)
    for columns in (c for c in range(2, topology.n // 2 + 1) if topology.n % c == 0):
        for family, bow in ((grid, 0.0), (torus, 0.3)):
            if topology.adjacency == family(topology.n, topology.n // columns).adjacency:
                return _fit(_rectangle(topology.n, columns, bow))
    return _fit(_stress(_hops(topology), _circle(topology.n)))


def _fit(points: Points) -> Points:
    points = points - (points.max(0) + points.min(0)) / 2
    radius = float(np.sqrt((points**2).sum(1)).max())
    return points / radius if radius else points


def _line(n: int) -> Points:
    return np.array([(seat, 0.0) for seat in range(n)])


def _circle(n: int) -> Points:
    angles = np.arange(n) * math.tau / n - math.pi / 2  # seat 0 at the top, then clockwise
    return np.stack([np.cos(angles), np.sin(angles)], 1) if n > 1 else np.zeros((1, 2))


def _rectangle(n: int, columns: int, bow: float) -> Points:
    """Rows and columns; bowed, so that the links between the two ends of a torus's row do not hide in it."""
    down, right = np.divmod(np.arange(n, dtype=np.float64), columns)
    lift = np.sin(math.pi * right / (columns - 1))
    push = np.sin(math.pi * down / (n // columns - 1))
    return np.stack([right + bow * push, down - bow * lift], 1)


def _turns(topology: Topology) -> bool:
    """Whether the graph is the same after every seat moved up by one."""
    n = topology.n
    return all(
        topology.adjacency[(seat + 1) % n] == tuple(sorted((other + 1) % n for other in others))
        for seat, others in enumerate(topology.adjacency)
    )


def _radial(topology: Topology) -> Points:
    """Seat 0 in the middle, its descendants on rings round it, each in a sector as wide as it has leaves."""
    order = list(topology.distances(0).items())
    leaves = dict.fromkeys(range(topology.n), 0)
    for seat, _ in reversed(order):
        leaves[seat] = leaves[seat] or 1
        above = topology.parent(seat)
        if above is not None:
            leaves[above] += leaves[seat]
    points = np.zeros((topology.n, 2))
    sector = {0: (0.0, math.tau)}
    for seat, depth in order:
        start, width = sector[seat]
        angle = start + width / 2 - math.pi / 2
        points[seat] = depth * math.cos(angle), depth * math.sin(angle)
        for child in topology.children(seat):
            share = width * leaves[child] / leaves[seat]
            sector[child] = (start, share)
            start += share
    return points


def _hops(topology: Topology) -> Points:
    two_way = Topology.from_edges(topology.n, topology.edges)
    hops = np.full((topology.n, topology.n), 0.0)
    for seat in range(topology.n):
        for other, distance in two_way.distances(seat).items():
            hops[seat, other] = distance
    hops[(hops == 0) & ~np.eye(topology.n, dtype=bool)] = hops.max() + 1  # parts that do not hang together
    return hops


def _stress(hops: Points, start: Points, steps: int = 200) -> Points:
    """Stress majorization (E. Gansner, Y. Koren, S. North: "Graph Drawing by Stress Majorization", 2004).

    Each step lowers the sum over pairs of (distance on paper - hops)² / hops².
    """
    away = ~np.eye(len(hops), dtype=bool)
    weights = np.zeros_like(hops)
    weights[away] = hops[away] ** -2
    inverse = np.linalg.pinv(np.diag(weights.sum(1)) - weights)
    points = start * hops.max() / 2
    for _ in range(steps):
        apart = np.sqrt(((points[:, None] - points[None]) ** 2).sum(2)).clip(1e-6)
        pull = -weights * hops / apart
        np.fill_diagonal(pull, 0)
        np.fill_diagonal(pull, -pull.sum(1))
        points = inverse @ (pull @ points)
    found: Points = points
    return found
