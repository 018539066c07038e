"""Contact with the other nodes of a run: where they were is remembered, and who hears of nobody gives up in the end."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from p2pfl.app.run import RunFolder, RunMark, unfinished
from p2pfl.errors import JournalError, PeersLost
from p2pfl.node.events import Event, PeerJoined, PeerLost
from p2pfl.node.membership import Member
from p2pfl.node.node import Node

__all__ = ["patience", "remember", "remembered"]

log = logging.getLogger("p2pfl.app")
_MOST_ADDRESSES = 16
_PAUSE_SECONDS = 1.0  # in which several changes become one


def remembered(runs: Path, peer: str, name: str = "") -> tuple[str, ...]:
    """Where other nodes were in the last run that this node did not end: who gave us the course may be gone."""
    begun = unfinished(runs, peer, name=name)
    return () if begun is None else begun[1].addresses


async def remember(node: Node, mark: RunMark, folder: RunFolder) -> None:
    """Write down where the others are, whenever that changes. Runs until it is cancelled."""
    while True:
        addresses = tuple(_addresses(node.members, node.id))
        if addresses == mark.addresses:
            await node.change()
            await asyncio.sleep(_PAUSE_SECONDS)
        else:
            mark = replace(mark, addresses=addresses)
            try:
                await asyncio.to_thread(folder.mark, mark)
            except JournalError as error:  # it is for convenience
                log.warning("where other nodes are is not written down: %s", error)


def _addresses(members: Iterable[Member], own: str) -> list[str]:
    found = [address for member in members if member.id != own for address in member.addresses]
    return found[:_MOST_ADDRESSES]


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
