"""One end of a tunnel: a socket whose messages a third node carries, in both directions within bounds of memory.

Each end may have `window` bytes under way, and one message beyond them; the other end makes room by telling what it has
taken out. So a reader that is slow stops its writer, and what waits in between, at the node that carries, is bounded.
"""

from __future__ import annotations

import asyncio
from typing import Protocol

from p2pfl.errors import LinkError, LinkTruncated
from p2pfl.link.base import CloseCode

__all__ = ["MAX_CARRIED", "MESSAGE_COST", "MOST_WINDOW", "TunnelSocket", "Way", "cost"]

MAX_CARRIED = 256 * 1024  # bytes of one message; a sealed link makes them of 100,000 bytes and one record more
MESSAGE_COST = 1024  # bytes that each message counts beside its own: what it takes to keep it
MOST_WINDOW = 1 << 24  # bytes, whatever the node that carries would allow


def cost(message: bytes | bytearray | memoryview) -> int:
    """What a message takes of the window.

    >>> cost(b"abc")
    1027
    """
    return len(message) + MESSAGE_COST


class Way(Protocol):
    """How the end of a tunnel reaches the node that carries. All raise LinkError once that is not linked."""

    async def carry(self, number: int, message: bytes | bytearray) -> None:
        """Have message `number` carried to the other end, waiting for room."""

    async def make_room(self, size: int) -> None:
        """Tell the other end that `size` more bytes were taken out of the tunnel."""

    async def end(self, code: CloseCode) -> None:
        """Tell the other end that there is no tunnel any more."""


class TunnelSocket:
    """A MessageSocket. Messages are numbered: on a link, a short one may overtake a long one."""

    def __init__(self, way: Way, window: int) -> None:
        self._way = way
        self._window = window
        self._under_way = 0  # bytes sent, and not taken out yet
        self._sent = 0  # messages
        self._arrived: dict[int, memoryview] = {}  # by number
        self._held = 0  # bytes of them, and of those taken out that the other end has not been told of
        self._taken = 0  # the latter
        self._next = 0  # number of the message that is received next
        self._error: LinkError | None = None  # once ended
        self._changed = asyncio.Event()

    async def send(self, message: bytes | bytearray) -> None:
        """Send one message, waiting for room; see MessageSocket."""
        while self._under_way >= self._window and self._error is None:
            await self._change()
        if self._error is not None:
            raise self._error
        number, self._sent = self._sent, self._sent + 1
        self._under_way += cost(message)
        await self._way.carry(number, message)

    async def receive(self) -> memoryview:
        """The next message; see MessageSocket."""
        while self._next not in self._arrived:
            if self._error is not None:
                raise self._error
            await self._change()
        message = self._arrived.pop(self._next)
        self._next += 1
        self._taken += cost(message)
        if 2 * self._taken >= self._window and self._error is None:
            taken, self._taken = self._taken, 0
            self._held -= taken
            await self._way.make_room(taken)
        return message

    async def close(self, code: CloseCode) -> None:
        """End the tunnel; see MessageSocket."""
        if self._error is None:
            self.ended(LinkTruncated("the tunnel was closed at this end"))
            await self._way.end(code)

    def cut(self) -> None:
        """Nothing waits here to be sent; see MessageSocket."""

    # -- for the node, when something has come over the way ---------------------------------------------------------

    def arrived(self, number: int, message: memoryview) -> None:
        """A message of the other end. One that must not come ends the tunnel."""
        if number < self._next or number in self._arrived or self._held >= self._window:
            self.ended(LinkTruncated("a message came through the tunnel twice, or in excess of its window"))
        if self._error is None:
            self._arrived[number] = message
            self._held += cost(message)
            self._changed.set()

    def room_made(self, size: int) -> None:
        """The other end has taken so many bytes out."""
        self._under_way = max(0, self._under_way - size)
        self._changed.set()

    def ended(self, error: LinkError) -> None:
        """There is no tunnel any more. What has arrived can still be received."""
        if self._error is None:
            self._error = error
            self._changed.set()

    async def _change(self) -> None:
        self._changed.clear()
        await self._changed.wait()

    def __repr__(self) -> str:
        state = "open" if self._error is None else type(self._error).__name__
        return f"<TunnelSocket {state}, {self._sent} sent, {self._next} received>"
