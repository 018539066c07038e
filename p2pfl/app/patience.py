"""Who hears of no other node for long gives up, so that whoever started it hears of that."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from p2pfl.errors import PeersLost
from p2pfl.node.events import Event, PeerJoined, PeerLost
from p2pfl.node.node import Node

__all__ = ["patience"]


@asynccontextmanager
async def patience(node: Node, seconds: float, *, resuming: bool) -> AsyncIterator[None]:
    """Raise PeersLost in the block once there has been no link to anybody for so long; 0: never.

    Before the first link there is no hurry, unless this node is `resuming`.
    """
    expired = False
    try:
        async with asyncio.timeout(seconds if seconds and resuming else None) as limit:
            solitude = _Solitude(node, limit, seconds)
            if seconds:
                node.observe(solitude)
            try:
                yield
            finally:
                solitude.over = True
                expired = limit.expired()
    except TimeoutError as error:
        if not expired:
            raise
        raise PeersLost(
            f"there was no link to any node of the course for {seconds:g} s; what was committed is safe: "
            "start this command again once they are back"
        ) from error


@dataclass(slots=True, eq=False)
class _Solitude:
    """Lets the time run while there is nobody."""

    node: Node
    limit: asyncio.Timeout
    seconds: float
    over: bool = False

    def push(self, event: Event) -> None:
        if self.over:
            return
        if isinstance(event, PeerJoined):
            self.limit.reschedule(None)
        elif isinstance(event, PeerLost) and not self.node.peers:
            self.limit.reschedule(asyncio.get_running_loop().time() + self.seconds)

    def finish(self) -> None:
        self.over = True
