"""Takes the nodes of a world offline and back, as their availability says."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterator

from p2pfl.link.memory import MemoryNetwork
from p2pfl.sim.availability import Availability, Spell
from p2pfl.sim.network import Network

__all__ = ["Presence"]


class Presence:
    """Has a timer for each node that is ever offline."""

    def __init__(self, availability: Availability, memory: MemoryNetwork, wire: Network) -> None:
        self._availability = availability
        self._memory = memory
        self._wire = wire
        self._timers: dict[str, asyncio.TimerHandle] = {}

    def online(self, seat: int) -> bool:
        """Whether the node of this seat, which may not have been made, would be online now."""
        return self._availability.online(seat, asyncio.get_running_loop().time())

    def begin(self, seat: int, peer_id: str) -> None:
        """From now on this node comes and goes."""
        self.end(peer_id)
        if self._availability.moves(seat):
            now, spells = asyncio.get_running_loop().time(), self._availability.spells(seat)
            spell = next(spell for spell in spells if spell[1] > now)
            self._turn(peer_id, spell, spells)

    def end(self, peer_id: str) -> None:
        """This node comes and goes no more."""
        if (timer := self._timers.pop(peer_id, None)) is not None:
            timer.cancel()
        self._memory.bring_online(peer_id)

    def close(self) -> None:
        """Nobody comes and goes any more."""
        for timer in self._timers.values():
            timer.cancel()

    def _turn(self, peer_id: str, spell: Spell, spells: Iterator[Spell]) -> None:
        online, until = spell
        if online:
            self._memory.bring_online(peer_id)
        else:
            self._memory.take_offline(peer_id)
            self._wire.forget(peer_id)
        if until < math.inf:
            self._timers[peer_id] = asyncio.get_running_loop().call_at(until, self._turn, peer_id, next(spells), spells)
