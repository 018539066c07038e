"""One link in use: the session upon it, the asks that wait, the handlers that run."""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, NamedTuple

from p2pfl.errors import (
    LinkError,
    LinkSilent,
    MessageError,
    P2pflError,
    RemoteError,
    RemoteProtocolError,
    RemoteUnready,
)
from p2pfl.link.base import Link
from p2pfl.node.dispatch import HandlerError, Unready
from p2pfl.wire.codec import Body, Incoming
from p2pfl.wire.message import Message
from p2pfl.wire.packet import Packet
from p2pfl.wire.session import (
    Asked,
    Cancelled,
    Credited,
    Failed,
    Farewell,
    Pinged,
    Ponged,
    Replied,
    Session,
    SessionLimits,
    Told,
)  # fmt: skip

if TYPE_CHECKING:
    from p2pfl.node.peer import Peer

__all__ = ["LINK_LOST", "Connection", "Sink"]

Sink = Callable[["Message | P2pflError"], None]
"""Takes the answer to an ask, or why there is none. Called once, unless the ask was cancelled."""
LINK_LOST = "the link was lost"
"""The message of the CancelledError in a handler whose asker may come back and ask again; else there is none."""
_HANDLERS_AT_ONCE = 8
_LINGER_SECONDS = 5.0  # a retired link stays at least so long
_QUIET_BYTES = 16 * 1024  # in that time keepalive brings less than this, a transfer that gets on brings more
_DUPLICATE = "duplicate"  # the reason in the goodbye of a retired link
_ANSWERED = -1  # in place of the number of an ask whose reply has been sent


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
        "_asks", "_condemned", "_due", "_linger", "_peer_retires", "_pulse", "_queue", "_received", "_room", "_running",
        "link", "loop", "peer", "rtt_seconds", "session",
    )  # fmt: skip

    def __init__(self, peer: Peer, link: Link, limits: SessionLimits) -> None:
        self.peer = peer
        self.link = link
        self.loop = asyncio.get_running_loop()
        self.session = Session(self.loop.time(), limits)
        self.rtt_seconds: float | None = None
        self._asks: dict[int, _Ask] = {}
        self._queue: deque[tuple[int | None, Incoming]] = deque()  # arrived, not started; the sessions bound it
        self._running: dict[asyncio.Task[None], int | None] = {}  # handlers, with the number of the ask they answer
        self._room: list[asyncio.Future[None]] = []  # who waits for room to tell or to ask
        self._pulse: asyncio.TimerHandle | None = None  # of the keepalive
        self._due = 0.0  # when the pulse is
        self._received = 0  # bytes that the link had received when the last packet came
        self._linger: asyncio.TimerHandle | None = None  # while retired
        self._peer_retires = False  # whether the peer, too, has said that it uses another link
        self._condemned = False

    def start(self) -> None:
        """Begin to take what comes."""
        self.link.start(self)
        if math.isfinite(self.session.limits.silence_seconds):
            self._due = self.loop.time()
            self._heartbeat()

    # -- sending ---------------------------------------------------------------------------------------------------

    def tell(self, body: Body) -> None:
        """Send a statement, for which there is room. Raises MessageError for one that is over the link's limits."""
        packet = self.session.tell(body)
        try:
            self.link.send(packet)
        except MessageError:
            self.session.tells_left += 1  # the peer never gets it, and gives no credit for it
            raise

    def ask(self, body: Body, reply: type[Message], sink: Sink) -> int:
        """Send an ask, for which there is room; its number. Raises MessageError for one over the link's limits."""
        number, packet = self.session.ask(body)
        try:
            self.link.send(packet)
        except MessageError:
            self.session.withdrawn(number)
            raise
        self._asks[number] = _Ask(body.tag, reply, sink, self.loop.time(), packet)
        return number

    def cancel(self, number: int) -> None:
        """Want the answer no longer; the sink is not called any more. Does nothing for an ask that has ended."""
        ask = self._asks.pop(number, None)
        if ask is None:
            return
        if self.link.withdraw(ask.packet):
            self.session.withdrawn(number)
            self._make_room()
        else:
            self.link.send(self.session.cancel(number))

    def open_asks(self) -> list[tuple[str, float]]:
        """Requests whose replies are waited for, and since when."""
        return [(ask.tag, ask.since) for ask in self._asks.values()]

    async def room(self) -> None:
        """Wait until it is worth looking again: there is room, or this is no longer the connection to send upon."""
        future: asyncio.Future[None] = self.loop.create_future()
        self._room.append(future)
        await future

    def _make_room(self) -> None:
        waiting, self._room = self._room, []
        for future in waiting:
            if not future.done():
                future.set_result(None)

    # -- receiving: the three methods of a Receiver ----------------------------------------------------------------

    def admit(self, head: bytes, sizes: tuple[int, ...]) -> bool:
        """Whether what the peer announces was agreed; see Receiver."""
        return self.peer.dispatch.admit(head, sizes)

    def packet_received(self, packet: Packet) -> None:
        """Take one packet; see Receiver."""
        self._received = self.link.statistics.bytes_received
        match self.session.receive(packet, self.loop.time()):
            case Told(content):
                self._arrived(None, content)
            case Asked(number, content):
                self._arrived(number, content)
            case Replied(number, content):
                self._replied(number, content)
            case Failed(number, reason, unready):
                self._answer(number, reason, RemoteUnready if unready else RemoteError)
            case Cancelled(number):
                self._cancel_handler(number)
            case Credited():
                self._make_room()
            case Pinged(answer):
                self.link.send(answer)
            case Ponged(seconds):
                self.rtt_seconds = seconds
            case Farewell(reason):
                self._farewell(reason)

    def link_closed(self, error: LinkError) -> None:
        """The link has ended; see Receiver."""
        for timer in (self._pulse, self._linger):
            if timer is not None:
                timer.cancel()
        self._cancel_answers()
        self.peer.detached(self, error)
        self._make_room()
        asks, self._asks = self._asks, {}
        for ask in asks.values():
            broken = isinstance(error, RemoteProtocolError)
            ask.sink(RemoteError(self.peer.label, ask.tag, str(error)) if broken else error)
        if isinstance(error, RemoteProtocolError) and not self._condemned:
            self.peer.strike(str(error))

    def _farewell(self, reason: str) -> None:
        if reason == _DUPLICATE:
            self._peer_retires = True
            self.peer.retires(self)
        else:
            self.peer.leaves(self, reason)

    def _replied(self, number: int, content: Incoming) -> None:
        try:
            reply = self.peer.dispatch.checked(self._asks[number].reply, content)
        except RemoteProtocolError as error:
            self._answer(number, str(error))
            self._strike(error)
        else:
            self._answer(number, reply)

    def _answer(self, number: int, answer: Message | str, failure: type[RemoteError] = RemoteError) -> None:
        """Hand over the reply to an ask of ours, or the reason why it failed."""
        ask = self._asks.pop(number)
        ask.sink(failure(self.peer.label, ask.tag, answer) if isinstance(answer, str) else answer)
        if self._room:
            self._make_room()

    # -- handling --------------------------------------------------------------------------------------------------

    @property
    def handlers(self) -> Collection[asyncio.Task[None]]:
        """The handlers that run, on the peer's behalf."""
        return self._running.keys()

    def cancel_handlers(self) -> None:
        """End the handlers that run, and start none of those that wait."""
        self._queue.clear()
        for task in self._running:
            task.cancel()

    def _cancel_answers(self) -> None:
        """Nobody will hear an answer any more. What the peer has told us before it went counts all the same."""
        for task, number in self._running.items():
            if number is not None:
                task.cancel(LINK_LOST)
        queue, self._queue = self._queue, deque()
        for number, content in queue:
            if number is None:
                self._launch(None, content)

    def _arrived(self, number: int | None, content: Incoming) -> None:
        dispatch = self.peer.dispatch
        if number is None and dispatch.prompt(content) and (not self._queue or dispatch.overtakes(content)):
            self._handle_now(content)
        elif len(self._running) < _HANDLERS_AT_ONCE:  # then nothing queues
            self._launch(number, content)
        else:
            self._queue.append((number, content))

    def _handle_now(self, content: Incoming) -> None:
        try:
            self.peer.dispatch.run_now(self.peer, content)
        except RemoteProtocolError as error:
            self._strike(error)
        self._give_credit()

    def _launch(self, number: int | None, content: Incoming) -> None:
        task = self.loop.create_task(self._handle(number, content))
        self._running[task] = number
        task.add_done_callback(self._handled)

    async def _handle(self, number: int | None, content: Incoming) -> None:
        body, reason, unready = None, "", False
        if number is not None:
            await self.link.drain()  # while the peer does not read, it has no further asks handled
        try:
            body = await self.peer.dispatch.run(self.peer, content, asked=number is not None)
        except RemoteProtocolError as error:
            reason = str(error)
            self._strike(error)
        except HandlerError as error:
            reason, unready = str(error), isinstance(error, Unready)
        if number is not None:
            if body is not None and body.buffers:
                await self.link.drain()  # large answers one after the other
            self._send_answer(number, body, reason, unready=unready)
            self._running[asyncio.current_task()] = _ANSWERED  # type: ignore[index]  # a coroutine runs in a task
            await self.link.drain()

    def _send_answer(self, number: int, body: Body | None, reason: str, *, unready: bool) -> None:
        if body is not None:
            try:
                self.link.send(self.session.reply(number, body))
                return
            except MessageError as error:
                reason = f"the reply cannot be sent: {error}"
        self.link.send(self.session.fail(number, reason, unready=unready))

    def _handled(self, task: asyncio.Task[None]) -> None:
        """A handler has ended. It may not have begun: a task can be cancelled before its first step."""
        number = self._running.pop(task)
        if number is None:
            self._give_credit()
        elif task.cancelled() and number != _ANSWERED:
            self.link.send(self.session.fail(number, "cancelled"))
        while self._queue and len(self._running) < _HANDLERS_AT_ONCE:
            self._launch(*self._queue.popleft())

    def _give_credit(self) -> None:
        credit = self.session.handled()
        if credit is not None:
            self.link.send(credit)

    def _cancel_handler(self, number: int) -> None:
        for task, running in self._running.items():
            if running == number:
                task.cancel()
                return
        for index, (waiting, _) in enumerate(self._queue):
            if waiting == number:
                del self._queue[index]
                self.link.send(self.session.fail(number, "cancelled"))
                return

    def _strike(self, error: RemoteProtocolError) -> None:
        self.peer.strike(str(error))

    def condemn(self, error: RemoteProtocolError) -> None:
        """End the link, for violations that have been counted."""
        self._condemned = True
        self.link.abort(error)

    # -- keepalive and the end -------------------------------------------------------------------------------------

    def _heartbeat(self) -> None:
        now, silence = self.loop.time(), self.session.limits.silence_seconds
        if now - self._due > silence / 4:
            self.session.excuse(now)  # this loop was stalled, so the silence may be our own deafness
        try:
            beat = self.session.heartbeat(now, self.link.statistics.bytes_received - self._received)
        except LinkSilent as error:
            self.link.abort(error)
            return
        if beat.packet is not None:
            self.link.send(beat.packet)
        self._due = max(beat.next_at, now + silence / 100)  # a sum that was rounded must not make this spin
        self._pulse = self.loop.call_at(self._due, self._heartbeat)

    def say_goodbye(self, reason: str) -> None:
        """Announce that nothing more will be asked or told. What the peer has asked is still answered."""
        self.link.send(self.session.bye(reason))

    def retire(self) -> None:
        """There is a better link to the same peer. This one closes when nothing is under way on it at either end."""
        if self._linger is None:
            self.say_goodbye(_DUPLICATE)
            self._look_again()
            self._make_room()  # who waits here for room goes over to the other

    def resume(self) -> None:
        """The better link did not last: this is again the one to send upon."""
        if self._linger is not None:
            self._linger.cancel()
            self._linger = None

    def _look_again(self) -> None:
        self._linger = self.loop.call_later(_LINGER_SECONDS, self._close_if_quiet, self.link.statistics.bytes_received)

    def _close_if_quiet(self, received: int) -> None:
        """A goodbye overtakes transfers, hence the look at the bytes. Without one the peer knows of no other link."""
        flowing = self.link.statistics.bytes_received - received > _QUIET_BYTES
        if self._peer_retires and (flowing or self._running or not self.session.idle):
            self._look_again()
        else:
            self.peer.spawn(self.link.close())
