"""`[nodes]` of a course file: who trains otherwise than [train] says, such as less on a slow device.

    [nodes.3.train]           # seat 3; "1-4" and "1,3,5-8" are several, and a name is a group of metrics.groups
    epochs = 1

Nothing here needs torch.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import msgspec

from p2pfl.errors import require
from p2pfl.learn.specs import TrainSpec

__all__ = ["NodeSpec", "TrainSpecs"]

Seats = tuple[range, ...]
Groups = Mapping[str, Sequence[int]]


@dataclass(frozen=True, slots=True)
class NodeSpec:
    """The table [nodes.SEATS] of a course file."""

    train: dict[str, Any] = field(default_factory=dict)
    """Values that hold for these seats in place of those of [train]."""


@dataclass(frozen=True, slots=True)
class TrainSpecs:
    """How each seat trains."""

    general: TrainSpec
    others: Mapping[str, tuple[Seats, TrainSpec]] = field(default_factory=dict)
    """By the name of their table."""

    @classmethod
    def of(cls, train: TrainSpec, nodes: Mapping[str, NodeSpec], groups: Groups) -> TrainSpecs:
        """From the tables [train], [nodes] and [metrics.groups].

        Raises ConfigError for seats that cannot be read, or of which two tables speak: nothing says which one holds.
        """
        others = {}
        for name, node in nodes.items():
            own = msgspec.convert({**msgspec.to_builtins(train), **node.train}, TrainSpec, strict=True)
            others[name] = (_seats_of(name, groups), own)
        for (name, (seats, _)), (other, (more, _)) in combinations(others.items(), 2):
            both = {max(a.start, b.start) for a in seats for b in more if a.start < b.stop and b.start < a.stop}
            require(not both, f"nodes.{name} and nodes.{other} both have seat {min(both, default=0)}; leave one out")
        return cls(train, others)

    @property
    def different(self) -> tuple[TrainSpec, ...]:
        """All ways to train that there are."""
        return self.general, *(own for _, own in self.others.values())

    def check(self, holders: Sequence[int]) -> None:
        """Raises ConfigError for a table with a seat that is not among those who hold examples."""
        held = holders if isinstance(holders, range) else frozenset(holders)
        for name, (seats, _) in self.others.items():
            idle = next((seat for some in seats for seat in some if seat not in held), None)
            require(idle is None, f"nodes.{name} has seat {idle}, which holds no examples; leave it out")

    def __getitem__(self, seat: int) -> TrainSpec:
        found = (own for seats, own in self.others.values() if any(seat in some for some in seats))
        return next(found, self.general)


def _seats_of(name: str, groups: Groups) -> Seats:
    """The seats that a table of [nodes] is for."""
    if name in groups:
        return tuple(range(seat, seat + 1) for seat in groups[name])
    parts = [re.fullmatch(r"(\d+)(?:-(\d+))?", part.strip(), re.ASCII) for part in name.split(",")]
    spans = [(int(part[1]), int(part[2] or part[1])) for part in parts if part is not None]
    known = len(spans) == len(parts) and all(first <= last for first, last in spans)
    require(
        known, f"nodes.{name} names no seats; write a seat, as in [nodes.3.train], 1-4, or a group of metrics.groups"
    )
    return tuple(range(first, last + 1) for first, last in spans)
