"""Keeping links up to those whom the node wants: dial, wait for the loss, pause a random while, dial again."""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Callable, Collection
from contextlib import suppress
from functools import cached_property
from typing import TYPE_CHECKING

from p2pfl.errors import ConfigError, LinkError, LinkToSelf
from p2pfl.link.base import Tunnelling
from p2pfl.node.events import PeerUnreached

if TYPE_CHECKING:
    from p2pfl.link.base import Link
    from p2pfl.node.membership import Member
    from p2pfl.node.node import Node
    from p2pfl.node.peer import Peer

__all__ = ["Backoff", "Dialler"]


class Backoff:
    """Full-jitter exponential back-off: each pause is uniform between 0 and a bound that doubles up to `most`.

    M. Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015,
    https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/
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
        """All went well for a while."""
        self._bound = self._first


class Dialler:
    """One task for each address or peer that is wanted."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._over = False

    @cached_property
    def _rng(self) -> random.Random:
        """Of two kilobytes, so only for a node that dials."""
        return random.Random(self._node.id)

    def want_address(self, address: str) -> None:
        """Keep a link to whoever answers there. Our own address is passed over: all hosts may be given one list."""
        if address not in self._node.addresses:
            self._want(address, lambda: (address,), None)

    def want_peer(self, member: Member) -> None:
        """Keep a link to a peer of the membership table, if it can be dialled: there, or through others."""

        def addresses() -> tuple[str, ...]:
            known = self._node.members.get(member.id)
            return known.addresses if known else ()

        if member.addresses or isinstance(self._node.transport, Tunnelling):
            self._want(member.id, addresses, member.id)

    def cancel(self) -> Collection[asyncio.Task[None]]:
        """Dial nobody any more; the tasks that end now."""
        self._over = True
        tasks, self._tasks = self._tasks, {}
        for task in tasks.values():
            task.cancel()
        return tasks.values()

    def _want(self, key: str, addresses: Callable[[], tuple[str, ...]], peer_id: str | None) -> None:
        if key not in self._tasks and not self._over:  # a handler may run on while the node stops
            self._tasks[key] = asyncio.get_running_loop().create_task(
                self._keep(addresses, peer_id), name=f"dial {key}"
            )

    async def _keep(self, addresses: Callable[[], tuple[str, ...]], peer_id: str | None) -> None:
        settings = self._node.settings
        backoff = Backoff(settings.backoff_first_seconds, settings.backoff_most_seconds, self._rng)
        if peer_id is not None and self._yields(peer_id, addresses()):
            await asyncio.sleep(settings.yield_dial_seconds)  # the smaller id dials; we only if it cannot
        turn = 0
        while True:
            if peer_id is not None and self._node.peer(peer_id).connected and await self._lost(peer_id, backoff):
                continue
            choice = addresses() if peer_id is None else (*addresses(), *self._ways(peer_id))
            try:
                link = await self._dial(choice[turn % len(choice)], peer_id, backoff) if choice else None
            except LinkToSelf:
                return
            turn += 1
            if link is not None:
                peer_id, turn = link.remote, 0
                self._node.accept(link)
            if not choice or (link is not None and not self._node.peer(link.remote).connected):
                await asyncio.sleep(backoff.next())  # there is nobody to dial, or we did not want the link after all

    async def _dial(self, address: str, peer_id: str | None, backoff: Backoff) -> Link | None:
        """A link, or None after a pause. Raises LinkToSelf for an address that we were given and that is our own."""
        peer = None if peer_id is None else self._node.peer(peer_id)
        try:
            if peer is not None:
                peer.check_quarantine()
            return await self._node.relay.dial(address, peer_id)
        except LinkToSelf as error:
            pause = math.inf if peer_id is None else backoff.next()
            self._node.emit(PeerUnreached(address, str(error), pause))
            if peer_id is None:
                raise
        except (LinkError, ConfigError) as error:  # an address that is none may be hearsay
            pause = max(backoff.next(), 0.0 if peer is None else peer.quarantine_seconds)
            self._node.emit(PeerUnreached(address, str(error), pause))
        await asyncio.sleep(pause)
        return None

    def _yields(self, peer_id: str, addresses: Collection[str]) -> bool:
        """Whether the peer should dial, if it wants to: who can do so straight, and else the smaller id."""
        if bool(addresses) != bool(self._node.addresses):
            return not addresses
        return peer_id < self._node.id

    def _ways(self, peer_id: str) -> Collection[str]:
        """Where a peer is reached through others: nowhere while there is a link that has not served its time."""
        peer = self._node.peer(peer_id)
        linked = peer.connected and peer.renew_at > asyncio.get_running_loop().time()
        return () if linked else self._node.relay.ways(peer_id)

    async def _lost(self, peer_id: str, backoff: Backoff) -> bool:
        """Wait until the peer is not linked, and then a while: all who lost it would dial at once.

        False: it is linked, and the time for a new link has come, or for one that needs nobody between. The old one
        serves on until nothing is open on it.
        """
        loop, peer = asyncio.get_running_loop(), self._node.peer(peer_id)
        since = loop.time()
        while peer.connected:
            again_at = min(peer.renew_at, self._straight_at(peer, since))
            if again_at <= loop.time():
                return False
            with suppress(TimeoutError):
                async with asyncio.timeout_at(again_at if math.isfinite(again_at) else None):
                    await peer.gone()
        if loop.time() - since > self._node.settings.backoff_most_seconds:
            backoff.reset()  # only now: who takes links and ends them at once is not to be dialled without end
        await asyncio.sleep(backoff.next())
        return True

    def _straight_at(self, peer: Peer, since: float) -> float:
        """When to dial a peer that is linked through others since then: it may have got an address."""
        return since + self._node.settings.direct_seconds if peer.connection().link.relay else math.inf
