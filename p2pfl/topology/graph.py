"""Who may talk to whom: `Topology`, an immutable graph over the seats 0 .. n-1.

Pure Python, because every node imports it. Matrices are in `mixing`, drawings in `draw`.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise

from p2pfl.errors import ConfigError

__all__ = ["Edge", "Topology"]

Edge = tuple[int, int]


@dataclass(frozen=True, repr=False)
class Topology:
    """A graph over `n` seats, as a value: `adjacency[seat]` holds the seats that `seat` sends to, in rising order.

    A seat is a place in the graph; which node sits there is decided elsewhere. `names` and `roles` are empty or have
    one entry per seat. `rows` holds the mixing weights that a few families prescribe, one per entry of `adjacency`.

    >>> square = Topology.from_edges(4, [(0, 1), (1, 2), (2, 3), (3, 0)], family="ring")
    >>> square
    <Topology ring: 4 seats, 4 edges, degree 2>
    >>> square.neighbors(0)
    (1, 3)

    Raises ConfigError for edges, names or roles that do not fit the seats.
    """

    adjacency: tuple[tuple[int, ...], ...]
    directed: bool = False
    family: str = "custom"
    names: tuple[str, ...] = ()
    roles: tuple[str, ...] = ()
    rows: tuple[tuple[float, ...], ...] = ()

    def __post_init__(self) -> None:
        if not self.adjacency:
            raise ConfigError("n must be at least 1: a topology without seats connects nobody")
        for field, values in (("names", self.names), ("roles", self.roles), ("rows", self.rows)):
            if values and len(values) != self.n:
                raise ConfigError(f"{field} must have one entry for each of the {self.n} seats, and has {len(values)}")
        if len(set(self.names)) != len(self.names):
            twice = next(name for name in self.names if self.names.count(name) > 1)
            raise ConfigError(f"names must differ, and {twice!r} stands at two seats: rename one of them")
        last: tuple[int, ...] | None = None
        for seat, others in enumerate(self.adjacency):
            if others is not last or seat in others:  # the clients of a large star share one tuple
                self._check_seat(seat, others)
            last = others

    def _check_seat(self, seat: int, others: tuple[int, ...]) -> None:
        if any(a >= b for a, b in pairwise(others)) or seat in others:
            raise ConfigError(f"the neighbors of seat {seat} must be distinct, rising, and not {seat} itself")
        if others and not 0 <= others[0] <= others[-1] < self.n:
            raise ConfigError(f"seat {seat} has a neighbor outside 0..{self.n - 1}: {others}")

    @classmethod
    def from_edges(
        cls,
        n: int,
        edges: Iterable[Edge],
        *,
        directed: bool = False,
        family: str = "custom",
        roles: tuple[str, ...] = (),
    ) -> Topology:
        """Build from pairs of seats; loops are dropped and repeated edges merged. Undirected edges count both ways."""
        others: list[set[int]] = [set() for _ in range(n)]
        for a, b in edges:
            if not (0 <= a < n and 0 <= b < n):
                raise ConfigError(f"edge ({a}, {b}) leaves the seats 0..{n - 1}: raise n or drop the edge")
            others[a].add(b)
            if not directed:
                others[b].add(a)
        adjacency = tuple(tuple(sorted(found - {seat})) for seat, found in enumerate(others))
        return cls(adjacency, directed, family, roles=roles)

    @property
    def n(self) -> int:
        """The number of seats."""
        return len(self.adjacency)

    def neighbors(self, seat: int) -> tuple[int, ...]:
        """The seats that `seat` sends to."""
        return self.adjacency[seat]

    def senders(self, seat: int) -> tuple[int, ...]:
        """The seats that send to `seat`; the same as its neighbors unless the topology is directed."""
        return self._senders[seat] if self.directed else self.adjacency[seat]

    @cached_property
    def _senders(self) -> tuple[tuple[int, ...], ...]:
        found: list[list[int]] = [[] for _ in self.adjacency]
        for seat, others in enumerate(self.adjacency):
            for other in others:
                found[other].append(seat)
        return tuple(map(tuple, found))

    def degree(self, seat: int) -> int:
        """How many seats `seat` sends to."""
        return len(self.adjacency[seat])

    @cached_property
    def edges(self) -> tuple[Edge, ...]:
        """Every edge once: as (sender, receiver) if directed, else with the lower seat first."""
        pairs = ((a, b) for a, others in enumerate(self.adjacency) for b in others)
        return tuple((a, b) for a, b in pairs if self.directed or a < b)

    def name(self, seat: int) -> str:
        """What the seat is called; its number unless names were given."""
        return self.names[seat] if self.names else str(seat)

    def role(self, seat: int) -> str:
        """What the seat is for: "server", "edge", "client" ...; "peer" unless roles were given."""
        return self.roles[seat] if self.roles else "peer"

    @cached_property
    def is_symmetric(self) -> bool:
        """Whether every edge is answered by one in the other direction."""
        return not self.directed or all(self.senders(seat) == self.neighbors(seat) for seat in range(self.n))

    @cached_property
    def is_connected(self) -> bool:
        """Whether what any seat sends can reach all others, along the direction of the edges."""
        reached = len(self.distances(0)) == self.n
        return reached and (not self.directed or len(self._walk(0, self._senders)) == self.n)

    def distances(self, seat: int) -> dict[int, int]:
        """Hops from `seat` to every seat that can be reached from it, nearest first.

        >>> Topology.from_edges(3, [(0, 1), (1, 2)]).distances(0)
        {0: 0, 1: 1, 2: 2}
        """
        return self._walk(seat, self.adjacency)

    @staticmethod
    def _walk(start: int, adjacency: tuple[tuple[int, ...], ...]) -> dict[int, int]:
        hops = {start: 0}
        queue = deque([start])
        while queue:
            seat = queue.popleft()
            for other in adjacency[seat]:
                if other not in hops:
                    hops[other] = hops[seat] + 1
                    queue.append(other)
        return hops

    @property
    def is_tree(self) -> bool:
        """Whether there is exactly one path between any two seats: what `parent` and `children` need."""
        return self.is_symmetric and self.is_connected and sum(map(len, self.adjacency)) == 2 * (self.n - 1)

    @cached_property
    def _parents(self) -> tuple[int | None, ...]:
        if not self.is_tree:
            raise ConfigError(
                f"topology {self.family!r} has no parents and children: choose a tree, a star or a hierarchy"
            )
        hops = self.distances(0)
        return (None, *(min(self.adjacency[seat], key=hops.__getitem__) for seat in range(1, self.n)))

    def parent(self, seat: int) -> int | None:
        """The neighbor towards seat 0, the root; None for the root. Raises ConfigError if this is no tree."""
        return self._parents[seat]

    def children(self, seat: int) -> tuple[int, ...]:
        """The neighbors away from seat 0, the root. Raises ConfigError if this is no tree."""
        return tuple(other for other in self.adjacency[seat] if other != self._parents[seat])

    def with_members(self, names: Iterable[str], roles: Iterable[str] | None = None) -> Topology:
        """The same graph with a name for every seat and, if given, a role."""
        return replace(self, names=tuple(names), roles=self.roles if roles is None else tuple(roles))

    def with_rows(self, rows: Iterable[Mapping[int, float]]) -> Topology:
        """The same graph with prescribed mixing weights: `rows[seat][other]`, for every neighbor of every seat."""
        aligned = (tuple(row[other] for other in self.adjacency[seat]) for seat, row in enumerate(rows))
        return replace(self, rows=tuple(aligned))

    @cached_property
    def fingerprint(self) -> str:
        """16 hex digits that are equal for equal graphs, on every machine.

        Members of a run compare it: a random family drawn with another version of networkx may be another graph.
        """
        lines = ";".join(",".join(map(str, others)) for others in self.adjacency)
        return hashlib.sha256(lines.encode()).hexdigest()[:16]

    # A topology is also the simplest schedule: the same graph in every round (see `schedule`).

    @property
    def period(self) -> int:
        """One: every round is like the last."""
        return 1

    @property
    def union(self) -> Topology:
        """Every link that some round may use: this very graph."""
        return self

    def at(self, round: int) -> Topology:
        """The graph of a round: this very graph."""
        return self

    def __repr__(self) -> str:
        degrees = sorted({len(others) for others in self.adjacency})
        degree = f"{degrees[0]}" if len(degrees) == 1 else f"{degrees[0]}..{degrees[-1]}"
        arcs = sum(map(len, self.adjacency))
        edges = f"{arcs} directed edges" if self.directed else f"{arcs // 2} edges"
        broken = "" if self.is_connected else ", not connected"
        return f"<Topology {self.family}: {self.n} seats, {edges}, degree {degree}{broken}>"
