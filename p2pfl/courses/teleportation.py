"""Teleportation: a few models gossip among themselves, and in each round they are at other nodes.

Y. Takezawa, S. U. Stich: "Scalable Decentralized Learning with Teleportation", ICLR 2025,
https://arxiv.org/abs/2501.15259.

The nodes of a sample stand at positions 0 to s - 1 of a circle, in which each position has `degree` neighbours. Each
node trains; the models are averaged with those of the neighbours; and the model at position q goes to the node at
position q of the next sample. So agreement takes as long as among s nodes, however many there are.

What is kept: all rows and columns of the averaging sum up to one, so the mean of the s models moves by training alone.
A model that is lost with its node is made again from those of its neighbours in the next round; see also sampling.py.

Deviations: averaging and handing over are one message: whoever has trained gives its model to all those positions of
the next sample that average it. The last sample averages over all. Where fewer than s nodes are linked, there are so
many fewer positions. Those who disagree on who is there may give a node models of two positions, of which it makes one.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from torch import Tensor

from p2pfl.courses.sampling import Sampled, SamplingSettings, Trained, sampling
from p2pfl.errors import require
from p2pfl.node.node import Node

__all__ = ["TELEPORTATION", "Carrier", "TeleportationSettings", "circle"]


@dataclass(frozen=True, slots=True)
class TeleportationSettings(SamplingSettings):
    """The table [course] of a course file."""

    name: str = "teleportation"
    degree: int = 2
    """How many neighbours each position has: an even number; as many as there are others, if it is larger than that."""

    def __post_init__(self) -> None:
        SamplingSettings.__post_init__(self)
        fits = self.degree >= 2 and self.degree % 2 == 0
        require(fits, f"course.degree is {self.degree}; it must be an even number, and at least 2")


def circle(position: int, size: int, degree: int) -> list[int]:
    """A position of so many in a circle, and its neighbours: half of `degree` on each side.

    >>> circle(0, 6, 2), circle(4, 6, 4), circle(1, 3, 4)
    ([0, 1, 5], [0, 2, 3, 4, 5], [0, 1, 2])
    """
    reach = range(-(degree // 2), degree // 2 + 1)
    return sorted({(position + step) % size for step in reach})


class Carrier(Sampled):
    """One node."""

    _settings: TeleportationSettings

    async def _hand_over(self, node: Node, round: int, position: int, model: Trained) -> None:
        size = self._size(node, round + 1)
        last = round + 1 == self._stop
        targets = [0] if last else circle(position % size, size, self._settings.degree)
        async with asyncio.TaskGroup() as group:
            for target in targets:
                group.create_task(self._carry(node, target, round, model))

    async def _carry(self, node: Node, position: int, round: int, model: Trained) -> None:
        """To whoever stands there, and if it does not answer, to who stands there without it."""
        mute: set[int] = set()
        while others := [seat for seat in self._order(node, round + 1) if seat not in mute]:
            seat = others[position % len(others)]
            if await self._give(node, seat, position, round, model):
                return
            mute.add(seat)

    def _size(self, node: Node, round: int) -> int:
        return max(1, min(self._settings.sample, len(self._order(node, round))))

    def _is_past(self, round: int) -> bool:
        """Other models may be some rounds ahead of ours, and have to wait for it."""
        return round < max(self._worked, self._known - self._settings.sample)

    def _givers(self, node: Node, round: int, position: int) -> list[int]:
        size = self._size(node, round)
        all_of_them = round + 1 == self._stop
        positions = range(size) if all_of_them else circle(position % size, size, self._settings.degree)
        order = self._order(node, round)
        return [order[at] for at in positions]

    async def _go_on(self, node: Node, round: int, params: Tensor, position: int) -> None:
        self._take_on(node, round, params, position)


TELEPORTATION = sampling("teleportation", TeleportationSettings, Carrier)
