"""Where the other nodes of a run were, for the time after a restart."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from p2pfl.app.run import RunFolder, RunMark, unfinished
from p2pfl.errors import JournalError
from p2pfl.node.membership import Member
from p2pfl.node.node import Node

__all__ = ["remember", "remembered"]

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
