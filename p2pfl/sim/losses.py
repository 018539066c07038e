"""Connections that break at random: what is under way is lost, and both ends are told."""

from __future__ import annotations

import asyncio
from random import Random
from weakref import ref

from p2pfl.link.memory import MemoryLink

__all__ = ["Losses"]


class Losses:
    """To be told of each new link. Every link lasts for an exponential time, whatever happens on it."""

    def __init__(self, mean_seconds: float, seed: int) -> None:
        self._rate = 1 / mean_seconds
        self._seed = seed
        self._rng: Random | None = None  # once there is a link

    def __call__(self, link: MemoryLink) -> None:
        """A link was made. On the running loop."""
        loop = asyncio.get_running_loop()
        if self._rng is None:
            self._rng = Random(f"{self._seed}/loss/{loop.time()}")  # a world that goes on from a checkpoint differs
        # By a weak reference: most links have ended by then, and there may be a hundred thousand of them.
        loop.call_later(self._rng.expovariate(self._rate), _cut, ref(link))


def _cut(link: ref[MemoryLink]) -> None:
    if (there := link()) is not None:
        there.cut("a random loss")
