"""Requests to many peers, the same to all or one to each, and their replies in the order in which they arrive."""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Coroutine, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Generic, Self, TypeGuard, TypeVar, cast

from p2pfl.errors import LinkClosed, LinkError, P2pflError, RemoteUnready
from p2pfl.node.connection import Connection
from p2pfl.node.peer import Peer
from p2pfl.wire.codec import Body, encode
from p2pfl.wire.message import Message, Request, reply_type

if TYPE_CHECKING:
    from p2pfl.node.node import Node

__all__ = ["Replies"]

_PROGRESS_BYTES = 1 << 18  # between two losses: then a large transfer gets on
ReplyT = TypeVar("ReplyT", bound=Message)


class Replies(Generic[ReplyT]):
    """`async with node.ask_all(peers, request) as replies: async for peer, reply in replies: ...`

    The loop ends when every peer has replied or failed. Leaving the block cancels what is still open, at both ends.
    `failed` holds the error of each peer that did not reply so far: a lost link, or a handler that raised.

    Who is lost without a goodbye, or has been before, is waited for, `rejoin_seconds` long, and asked again when it is
    back: its handler may see one request several times.
    """

    def __init__(self, node: Node, requests: Mapping[Peer, Request[ReplyT]], rejoin_seconds: float = 0.0) -> None:
        """`requests`: all of one type. One that goes to many is encoded once."""
        self.failed: dict[Peer, P2pflError] = {}
        self.waiting: set[Peer] = set(requests)  # asked, neither replied nor failed
        self._node = node
        self._rejoin_seconds = rejoin_seconds
        self._requests = requests
        self._bodies: dict[int, Body] = {}  # by the id of the request
        self._reply: type[Message] = Message  # if nobody is asked
        for request in requests.values():
            self._reply = reply_type(type(request))
            break
        self._open: dict[Peer, tuple[Connection, int]] = {}
        self._arrived: deque[tuple[Peer, ReplyT]] = deque()
        self._more: asyncio.Future[None] | None = None  # made by a loop that waits
        self._behind: set[asyncio.Task[None]] = set()  # asks that wait for room at their peer, or for its return
        self._patience: dict[Peer, tuple[float, int]] = {}  # until when who was lost is waited for; bytes so far
        self._over = False

    async def __aenter__(self) -> Self:
        try:
            for peer in sorted(self.waiting, key=lambda peer: (peer.seat is None, peer.seat, peer.id)):
                self._begin(peer, self._body(peer))
        except P2pflError:
            self._cancel()
            raise
        self._node.watch_waits()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._cancel()
        if self._behind:
            await asyncio.wait(self._behind)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> tuple[Peer, ReplyT]:
        while not self._arrived:
            if not self.waiting or self._over:
                raise StopAsyncIteration
            self._more = asyncio.get_running_loop().create_future()
            await self._more
        return self._arrived.popleft()

    def _body(self, peer: Peer) -> Body:
        """What that peer is asked, encoded."""
        request = self._requests[peer]
        if (body := self._bodies.get(id(request))) is None:
            body = self._bodies[id(request)] = encode(request)
        return body

    def _begin(self, peer: Peer, body: Body) -> None:
        try:
            connection = peer.connection()
        except LinkError as error:
            if self._rejoin_seconds and peer.lost_at is not None:
                self._later(self._ask_again(peer, error, self._until(peer)))
            else:
                self._settle(peer, error)
        else:
            if connection.session.asks_left:
                self._ask(peer, connection, body)
            else:
                self._later(self._ask_later(peer, body))

    def _ask(self, peer: Peer, connection: Connection, body: Body) -> None:
        def sink(result: Message | P2pflError) -> None:
            del self._open[peer]
            if self._rejoin_seconds and _may_come_back(result):
                self._later(self._ask_again(peer, result, self._until(peer)))
            else:
                self._settle(peer, result)

        self._open[peer] = connection, connection.ask(body, self._reply, sink)

    def _later(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._behind.add(task)
        task.add_done_callback(self._behind.discard)

    async def _ask_later(self, peer: Peer, body: Body) -> None:
        try:
            self._ask(peer, await peer.room_to_ask(), body)
        except P2pflError as error:
            self._settle(peer, error)

    def _until(self, peer: Peer) -> float:
        """Until when it is waited for. Who is lost again and again, and has not got on, is not waited for anew."""
        now, counts = asyncio.get_running_loop().time(), peer.counts()
        moved = counts.bytes_sent + counts.bytes_received
        until, before = self._patience.get(peer, (-math.inf, 0))
        if now > until + self._rejoin_seconds or moved >= before + _PROGRESS_BYTES:
            until = now + self._rejoin_seconds
        self._patience[peer] = until, moved
        return until

    async def _ask_again(self, peer: Peer, error: LinkError | RemoteUnready, until: float) -> None:
        """Once it is back. One that is linked and not ready yet says in the membership table when it is."""
        try:
            async with asyncio.timeout_at(until):
                if isinstance(error, RemoteUnready):
                    await self._node.change()
                while not peer.connected:
                    await self._node.change()
        except TimeoutError:
            self._settle(peer, error)
        else:
            await self._ask_later(peer, self._body(peer))

    def _settle(self, peer: Peer, result: Message | P2pflError) -> None:
        self.waiting.discard(peer)
        if isinstance(result, P2pflError):
            self.failed[peer] = result
        else:
            self._arrived.append((peer, cast("ReplyT", result)))
        if self._more is not None and not self._more.done():
            self._more.set_result(None)

    def _cancel(self) -> None:
        self._over = True
        self._rejoin_seconds = 0.0
        for task in self._behind:
            task.cancel()
        for connection, number in self._open.values():
            connection.cancel(number)
        self._open.clear()


def _may_come_back(result: Message | P2pflError) -> TypeGuard[LinkError | RemoteUnready]:
    """Whether an ask ended because a peer is cut off, or has only just come back: not if it said goodbye."""
    return isinstance(result, (LinkError, RemoteUnready)) and not isinstance(result, LinkClosed)
