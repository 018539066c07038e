"""Packets cut into records, and records joined into packets: the plaintext side of a link, without I/O and clock.

A record is `u8 kind || body`, at most 65,519 bytes, integers big-endian:

    0x01 DATA_FIRST   u32 stream, u64 msg_id, u32 bytes of head, u16 number of buffers, u64 size of each, payload
    0x02 DATA_NEXT    u32 stream, payload
    0x03 DATA_LAST    u32 stream, payload
    0x04 DATA_ABORT   u32 stream
    0x05 DATA_AGAIN   as DATA_FIRST, but before the payload: 32 bytes of channel id, u64 msg_id
    0x06 DATA_HAVE    u64 msg_id, u64 bytes
    0x7f FIN

The payload of a packet is its head and then its buffers, end to end. Every record of a packet is full except the one in
which the payload ends, and that one is a DATA_LAST or the DATA_FIRST itself: there is one way to cut a packet, and a
reader cannot be kept busy with tiny or empty chunks. `stream` is a slot below `max_streams`, free again once its packet
has ended; `msg_id` counts the packets of one direction from 0. Nothing follows FIN.

A packet with buffers of 1 MiB or more that had begun on a link which broke is sent again as DATA_AGAIN, with the
channel id and the msg_id that it had when it first began; the head may be another, and is cut by itself. When that is
complete, the other end answers with DATA_HAVE how many bytes of the buffers it has already, perhaps none, and the rest
of them follows. Only who had begun asks: nothing else waits for an answer.
"""

from __future__ import annotations

import math
import struct
from collections import deque
from collections.abc import Callable, Iterator
from typing import NamedTuple, Protocol

from p2pfl.errors import LinkRefused, MessageError, RemoteProtocolError
from p2pfl.wire.packet import Packet
from p2pfl.wire.transfer import LARGE_PACKET, Begun, Incoming, Outgoing, Partial, TransferId

__all__ = [
    "MAX_RECORD",
    "FrameLimits",
    "FrameReader",
    "FrameWriter",
    "Have",
    "OversizeError",
    "Record",
    "Resumed",
    "check_packet",
    "framed_size",
]

MAX_RECORD = 65_519  # the largest Noise message less its tag

Record = list[bytes | memoryview]  # the parts of one record: whoever seals it copies them once
Admit = Callable[[bytes, tuple[int, ...]], bool]
Spare = Callable[[int], float]
Take = Callable[[TransferId, tuple[int, ...]], Partial | None]

FIRST, NEXT, LAST, ABORT, AGAIN, HAVE, FIN = 0x01, 0x02, 0x03, 0x04, 0x05, 0x06, 0x7F

_FIRST = struct.Struct("!BIQIH")
_CHUNK = struct.Struct("!BI")
_SIZE = 8  # bytes of one buffer's size in DATA_FIRST
_ROOM = MAX_RECORD - _CHUNK.size  # payload of a full DATA_NEXT or DATA_LAST
_TRANSFER = struct.Struct("!32sQ")
_HAVE = struct.Struct("!BQQ")
_BEGUN = 256  # large packets that a writer knows by their buffers


class OversizeError(RemoteProtocolError):
    """The peer announced a packet over the limits."""


class FrameLimits(Protocol):
    """The bounds of one packet, of how many may be under way, and of their memory; `LinkLimits` has them."""

    @property
    def max_head(self) -> int: ...
    @property
    def max_message(self) -> int: ...
    @property
    def max_buffers(self) -> int: ...
    @property
    def max_streams(self) -> int: ...
    @property
    def max_under_way(self) -> int: ...


def check_packet(packet: Packet, limits: FrameLimits) -> None:
    """Raise MessageError for a packet that the other end would have to refuse."""
    if len(packet.head) > limits.max_head:
        raise MessageError(f"a head of {len(packet.head)} bytes is over the {limits.max_head} that a link takes")
    if packet.buffers:
        if len(packet.buffers) > limits.max_buffers:
            raise MessageError(
                f"{len(packet.buffers)} buffers are over the {limits.max_buffers} that a message may have"
            )
        if (size := packet.size - len(packet.head)) > limits.max_message:
            raise MessageError(f"buffers of {size} bytes are over the {limits.max_message} that a link takes")


def framed_size(packet: Packet) -> tuple[int, int]:
    """How many records a packet takes, and how many bytes of plaintext they are together."""
    header = _FIRST.size + _SIZE * len(packet.buffers)
    size = packet.size
    chunks = max(0, -(-(size - (MAX_RECORD - header)) // _ROOM))
    return 1 + chunks, header + size + chunks * _CHUNK.size


class Have(NamedTuple):
    """The other end has so many bytes of the buffers of our packet, which goes on from there."""

    msg_id: int
    received: int


class Resumed(NamedTuple):
    """The other end sends a packet again: it is to be told how many bytes of the buffers are here."""

    msg_id: int
    received: int


_OVERHEAD = 512  # bytes of objects that a packet is made of


class FrameWriter:
    """Queues packets and gives their records, in the order in which they should leave.

    Packets without buffers go before all others, so that control waits for one record of a bulk transfer and not for
    its end. Packets with buffers share the wire in turns, one record each.

    `link` is the channel id. `begun_before(buffers)` tells whether these have begun to leave on an earlier link to the
    same peer, so that it is to be asked how much of them it has.
    """

    __slots__ = (
        "_aborts", "_answers", "_begun_before", "_control", "_finish", "_held", "_link", "_max_turns", "_msg_id",
        "_slots", "_turns", "_waiting", "_withdrawn", "begun", "control", "finished", "queued",
    )  # fmt: skip

    def __init__(
        self,
        max_streams: int = 64,
        link: bytes = b"\0" * 32,
        begun_before: Callable[[tuple[memoryview, ...]], Begun | None] = lambda buffers: None,
    ) -> None:
        self.begun: list[Begun] = []  # large packets that the other end may not have whole
        self.finished = False  # whether FIN was given
        self.queued = 0  # bytes of heads and buffers that have not left yet
        self.control = 0  # bytes of memory that packets without buffers take until they have left
        self._slots = list(reversed(range(max_streams)))  # free stream numbers, the last is taken first
        self._msg_id = 0  # of the packet that starts next
        self._max_turns = max_streams - 1  # one slot is kept for control
        self._control: deque[Outgoing] = deque()
        self._turns: deque[Outgoing] = deque()  # bulk packets that share the wire
        self._waiting: deque[Outgoing] = deque()  # bulk packets that would be too many
        self._held: dict[int, Outgoing] = {}  # by msg_id: their heads have left, and DATA_HAVE has not come
        self._withdrawn: set[int] = set()  # those for which it comes although nobody waits for it
        self._answers: deque[Resumed] = deque()  # DATA_HAVE of ours
        self._aborts: deque[int] = deque()  # streams that were withdrawn halfway
        self._finish = False
        self._link = link
        self._begun_before = begun_before

    def append(self, packet: Packet) -> None:
        """Queue a packet."""
        outgoing = Outgoing(packet)
        self.queued += outgoing.left
        if not packet.buffers:
            self.control += outgoing.left + _OVERHEAD
            self._control.append(outgoing)
        else:
            self._waiting.append(outgoing)
            self._promote()

    def withdraw(self, packet: Packet) -> bool:
        """Drop a packet that has not left entirely; False if there is none."""
        for queue in (self._control, self._turns, self._waiting, self._held.values()):
            for outgoing in queue:
                if outgoing.packet is packet:
                    self._drop(outgoing)
                    return True
        return False

    def answer(self, resumed: Resumed) -> None:
        """Tell the other end how much of its packet is here."""
        if not self.finished:
            self._answers.append(resumed)

    def go_on(self, have: Have) -> None:
        """Send the rest of a packet. RemoteProtocolError unless the other end was asked, and can have so much."""
        if have.msg_id in self._withdrawn:
            self._withdrawn.remove(have.msg_id)
            return
        outgoing = self._held.get(have.msg_id)
        if outgoing is None or outgoing.begun is None:
            raise RemoteProtocolError(f"DATA_HAVE came for packet {have.msg_id}, which does not wait for it")
        if have.received > outgoing.begun.sent or have.received >= outgoing.left:
            raise RemoteProtocolError(f"{have.received} bytes of a packet are there before so many were sent")
        outgoing.go_on(have.received)
        self.queued -= have.received
        self._turns.append(self._held.pop(have.msg_id))

    def finish(self) -> None:
        """Say FIN once everything queued has left."""
        self._finish = True

    def next_record(self) -> Record | None:
        """The parts of the next record, or None if there is nothing to send."""
        if self._aborts:
            stream = self._aborts.popleft()
            self._slots.append(stream)
            return [_CHUNK.pack(ABORT, stream)]
        if self._answers:
            return [_HAVE.pack(HAVE, *self._answers.popleft())]
        if self._control:
            return self._advance(self._control)
        if self._turns:
            return self._advance(self._turns)
        if self._finish and not self._held:
            self._finish = False
            self.finished = True
            return [bytes((FIN,))]
        return None

    def _advance(self, queue: deque[Outgoing]) -> Record:
        outgoing = queue[0]
        before = outgoing.left
        record = self._start(outgoing) if outgoing.stream is None else self._continue(outgoing)
        self.queued -= before - outgoing.left
        if queue is self._control:
            self.control -= before - outgoing.left
        if outgoing.begun is not None:
            outgoing.begun.note(outgoing.left)
        if outgoing.ready:
            if queue is self._turns:
                queue.rotate(-1)
            return record
        queue.popleft()
        self.control -= _OVERHEAD if queue is self._control else 0
        assert outgoing.stream is not None
        if outgoing.left:
            self._held[outgoing.msg_id] = outgoing
        else:
            self._slots.append(outgoing.stream)
            self._promote()
        return record

    def _start(self, outgoing: Outgoing) -> Record:
        """The first record of a packet."""
        packet = outgoing.packet
        sizes = [buffer.nbytes for buffer in packet.buffers]
        outgoing.stream, outgoing.msg_id = self._slots.pop(), self._msg_id
        self._msg_id += 1
        again = self._begin(outgoing) if sum(sizes) >= LARGE_PACKET else None
        header = _FIRST.pack(
            AGAIN if again is not None else FIRST, outgoing.stream, outgoing.msg_id, len(packet.head), len(sizes)
        )
        if sizes:
            header += struct.pack(f"!{len(sizes)}Q", *sizes)
        if again is not None:
            header += _TRANSFER.pack(*again.transfer)
            outgoing.hold()
        record: Record = [header]
        outgoing.fill(record, MAX_RECORD - len(header))
        return record

    def _begin(self, outgoing: Outgoing) -> Begun | None:
        """Note that a large packet begins to leave; what is known of it, if it did so before."""
        buffers = outgoing.packet.buffers
        before = self._begun_before(buffers)
        outgoing.begun = before or Begun(TransferId(self._link, outgoing.msg_id), buffers)
        self.begun = [begun for begun in self.begun if begun.alive][-_BEGUN + 1 :]
        self.begun.append(outgoing.begun)
        return before

    @staticmethod
    def _continue(outgoing: Outgoing) -> Record:
        """The next DATA_NEXT record, or DATA_LAST if the payload ends in it."""
        record: Record = [_CHUNK.pack(LAST if outgoing.left <= _ROOM else NEXT, outgoing.stream)]
        outgoing.fill(record, _ROOM)
        return record

    def _drop(self, outgoing: Outgoing) -> None:
        if outgoing in self._control:
            self.control -= outgoing.left + _OVERHEAD
        for queue in (self._control, self._turns, self._waiting):
            if outgoing in queue:
                queue.remove(outgoing)
        if self._held.pop(outgoing.msg_id, None) is not None:
            self._withdrawn.add(outgoing.msg_id)
        if outgoing.begun in self.begun:
            self.begun.remove(outgoing.begun)
        if outgoing.stream is not None:
            self._aborts.append(outgoing.stream)
        self.queued -= outgoing.left
        self._promote()

    def _promote(self) -> None:
        """Let a packet that waits take turns, if there is a place."""
        if self._waiting and len(self._turns) + len(self._held) < self._max_turns:
            self._turns.append(self._waiting.popleft())


class FrameReader:
    """Takes the records of one direction, in order, and gives the packets that they complete.

    `admit(head, sizes)` is asked about the buffers of a packet as soon as its head is complete; until then no more than
    the head is held. It tells whether they were agreed: all others on a link share `limits.max_under_way` bytes.
    `spare(wanted)` tells how many bytes there are for packets under way, whatever they are, with room made for those
    wanted as far as can be. `link` is the channel id. `take(transfer, sizes)` gives what came of a packet on an earlier
    link of the same peer, and keeps nothing of it. After any exception the reader is of no further use.
    """

    __slots__ = ("_admit", "_limits", "_link", "_msg_id", "_spare", "_streams", "_take", "finished")

    def __init__(
        self,
        limits: FrameLimits,
        admit: Admit,
        spare: Spare = lambda wanted: math.inf,
        link: bytes = b"\0" * 32,
        take: Take = lambda transfer, sizes: None,
    ) -> None:
        self.finished = False  # whether FIN has come
        self._limits = limits
        self._admit = admit
        self._spare = spare
        self._link = link
        self._take = take
        self._msg_id = 0  # of the packet that starts next
        self._streams: dict[int, Incoming] = {}

    def feed(self, record: bytes | bytearray | memoryview) -> Packet | Have | Resumed | None:
        """Take one record; give the packet that it completes, with read-only views of the admitted buffers.

        `Have` is for the writer of this end to go on, `Resumed` for it to answer.
        Raises RemoteProtocolError, and LinkRefused if there is no memory to spare.
        """
        if self.finished:
            raise RemoteProtocolError("a record came after FIN")
        view = memoryview(record)
        kind = view[0] if view.nbytes else None
        if kind in (NEXT, LAST):
            return self._next(view)
        if kind in (FIRST, AGAIN):
            return self._first(view)
        if kind == HAVE:
            return self._have(view)
        if kind == ABORT:
            self._abort(view)
        elif kind == FIN:
            self._fin(view)
        else:
            raise RemoteProtocolError(
                "an empty record" if kind is None else f"a record of the unknown kind {kind:#04x}"
            )
        return None

    def progress(self) -> dict[int, int]:
        """The packets under way: msg_id -> bytes of payload received so far."""
        return {incoming.msg_id: incoming.received for incoming in self._streams.values()}

    @property
    def reserved(self) -> int:
        """Bytes of memory that the packets under way take."""
        return sum([incoming.reserved for incoming in self._streams.values()])

    def holds(self, transfer: TransferId) -> bool:
        """Whether a packet of that name is under way."""
        return any(self._name(incoming) == transfer for incoming in self._streams.values())

    def partials(self) -> Iterator[tuple[TransferId, Partial]]:
        """What came of large packets under way: whole records that were opened and found in order."""
        for incoming in self._streams.values():
            if (partial := incoming.partial) is not None:
                yield self._name(incoming), partial

    def _name(self, incoming: Incoming) -> TransferId:
        return incoming.again or TransferId(self._link, incoming.msg_id)

    def _first(self, view: memoryview) -> Packet | Resumed | None:
        if view.nbytes < _FIRST.size:
            raise RemoteProtocolError("a DATA_FIRST record is too short for its fields")
        kind, stream, msg_id, head_size, count = _FIRST.unpack_from(view)
        if stream >= self._limits.max_streams:
            raise RemoteProtocolError(f"stream {stream} is over the {self._limits.max_streams} that may be open")
        if stream in self._streams:
            raise RemoteProtocolError(f"stream {stream} starts a packet before its last one has ended")
        if msg_id != self._msg_id:
            raise RemoteProtocolError(f"packet {msg_id} where {self._msg_id} is next")
        self._msg_id += 1
        sizes = self._sizes(view, head_size, count)
        start = _FIRST.size + _SIZE * count
        again = None
        if kind == AGAIN:
            again = self._again(view, start, sum(sizes))
            start += _TRANSFER.size
        if head_size > view.nbytes - start:
            self._spend(head_size)
        return self._write(stream, Incoming(msg_id, head_size, sizes, again), view[start:], MAX_RECORD - start)

    def _sizes(self, view: memoryview, head_size: int, count: int) -> tuple[int, ...]:
        """The sizes of the buffers of a packet that starts. Raises OversizeError, RemoteProtocolError."""
        if head_size > self._limits.max_head:
            raise OversizeError(f"a head of {head_size} bytes is over the limit of {self._limits.max_head}")
        if count > self._limits.max_buffers:
            raise OversizeError(f"{count} buffers are over the limit of {self._limits.max_buffers}")
        if view.nbytes < _FIRST.size + _SIZE * count:
            raise RemoteProtocolError("a DATA_FIRST record is too short for its sizes")
        sizes = struct.unpack_from(f"!{count}Q", view, _FIRST.size)
        if (total := sum(sizes)) > self._limits.max_message:
            raise OversizeError(f"buffers of {total} bytes are over the limit of {self._limits.max_message}")
        return sizes

    @staticmethod
    def _again(view: memoryview, start: int, size: int) -> TransferId:
        """The name under which a packet of `size` bytes of buffers first began."""
        if size < LARGE_PACKET:
            raise RemoteProtocolError(f"buffers of {size} bytes are sent again: go on only with large ones")
        if view.nbytes < start + _TRANSFER.size:
            raise RemoteProtocolError("a DATA_AGAIN record is too short for its name")
        return TransferId(*_TRANSFER.unpack_from(view, start))

    def _next(self, view: memoryview) -> Packet | Resumed | None:
        incoming = self._open_stream(view)
        if (view[0] == LAST) != (incoming.left <= _ROOM):
            raise RemoteProtocolError("DATA_LAST comes early" if view[0] == LAST else "DATA_LAST is missing")
        _, stream = _CHUNK.unpack_from(view)
        return self._write(stream, incoming, view[_CHUNK.size :], _ROOM)

    def _write(self, stream: int, incoming: Incoming, payload: memoryview, room: int) -> Packet | Resumed | None:
        if payload.nbytes != (expected := min(room, incoming.ready)):
            raise RemoteProtocolError(f"a chunk has {payload.nbytes} bytes where {expected} belong")
        resumes = incoming.resumes
        incoming.write(payload, self._allow)
        if incoming.left:
            self._streams[stream] = incoming
            if resumes and not incoming.resumes:
                return Resumed(incoming.msg_id, sum(incoming.sizes) - incoming.left)
            return None
        self._streams.pop(stream, None)
        return incoming.packet()

    def _allow(self, incoming: Incoming) -> Partial | None:
        """Raise unless memory may be taken for the buffers of a packet. The memory that holds some of them, if any."""
        size = sum(incoming.sizes)
        incoming.agreed = self._admit(incoming.head, incoming.sizes)
        if not incoming.agreed:
            others = sum(other.reserved for other in self._streams.values() if not other.agreed)
            if others + size > self._limits.max_under_way:
                raise OversizeError(
                    f"{others + size} bytes under way are over the {self._limits.max_under_way} that a link takes of "
                    "tensors that were not agreed"
                )
        partial = None if incoming.again is None else self._take(incoming.again, incoming.sizes)
        self._spend(size)
        return partial

    def _spend(self, size: int) -> None:
        if size > (spare := self._spare(size)):
            raise LinkRefused(f"{size} bytes are over the {max(0, spare):.0f} that are to spare for packets under way")

    @staticmethod
    def _have(view: memoryview) -> Have:
        if view.nbytes != _HAVE.size:
            raise RemoteProtocolError("a DATA_HAVE record has a wrong size")
        _, msg_id, received = _HAVE.unpack(view)
        return Have(msg_id, received)

    def _abort(self, view: memoryview) -> None:
        self._open_stream(view)
        if view.nbytes != _CHUNK.size:
            raise RemoteProtocolError("a DATA_ABORT record has bytes too many")
        del self._streams[_CHUNK.unpack(view)[1]]

    def _fin(self, view: memoryview) -> None:
        if view.nbytes != 1 or self._streams:
            raise RemoteProtocolError("FIN has a body, or comes before the packets under way have ended")
        self.finished = True

    def _open_stream(self, view: memoryview) -> Incoming:
        if view.nbytes < _CHUNK.size:
            raise RemoteProtocolError("a record is too short for its stream number")
        _, stream = _CHUNK.unpack_from(view)
        if stream not in self._streams:
            raise RemoteProtocolError(f"a record continues stream {stream}, on which nothing has started")
        return self._streams[stream]
