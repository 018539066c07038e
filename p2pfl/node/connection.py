"""One link in use: the session upon it, the asks that wait, the handlers that run."""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from p2pfl.errors import LinkClosed, LinkError, LinkSilent, P2pflError, RemoteError, RemoteProtocolError
from p2pfl.link.base import Link
from p2pfl.node.dispatch import HandlerError
from p2pfl.wire.codec import Body, Incoming
from p2pfl.wire.message import Message
from p2pfl.wire.packet import Packet
from p2pfl.wire.session import (
    Asked, Cancelled, Credited, Failed, Farewell, Pinged, Ponged, Replied, Session, SessionLimits, Told,
)  # fmt: skip

if TYPE_CHECKING:
    from p2pfl.node.peer import Peer

__all__ = ["Connection", "Sink"]

Sink = Callable[["Message | P2pflError"], None]
"""Takes the answer to an ask, or why there is none. Called once, unless the ask was cancelled."""
_HANDLERS_AT_ONCE = 8
_RETIRE_SECONDS = 5.0


class _Ask(NamedTuple):
    """An ask of ours that is open."""

    tag: str
    reply: type[Message]
    sink: Sink
    since: float
    packet: Packet




class Connection:
    """The node's end of one link. Messages of the peer are started in the order in which they came, a few at a time."""

    __slots__ = (
        "_asks", "_due", "_peer_leaves", "_queue", "_retiring", "_room", "_running", "_timer", "link", "loop",
        "peer", "rtt_seconds", "session",
    )  # fmt: skip

    def __init__(self, peer: Peer, link: Link, limits: SessionLimits) -> None:
        self.peer = peer
        self.link = link
        self.loop = asyncio.get_running_loop()
        self.session = Session(self.loop.time(), limits)
        self.rtt_seconds: float | None = None
        self._asks: dict[int, _Ask] = {}
        self._queue: deque[tuple[int | None, Incoming]] = deque()  # arrived, not started; the sessions bound it
        self._running: dict[asyncio.Task[None], int | None] = {}
        self._room: list[asyncio.Future[None]] = []  # who waits for credit
        self._timer: asyncio.TimerHandle | None = None
        self._due = 0.0
        self._retiring = False
        self._peer_leaves = False

    def start(self) -> None:
        self.link.start(self)
        if math.isfinite(self.session.limits.silence_seconds):
            self._due = self.loop.time()
            self._heartbeat()

    # -- sending ---------------------------------------------------------------------------------------------------

    async def tell(self, body: Body) -> None:
        """Send a statement; waits while the peer is behind. Raises the LinkError of a link that ended."""
        while not self.session.tells_left:
            await self._more_room()
        self.tell_now(body)
        await self.link.drain()

    def tell_now(self, body: Body) -> None:
        """Send a statement, for which there is room."""
        self.link.send(self.session.tell(body))

    async def room_to_ask(self) -> None:
        """Wait while as many asks are open as the peer takes. Raises the LinkError of a link that ended."""
        while not self.session.asks_left:
            await self._more_room()

    def ask(self, body: Body, reply: type[Message], sink: Sink) -> int:
        """Send an ask, for which there is room; its number."""
        number, packet = self.session.ask(body)
        self._asks[number] = _Ask(body.tag, reply, sink, self.loop.time(), packet)
        self.link.send(packet)
        return number

    def cancel(self, number: int) -> None:
        """Want the answer no longer; the sink is not called any more."""
        ask = self._asks.pop(number, None)
        if ask is not None:
            self.link.withdraw(ask.packet)
            self.link.send(self.session.cancel(number))

    def open_asks(self) -> list[tuple[str, float]]:
        """Requests whose replies are waited for, and since when."""
        return [(ask.tag, ask.since) for ask in self._asks.values()]

    async def _more_room(self) -> None:
        future: asyncio.Future[None] = self.loop.create_future()
        self._room.append(future)
        await future

    # -- receiving: the three methods of a Receiver ----------------------------------------------------------------

    def admit(self, head: bytes, sizes: tuple[int, ...]) -> tuple[memoryview, ...]:
        return self.peer.dispatch.admit(head, sizes)

    def packet_received(self, packet: Packet) -> None:
        event = self.session.receive(packet, self.loop.time())
        match event:
            case Told(content):
                self._arrived(None, content)
            case Asked(number, content):
                self._arrived(number, content)
            case Replied(number, content):
                self._answered(number, content)
                self._make_room()
            case Failed(number, reason):
                ask = self._asks.pop(number)
                ask.sink(RemoteError(self.peer.label, ask.tag, reason))
                self._make_room()
            case Cancelled(number):
                self._cancel_handler(number)
            case Credited():
                self._make_room()
            case Pinged(answer):
                self.link.send(answer)
            case Ponged(seconds):
                self.rtt_seconds = seconds
            case Farewell(reason):
                self._peer_leaves = True
                self.peer.leaving(self, reason)
        if self._retiring:
            self._close_if_idle()

    def link_closed(self, error: LinkError) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._queue.clear()
        for task in self._running:
            task.cancel()
        self._make_room(error)
        asks, self._asks = self._asks, {}
        for ask in asks.values():
            ask.sink(error)
        self.peer.detached(self, error)

    def _answered(self, number: int, content: Incoming) -> None:
        ask = self._asks.pop(number)
        try:
            ask.sink(self.peer.dispatch.checked(ask.reply, content))
        except RemoteProtocolError as error:
            ask.sink(error)
            self._strike(error)

    def _make_room(self, error: LinkError | None = None) -> None:
        waiting, self._room = self._room, []
        for future in waiting:
            if not future.done():
                future.set_exception(error) if error else future.set_result(None)

    # -- handling --------------------------------------------------------------------------------------------------

    def _arrived(self, number: int | None, content: Incoming) -> None:
        if len(self._running) < _HANDLERS_AT_ONCE and not self._queue:
            self._launch(number, content)
        else:
            self._queue.append((number, content))

    def _launch(self, number: int | None, content: Incoming) -> None:
        task = self.loop.create_task(self._handle(number, content))
        self._running[task] = number
        task.add_done_callback(self._handled)

    def _handled(self, task: asyncio.Task[None]) -> None:
        number = self._running.pop(task)
        if task.cancelled() and number is not None:  # here, because a task may be cancelled before its first step
            self.link.send(self.session.fail(number, "cancelled"))
        while self._queue and len(self._running) < _HANDLERS_AT_ONCE:
            self._launch(*self._queue.popleft())
        if self._retiring:
            self._close_if_idle()

    async def _handle(self, number: int | None, content: Incoming) -> None:
        failed = None
        try:
            body = await self.peer.dispatch.run(self.peer, content)
        except RemoteProtocolError as error:
            failed = str(error)
            self._strike(error)
        except HandlerError as error:
            failed = str(error)
        if number is None:
            credit = self.session.handled()
            if credit is not None:
                self.link.send(credit)
        elif failed is not None or body is None:
            self.link.send(self.session.fail(number, failed or f"{content.tag} is no request here"))
        else:
            self.link.send(self.session.reply(number, body))

    def _cancel_handler(self, number: int) -> None:
        for task, running in self._running.items():
            if running == number:
                task.cancel()
                return
        for waiting in self._queue:
            if waiting[0] == number:
                self._queue.remove(waiting)
                self.link.send(self.session.fail(number, "cancelled"))
                return

    def _strike(self, error: RemoteProtocolError) -> None:
        if self.peer.strike(str(error)):
            self.link.abort(RemoteProtocolError(f"too many violations, the last: {error}"))

    # -- keepalive and the end -------------------------------------------------------------------------------------

    def _heartbeat(self) -> None:
        now = self.loop.time()
        if now - self._due > self.session.limits.silence_seconds / 4:
            self.session.excuse(now)  # this loop was stalled, so the silence may be our own deafness
        try:
            beat = self.session.heartbeat(now)
        except LinkSilent as error:
            self.link.abort(error)
            return
        if beat.packet is not None:
            self.link.send(beat.packet)
        self._due = beat.next_at
        self._timer = self.loop.call_at(beat.next_at, self._heartbeat)

    def retire(self, reason: str) -> None:
        """Ask and tell no more; close as soon as neither end has anything open, and soon in any case."""
        if not self._retiring:
            self._retiring = True
            self.link.send(self.session.bye(reason))
            self.loop.call_later(_RETIRE_SECONDS, self.link.abort, LinkClosed(reason))
            self._close_if_idle()

    def _close_if_idle(self) -> None:
        if self._peer_leaves and self.session.idle and not self._running:
            self.peer.spawn(self.link.close())

    async def finish(self, reason: str) -> None:
        """Say goodbye, let running handlers end, close the link. The caller bounds the time."""
        if not self.session.said_bye:
            self.link.send(self.session.bye(reason))
        while self._running:
            await asyncio.wait(self._running)
        await self.link.close()

    def cancel_handlers(self) -> None:
        self._queue.clear()
        for task in self._running:
            task.cancel()
