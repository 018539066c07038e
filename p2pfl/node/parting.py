"""The end of a node's links: handlers end, goodbyes are said, and what does not end in time is ended."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress
from typing import Any

from p2pfl.errors import LinkError
from p2pfl.link.base import Listener
from p2pfl.node.connection import Connection
from p2pfl.node.settings import NodeSettings

__all__ = ["part"]


async def part(
    doors: Iterable[Listener],
    connections: Sequence[Connection],
    orphans: Collection[asyncio.Task[None]],
    ending: Iterable[asyncio.Task[Any]],
    settings: NodeSettings,
) -> None:
    """Close the doors and the connections.

    Handlers, `orphans` of ended links among them, may run on for `drain_seconds`; they, and the tasks that are `ending`
    already, have `close_seconds` more once they have been cancelled. To cancel this ends the links at once.
    """
    try:
        for door in doors:
            await door.close()
        for connection in connections:
            connection.say_goodbye("the node stops")
        with suppress(TimeoutError):
            async with asyncio.timeout(settings.drain_seconds):
                while handlers := [*_handlers(connections), *orphans]:
                    await asyncio.wait(handlers)
        _cancel(connections, orphans)
        late = [*_handlers(connections), *orphans, *(task for task in ending if not task.done())]
        if not connections and not late:
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(settings.close_seconds), asyncio.TaskGroup() as group:
                for connection in connections:
                    group.create_task(connection.link.close())
                if late:
                    await asyncio.wait(late)
    finally:
        _cancel(connections, orphans)
        for connection in connections:
            connection.link.abort(LinkError("the node has stopped"))


def _cancel(connections: Iterable[Connection], orphans: Iterable[asyncio.Task[None]]) -> None:
    for connection in connections:
        connection.cancel_handlers()
    for task in orphans:
        task.cancel()


def _handlers(connections: Iterable[Connection]) -> list[asyncio.Task[None]]:
    return [task for connection in connections for task in connection.handlers]
