"""Topologies that change from round to round. Every node computes the same graph of a round, without asking anybody.

A `Topology` is itself a schedule, so whatever takes a `Schedule` takes a fixed graph too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from random import Random
from typing import Protocol

from p2pfl.topology.graph import Edge, Topology

__all__ = ["Cycle", "Drawn", "Schedule"]


class Schedule(Protocol):
    """A graph per round: `schedule.at(round).neighbors(seat)`."""

    @property
    def n(self) -> int:
        """The number of seats, the same in all rounds."""

    @property
    def family(self) -> str:
        """What the schedule is called."""

    @property
    def period(self) -> int | None:
        """After how many rounds the graphs repeat; None if they never do."""

    @property
    def union(self) -> Topology:
        """Every link that some round may use: what a node must be able to reach."""

    def at(self, round: int) -> Topology:
        """The graph of a round, counted from 0."""


@dataclass(frozen=True, repr=False)
class Cycle:
    """A fixed sequence of graphs, over and over.

    >>> chain = [Topology.from_edges(3, [(0, 1)]), Topology.from_edges(3, [(1, 2)])]
    >>> Cycle(tuple(chain), "zigzag")
    <Cycle zigzag: 3 seats, period 2>
    """

    rounds: tuple[Topology, ...]
    family: str

    @property
    def n(self) -> int:
        """The number of seats."""
        return self.rounds[0].n

    @property
    def period(self) -> int:
        """The number of graphs."""
        return len(self.rounds)

    @property
    def union(self) -> Topology:
        """The edges of all rounds together, with the names and roles of the first."""
        first = self.rounds[0]
        edges = (edge for topology in self.rounds for edge in topology.edges)
        merged = Topology.from_edges(self.n, edges, directed=first.directed, family=self.family)
        return replace(merged, names=first.names, roles=first.roles)

    def at(self, round: int) -> Topology:
        """The graph of a round, counted from 0."""
        return self.rounds[round % self.period]

    def with_members(self, names: Iterable[str], roles: Iterable[str] | None = None) -> Cycle:
        """The same schedule with a name for every seat and, if given, a role."""
        names, roles = tuple(names), None if roles is None else tuple(roles)
        return replace(self, rounds=tuple(topology.with_members(names, roles) for topology in self.rounds))

    def __repr__(self) -> str:
        return f"<Cycle {self.family}: {self.n} seats, period {self.period}>"


@dataclass(frozen=True, repr=False, eq=False)
class Drawn:
    """A fresh random graph every round, drawn from the seed and the round number alone.

    `union` holds the links that may be drawn, and the names and roles; `draw` gives the edges of one round.
    """

    union: Topology
    draw: Callable[[Random], Iterable[Edge]]
    seed: int = 0
    _recent: dict[int, Topology] = field(default_factory=dict, init=False)

    @property
    def n(self) -> int:
        """The number of seats."""
        return self.union.n

    @property
    def family(self) -> str:
        """What the schedule is called."""
        return self.union.family

    @property
    def period(self) -> None:
        """None: the rounds never repeat."""
        return

    def at(self, round: int) -> Topology:
        """The graph of a round, counted from 0."""
        if round not in self._recent:
            # A string seeds through SHA-512, so that processes agree; hash() of a tuple would not do.
            edges = self.draw(Random(f"{self.family}/{self.seed}/{round}"))
            drawn = Topology.from_edges(self.n, edges, directed=self.union.directed, family=self.family)
            if len(self._recent) == 8:  # many nodes of one process ask for the same few rounds
                del self._recent[min(self._recent)]
            self._recent[round] = replace(drawn, names=self.union.names, roles=self.union.roles)
        return self._recent[round]

    def with_members(self, names: Iterable[str], roles: Iterable[str] | None = None) -> Drawn:
        """The same schedule with a name for every seat and, if given, a role."""
        return Drawn(self.union.with_members(names, roles), self.draw, self.seed)

    def __repr__(self) -> str:
        return f"<Drawn {self.family}: {self.n} seats, anew every round, seed {self.seed}>"
