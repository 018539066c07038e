"""Keeping links up to those whom the node wants: dial, wait for the loss, pause a random while, dial again."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import TYPE_CHECKING

from p2pfl.errors import LinkError, LinkRefused
from p2pfl.node.events import PeerUnreached

if TYPE_CHECKING:
    from p2pfl.node.membership import Member
    from p2pfl.node.node import Node

__all__ = ["Backoff", "Dialler"]


class Backoff:
    """Full-jitter exponential back-off: each pause is uniform between 0 and a bound that doubles up to `most`.

    M. Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015.
    """

    def __init__(self, first: float, most: float, rng: random.Random) -> None:
        self._first, self._most, self._rng = first, most, rng
        self._bound = first

    def next(self) -> float:
        """Seconds to pause before the next try."""
        pause = self._rng.uniform(0, self._bound)
        self._bound = min(self._most, 2 * self._bound)
        return pause

    def reset(self) -> None:
        """The last try succeeded."""
        self._bound = self._first


class Dialler:
    """One task for each address or peer that is wanted."""

    def __init__(self, node: Node, rng: random.Random) -> None:
        self._node = node
        self._rng = rng
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def want_address(self, address: str) -> None:
        """Keep a link to whoever answers there."""
        if address not in self._tasks:
            self._start(address, self._keep(lambda: (address,), None))

    def want_peer(self, member: Member) -> None:
        """Keep a link to a peer whose addresses the membership table has."""
        if member.id not in self._tasks:

            def addresses() -> tuple[str, ...]:
                known = self._node.members.get(member.id)
                return known.addresses if known else ()

            self._start(member.id, self._keep(addresses, member.id))

    def _start(self, key: str, work: asyncio.Future[None] | object) -> None:
        self._tasks[key] = asyncio.get_running_loop().create_task(work, name=f"dial {key}")  # type: ignore[arg-type]  # a coroutine

    async def stop(self) -> None:
        """Dial nobody any more."""
        tasks, self._tasks = self._tasks, {}
        for task in tasks.values():
            task.cancel()
        if tasks:
            await asyncio.wait(tasks.values())

    async def _keep(self, addresses: Callable[[], tuple[str, ...]], peer_id: str | None) -> None:
        settings = self._node.settings
        backoff = Backoff(settings.backoff_first_seconds, settings.backoff_most_seconds, self._rng)
        if peer_id is not None and peer_id < self._node.id and self._node.members.own.addresses:
            await asyncio.sleep(settings.yield_dial_seconds)  # the smaller id dials; we only if it cannot
        tried = 0
        while True:
            if peer_id is not None:
                await self._node.peer(peer_id).gone()
            choice = addresses()
            if choice:
                address = choice[tried % len(choice)]
                tried += 1
                try:
                    link = await self._node.transport.dial(address, peer_id)
                except LinkRefused as error:
                    if peer_id is None:
                        self._node.emit(PeerUnreached(address, str(error), 0.0))
                        return  # it is our own address, or nobody wants us there: not a matter of patience
                    pause = backoff.next()
                except LinkError as error:
                    pause = backoff.next()
                    self._node.emit(PeerUnreached(address, str(error), pause))
                else:
                    backoff.reset()
                    peer_id = link.remote
                    self._node.accept(link)
                    continue
            else:
                pause = backoff.next()
            await asyncio.sleep(pause)
