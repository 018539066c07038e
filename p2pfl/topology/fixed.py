"""Graphs that are given by a rule: the same for everybody, without a seed. Roots and hubs sit at seat 0."""

from __future__ import annotations

import math
from itertools import combinations, pairwise

from p2pfl.errors import ConfigError
from p2pfl.topology.graph import Edge, Topology

__all__ = [
    "adjacency",
    "bipartite",
    "chain",
    "clustered",
    "double_binary_tree",
    "edge_list",
    "exponential",
    "full",
    "grid",
    "hierarchy",
    "hypercube",
    "latency",
    "ring",
    "star",
    "torus",
    "tree",
]


def chain(n: int) -> Topology:
    """A line: the slowest of all graphs to agree."""
    return Topology.from_edges(n, pairwise(range(n)), family="chain")


def ring(n: int) -> Topology:
    """A circle: degree 2 whatever the size.

    >>> ring(5).neighbors(0)
    (1, 4)
    """
    return Topology.from_edges(n, ((i, (i + 1) % n) for i in range(n)), family="ring")


def star(n: int) -> Topology:
    """A server at seat 0 and n - 1 clients."""
    roles = ("server",) + ("client",) * (n - 1)
    adjacency = (tuple(range(1, n)), *(((0,),) * (n - 1)))  # one tuple for all clients: there may be a million
    return Topology(adjacency, family="star", roles=roles)


def full(n: int) -> Topology:
    """Everybody with everybody: exact in one round, at n - 1 messages per seat."""
    return Topology.from_edges(n, combinations(range(n), 2), family="full")


def _rows(family: str, n: int, rows: int | None) -> int:
    """Check `rows`, or choose the rows of the most nearly square rectangle of n seats."""
    if rows is None:
        rows = max(r for r in range(1, math.isqrt(n) + 1) if n % r == 0)
        if rows == 1:
            raise ConfigError(
                f"n = {n} makes no rectangle for family {family!r}: choose an n such as {(n + 1) // 2 * 2}"
            )
    if rows < 2 or n % rows or n // rows < 2:
        raise ConfigError(
            f"rows = {rows} does not cut n = {n} into a rectangle: choose a divisor of n between 2 and n / 2"
        )
    return rows


def grid(n: int, rows: int | None = None) -> Topology:
    """A rectangle of `rows` rows, as square as possible unless given; seats count along the rows."""
    columns = n // _rows("grid", n, rows)
    right = ((i, i + 1) for i in range(n) if (i + 1) % columns)
    down = ((i, i + columns) for i in range(n - columns))
    return Topology.from_edges(n, (*right, *down), family="grid")


def torus(n: int, rows: int | None = None) -> Topology:
    """A grid whose opposite sides meet: degree 4, mixes in O(n) rounds where a ring needs O(n²)."""
    columns = n // _rows("torus", n, rows)
    right = ((i, i - i % columns + (i + 1) % columns) for i in range(n))
    down = ((i, (i + columns) % n) for i in range(n))
    return Topology.from_edges(n, (*right, *down), family="torus")


def hypercube(n: int) -> Topology:
    """Seats whose numbers differ in one bit: degree log2 n. `n` must be a power of two."""
    bits = n.bit_length() - 1
    if n != 1 << bits:
        raise ConfigError(f"n = {n} makes no hypercube: choose n = {1 << bits} or n = {2 << bits}")
    return Topology.from_edges(n, ((i, i ^ (1 << bit)) for i in range(n) for bit in range(bits)), family="hypercube")


def tree(n: int, arity: int = 2) -> Topology:
    """A tree with `arity` children per seat, filled level by level from the root at seat 0."""
    if arity < 1:
        raise ConfigError(f"arity = {arity} leaves the root without children: choose at least 1")
    return Topology.from_edges(n, (((i - 1) // arity, i) for i in range(1, n)), family="tree")


def binary_trees(n: int) -> tuple[list[Edge], list[Edge]]:
    """Edges of two spanning binary trees such that (almost) every inner seat of the one is a leaf of the other.

    P. Sanders, J. Speck, J. L. Träff: "Two-tree algorithms for full bandwidth broadcast, reduction and scan", Parallel
    Computing 35 (2009). The first tree orders seats by their lowest set bit; the second mirrors (n even) or shifts it.
    """
    first: list[Edge] = []
    for seat in range(1, n):
        bit = seat & -seat
        above = (seat ^ bit) | (bit << 1)
        first.append((above if above < n else seat ^ bit, seat))
    second = [(n - 1 - a, n - 1 - b) if n % 2 == 0 else ((a + 1) % n, (b + 1) % n) for a, b in first]
    return first, second


def double_binary_tree(n: int) -> Topology:
    """Two spanning binary trees that share the load: degree at most 4, diameter O(log n)."""
    first, second = binary_trees(n)
    return Topology.from_edges(n, first + second, family="double-binary-tree")


def clustered(n: int, size: int = 4) -> Topology:
    """Cliques of `size` seats in a circle, one link between two that follow ("connected caveman"): a social network."""
    if not 2 <= size <= n:
        raise ConfigError(f"size = {size} makes no clusters of n = {n}: choose a size between 2 and n")
    count = n // size
    cuts = [n * c // count for c in range(count + 1)]  # sizes differ by one at most where size does not divide n
    cliques = (pair for a, b in pairwise(cuts) for pair in combinations(range(a, b), 2))
    bridges = ((end - 1, end % n) for end in cuts[1:]) if count > 1 else ()
    return Topology.from_edges(n, (*cliques, *bridges), family="clustered")


def bipartite(n: int, degree: int | None = None) -> Topology:
    """Even seats ("active") with odd seats ("passive"): pairwise averaging on it cannot deadlock (AD-PSGD).

    Complete unless `degree` is given; then seat i meets i ± 1, i ± 3 ... round the circle, which needs an even n.
    """
    roles = tuple("passive" if i % 2 else "active" for i in range(n))
    if degree is None:
        pairs = ((i, j) for i in range(0, n, 2) for j in range(1, n, 2))
        return Topology.from_edges(n, pairs, family="bipartite", roles=roles)
    if n % 2 or not 1 <= degree <= n // 2:
        raise ConfigError(f"degree = {degree} does not fit n = {n}: choose an even n and a degree between 1 and n / 2")
    steps = [step * sign for step in range(1, n, 2) for sign in (1, -1)][:degree]
    pairs = ((i, (i + step) % n) for i in range(0, n, 2) for step in steps)
    return Topology.from_edges(n, pairs, family="bipartite", roles=roles)


def exponential(n: int) -> Topology:
    """Directed: seat i sends to i + 1, i + 2, i + 4 ... round the circle; mixes in O(log n) rounds.

    B. Ying et al.: "Exponential Graph is Provably Efficient for Decentralized Deep Training", NeurIPS 2021,
    https://arxiv.org/abs/2110.13363.
    """
    hops = [1 << k for k in range((n - 1).bit_length())]
    edges = ((i, (i + hop) % n) for i in range(n) for hop in hops)
    return Topology.from_edges(n, edges, directed=True, family="exponential")


def hierarchy(n: int, edges: int = 2) -> Topology:
    """A server at seat 0, then `edges` relays, then the clients, dealt to the relays in equal runs.

    >>> cloud = hierarchy(7, edges=2)
    >>> cloud.children(0), cloud.children(1), cloud.parent(6)
    ((1, 2), (3, 4), 2)
    """
    clients = n - 1 - edges
    if edges < 1 or clients < edges:
        raise ConfigError(f"edges = {edges} does not fit n = {n}: a server, the edges and a client for each are needed")
    relays = ((0, relay) for relay in range(1, edges + 1))
    leaves = ((1 + c * edges // clients, 1 + edges + c) for c in range(clients))
    roles = ("server",) + ("edge",) * edges + ("client",) * clients
    return Topology.from_edges(n, (*relays, *leaves), family="hierarchy", roles=roles)


def edge_list(n: int, edges: list[tuple[int, int]], directed: bool = False) -> Topology:
    """Just these edges, as pairs of seats."""
    return Topology.from_edges(n, edges, directed=directed, family="edges")


def adjacency(n: int, matrix: list[list[int]]) -> Topology:
    """An n × n matrix of 0 and 1; row i holds whom seat i sends to. Directed unless the matrix is symmetric."""
    if len(matrix) != n or any(len(row) != n or not set(row) <= {0, 1} for row in matrix):
        raise ConfigError(f"matrix must have {n} rows of {n} numbers, each 0 or 1, to fit n = {n}")
    directed = any(matrix[i][j] != matrix[j][i] for i in range(n) for j in range(i))
    found = ((i, j) for i in range(n) for j in range(n) if matrix[i][j])
    return Topology.from_edges(n, found, directed=directed, family="adjacency")


def latency(n: int, latency_ms: list[list[float]], nearest: int = 3) -> Topology:
    """Every seat with its `nearest` others by latency, and the minimum spanning tree, so that all hang together.

    `latency_ms` is n × n, in milliseconds; of two directions the slower counts. Ties go to the lower seat.
    """
    if len(latency_ms) != n or any(len(row) != n for row in latency_ms):
        raise ConfigError(f"latency_ms must have {n} rows of {n} numbers to fit n = {n}")
    if not all(0 <= delay < math.inf for row in latency_ms for delay in row):
        raise ConfigError("latency_ms must hold finite numbers of milliseconds, none of them negative")
    if not 0 <= nearest < n:
        raise ConfigError(f"nearest = {nearest} does not fit n = {n}: choose between 0 and n - 1")
    import networkx as nx  # noqa: PLC0415 - slow to import, and nodes do without

    delay = [[max(latency_ms[i][j], latency_ms[j][i]) for j in range(n)] for i in range(n)]
    graph = nx.Graph()
    graph.add_nodes_from(range(n))
    graph.add_weighted_edges_from((i, j, delay[i][j]) for i, j in combinations(range(n), 2))
    backbone = list(nx.minimum_spanning_edges(graph, data=False))
    close = [(i, j) for i in range(n) for j in sorted(set(range(n)) - {i}, key=lambda j: delay[i][j])[:nearest]]
    return Topology.from_edges(n, backbone + close, family="latency")
