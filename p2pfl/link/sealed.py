"""A link over a socket of messages: packets are cut into records, sealed, sent; and back.

It knows no WebSocket: whatever carries binary messages in order can be a `MessageSocket`. One task writes and one
reads; a third exists for the moment in which the link ends.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Coroutine, Iterable, Iterator
from contextlib import suppress
from itertools import count

from p2pfl.errors import (
    HandshakeFailed,
    LinkClosed,
    LinkError,
    LinkRefused,
    LinkSilent,
    LinkTruncated,
    RemoteProtocolError,
)
from p2pfl.link.base import CloseCode, LinkLimits, LinkStatistics, MessageSocket, Receiver, error_of_close
from p2pfl.link.channel import MAX_RECORDS, SecureChannel
from p2pfl.link.transfers import Transfers
from p2pfl.wire.frame import FrameReader, FrameWriter, Have, OversizeError, Record, Resumed, check_packet
from p2pfl.wire.packet import Packet
from p2pfl.wire.transfer import Begun, Partial, TransferId

__all__ = ["CloseCode", "MessageSocket", "SealedLink", "error_of_close"]

GOODBYE_SECONDS = 2.0  # how long close() waits for the other end
_TURN = 32  # messages of one link that are taken before the other links have their turn
BATCH_BYTES = 100_000  # a message takes no further record from here on: two full ones are the fastest, see benchmarks


class SealedLink:
    """An open link; see `Link`.

    `spare` tells how many bytes there are for packets under way on all links, once room is made for those that it is
    given. `transfers` is what the links of a node leave to each other.
    """

    def __init__(
        self,
        socket: MessageSocket,
        channel: SecureChannel,
        limits: LinkLimits,
        spare: Callable[[int], float] = lambda wanted: math.inf,
        transfers: Transfers | None = None,
    ) -> None:
        self.local = channel.local
        self.remote = channel.remote
        self.initiator = channel.initiator
        self.remote_caps = channel.remote_caps
        self.suite = channel.suite
        self.relay = ""
        self.channel_id = channel.channel_id
        self.statistics = LinkStatistics()
        self._socket = socket
        self._channel = channel
        self._limits = limits
        self._spare = spare
        self._loop = asyncio.get_running_loop()
        self.renew_at = self._loop.time() + limits.renew_seconds
        self._transfers = transfers or Transfers()
        self._outgoing = FrameWriter(limits.max_streams, self.channel_id, self._begun_before)
        self._incoming: FrameReader | None = None  # while the link is open
        self._receiver: Receiver | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._ready = asyncio.Event()  # there may be records to send
        self._room = asyncio.Event()  # the queue has become shorter, or the link has ended
        self._closing = False  # whether send() is silent
        self._said_goodbye = False  # whether our FIN has left
        self._error: LinkError | None = None  # once ended
        self._ended = asyncio.Event()  # once the socket is closed, too
        self._watch: asyncio.TimerHandle | None = None  # of transfers that do not get on

    def start(self, receiver: Receiver) -> None:
        """Begin to deliver; see Link."""
        self._receiver = receiver
        if self._error is not None:
            self._loop.call_soon(receiver.link_closed, self._error)
            return
        self._incoming = incoming = FrameReader(
            self._limits, receiver.admit, self._spare, self.channel_id, self._left_of
        )
        self._transfers.opened(self)
        self._watch_progress(incoming, {}, self._loop.time())
        self._spawn(self._read(incoming, receiver))
        self._spawn(self._write())

    def send(self, packet: Packet) -> None:
        """Queue a packet; see Link. Raises MessageError for one that is over the limits."""
        if self._closing or self._error is not None:
            return
        check_packet(packet, self._limits)
        if self._outgoing.control > self._limits.max_control:
            self.abort(LinkSilent(f"it does not read: {self._outgoing.control} bytes of answers wait for it"))
            return
        self._outgoing.append(packet)
        self.statistics.packets_sent += 1
        self._ready.set()

    def withdraw(self, packet: Packet) -> bool:
        """Take back a packet that has not left entirely; see Link."""
        if not self._outgoing.withdraw(packet):
            return False
        self.statistics.packets_sent -= 1
        self._ready.set()  # an abort may have to be sent
        self._room.set()
        return True

    async def drain(self) -> None:
        """Wait until little is queued; see Link."""
        while self._outgoing.queued > self._limits.high_water and self._error is None:
            self._room.clear()
            await self._room.wait()

    async def close(self) -> None:
        """Say goodbye behind what is queued; see Link."""
        if not self._closing and self._error is None:
            self._closing = True
            self._outgoing.finish()
            self._ready.set()
            if self._receiver is None:
                self.start(_Nobody())
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(GOODBYE_SECONDS):
                    await self._ended.wait()
        finally:
            self.abort(LinkClosed(f"said goodbye to {self.remote[:10]}, which did not answer"))
        await self._ended.wait()

    def abort(self, error: LinkError) -> None:
        """End at once; see Link."""
        if self._error is not None:
            return
        self._error = error
        incoming, self._incoming = self._incoming, None
        self._transfers.ended(self, () if incoming is None else incoming.partials(), self._outgoing.begun)
        self._room.set()
        if self._watch is not None:
            self._watch.cancel()
        if self._receiver is not None:
            self._loop.call_soon(self._receiver.link_closed, error)
        running = tuple(self._tasks)
        self._spawn(self._shut(running, _code_for(error)))

    @property
    def reserved(self) -> int:
        """Bytes of memory that packets on their way in take."""
        return 0 if self._incoming is None else self._incoming.reserved

    def carries(self, transfer: TransferId) -> bool:
        """Whether a packet of that name is on its way in."""
        return self._incoming is not None and self._incoming.holds(transfer)

    def _begun_before(self, buffers: tuple[memoryview, ...]) -> Begun | None:
        return self._transfers.begun_before(self.remote, buffers)

    def _left_of(self, transfer: TransferId, sizes: tuple[int, ...]) -> Partial | None:
        return self._transfers.take(self, transfer, sizes)

    async def wait_ended(self) -> None:
        """Wait until the link has ended and its socket is closed."""
        await self._ended.wait()

    async def _shut(self, running: Iterable[asyncio.Task[None]], code: CloseCode) -> None:
        try:
            for task in running:
                task.cancel()
            for task in running:
                await asyncio.wait((task,))
            await self._socket.close(code)
        finally:
            self._ended.set()

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = self._loop.create_task(work)
        task.add_done_callback(self._task_done)
        self._tasks.append(task)

    def _task_done(self, task: asyncio.Task[None]) -> None:
        """Report a mistake of ours, or of the receiver: the link cannot go on after it."""
        self._tasks.remove(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._loop.call_exception_handler({"message": f"{self!r} failed", "exception": error, "task": task})
            self.abort(LinkTruncated(f"the link failed at this end: {error!r}"))

    async def _write(self) -> None:
        with suppress(LinkError):  # the reader learns, and tells, why the connection ended
            while True:
                if records := self._batch():
                    message = self._channel.seal_message(records)
                    self.statistics.bytes_sent += len(message)
                    await self._socket.send(message)
                    self._said_goodbye = self._outgoing.finished
                    self._room.set()
                else:
                    self._ready.clear()
                    await self._ready.wait()

    def _batch(self) -> list[Record]:
        records: list[Record] = []
        size = 0
        while len(records) < MAX_RECORDS and size < BATCH_BYTES and (record := self._outgoing.next_record()):
            records.append(record)
            size += sum(map(len, record))
        return records

    async def _read(self, incoming: FrameReader, receiver: Receiver) -> None:
        try:
            for turn in count(1):
                if incoming.finished:
                    break
                if turn % _TURN == 0:  # what has arrived is received without a pause: let others have theirs
                    await asyncio.sleep(0)
                message = await self._socket.receive()
                if self._error is not None:  # ended by another task, while the message was waiting here
                    return
                self.statistics.bytes_received += len(message)
                self._take(message, incoming, receiver)
                if self._error is not None:  # the receiver has ended the link
                    return
            self.abort(LinkClosed(f"{self.remote[:10]} said goodbye"))
        except LinkTruncated as error:
            self.abort(LinkClosed(f"said goodbye to {self.remote[:10]}") if self._said_goodbye else error)
        except LinkError as error:
            self.abort(error)

    def _take(self, message: bytes | memoryview, incoming: FrameReader, receiver: Receiver) -> None:
        for record in self._open(message):
            if (arrived := incoming.feed(record)) is None:
                continue
            if not isinstance(arrived, Packet):
                self._resume(arrived)
                continue
            self.statistics.packets_received += 1
            receiver.packet_received(arrived)
            if self._error is not None:
                return

    def _open(self, message: bytes | memoryview) -> Iterator[memoryview]:
        """Anybody on the way can change bytes: what does not decrypt is not held against the peer."""
        try:
            yield from self._channel.open_message(message)
        except RemoteProtocolError as error:
            raise LinkTruncated(str(error)) from error

    def _resume(self, told: Have | Resumed) -> None:
        """Let a transfer go on from where an earlier link has left it."""
        if isinstance(told, Have):
            self._outgoing.go_on(told)
            self._room.set()
        else:
            self._outgoing.answer(told)
        self._ready.set()

    def _watch_progress(self, incoming: FrameReader, before: dict[int, int], due: float) -> None:
        """End the link if a transfer got on too slowly since the last look."""
        period = self._limits.progress_seconds
        now = self._loop.time()
        progress = incoming.progress()
        punctual = now < due + period / 10  # else this loop was stalled, and the delay is not the sender's
        floor = self._limits.progress_bytes * period
        if punctual and any(progress[msg_id] - before[msg_id] < floor for msg_id in progress.keys() & before.keys()):
            self.abort(RemoteProtocolError(f"a transfer got on by less than {floor:.0f} bytes in {period:g} s"))
            return
        self._watch = self._loop.call_later(period, self._watch_progress, incoming, progress, now + period)

    def __repr__(self) -> str:
        state = "open" if self._error is None else type(self._error).__name__
        return f"<SealedLink {self.local[:10]} {'->' if self.initiator else '<-'} {self.remote[:10]} {state}>"


class _Nobody:
    """The receiver of a link that is closed before anybody started it."""

    def admit(self, head: bytes, sizes: tuple[int, ...]) -> bool:
        raise RemoteProtocolError("the link is closing")

    def packet_received(self, packet: Packet) -> None:
        pass

    def link_closed(self, error: LinkError) -> None:
        pass


def _code_for(error: LinkError) -> CloseCode:
    for kind, code in _CODES.items():
        if isinstance(error, kind):
            return code
    return CloseCode.GONE


_CODES: dict[type[LinkError], CloseCode] = {  # the first that fits
    LinkClosed: CloseCode.GOODBYE,
    LinkRefused: CloseCode.REFUSED,
    HandshakeFailed: CloseCode.HANDSHAKE,
    OversizeError: CloseCode.TOO_LARGE,
    RemoteProtocolError: CloseCode.PROTOCOL,
}
