"""Packets cut into records, and records joined into packets: the plaintext side of a link, without I/O and clock.

A record is `u8 kind || body`, at most 65,519 bytes, integers big-endian:

    0x01 DATA_FIRST   u32 stream, u64 msg_id, u32 bytes of head, u16 number of buffers, u64 size of each, payload
    0x02 DATA_NEXT    u32 stream, payload
    0x03 DATA_LAST    u32 stream, payload
    0x04 DATA_ABORT   u32 stream
    0x7f FIN

The payload of a packet is its head and then its buffers, end to end. Every record of a packet is full except the one in
which the payload ends, and that one is a DATA_LAST or the DATA_FIRST itself: there is one way to cut a packet, and a
reader cannot be kept busy with tiny or empty chunks. `stream` is a slot below `max_streams`, free again once its packet
has ended; `msg_id` counts the packets of one direction from 0. Nothing follows FIN.
"""

from __future__ import annotations

import math
import struct
from collections import deque
from collections.abc import Callable
from typing import Protocol

from p2pfl.errors import LinkRefused, MessageError, RemoteProtocolError
from p2pfl.wire.memory import allocate
from p2pfl.wire.packet import Packet

__all__ = [
    "MAX_RECORD",
    "FrameLimits",
    "FrameReader",
    "FrameWriter",
    "OversizeError",
    "Record",
    "check_packet",
    "framed_size",
]

MAX_RECORD = 65_519  # the largest Noise message less its tag

Record = list[bytes | memoryview]  # the parts of one record: whoever seals it copies them once
Admit = Callable[[bytes, tuple[int, ...]], bool]

FIRST, NEXT, LAST, ABORT, FIN = 0x01, 0x02, 0x03, 0x04, 0x7F

_FIRST = struct.Struct("!BIQIH")
_CHUNK = struct.Struct("!BI")
_SIZE = 8  # bytes of one buffer's size in DATA_FIRST
_ROOM = MAX_RECORD - _CHUNK.size  # payload of a full DATA_NEXT or DATA_LAST


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


class _Outgoing:
    """A packet on its way out, and how far it has got."""

    __slots__ = ("_index", "_offset", "_parts", "left", "packet", "stream")

    def __init__(self, packet: Packet) -> None:
        self.packet = packet
        self.left = packet.size
        self.stream: int | None = None  # until its first record is made
        self._parts = (memoryview(packet.head), *packet.buffers)
        self._index = 0  # of the part that comes next
        self._offset = 0  # in that part

    def first(self, stream: int, msg_id: int) -> Record:
        """The DATA_FIRST record."""
        self.stream = stream
        sizes = [buffer.nbytes for buffer in self.packet.buffers]
        header = _FIRST.pack(FIRST, stream, msg_id, len(self.packet.head), len(sizes))
        return self._fill(header + struct.pack(f"!{len(sizes)}Q", *sizes))

    def next(self) -> Record:
        """The next DATA_NEXT record, or DATA_LAST if the payload ends in it."""
        return self._fill(_CHUNK.pack(LAST if self.left <= _ROOM else NEXT, self.stream))

    def _fill(self, header: bytes) -> Record:
        record: Record = [header]
        room = min(MAX_RECORD - len(header), self.left)
        self.left -= room
        while room:
            piece = self._parts[self._index][self._offset : self._offset + room]
            if piece.nbytes < room:  # the part ends here, or is empty
                self._index += 1
                self._offset = 0
            else:
                self._offset += room
            if piece.nbytes:
                record.append(piece)
                room -= piece.nbytes
        return record


class FrameWriter:
    """Queues packets and gives their records, in the order in which they should leave.

    Packets without buffers go before all others, so that control waits for one record of a bulk transfer and not for
    its end. Packets with buffers share the wire in turns, one record each.
    """

    __slots__ = (
        "_aborts",
        "_control",
        "_finish",
        "_max_turns",
        "_msg_id",
        "_slots",
        "_turns",
        "_waiting",
        "finished",
        "queued",
    )

    def __init__(self, max_streams: int = 64) -> None:
        self.finished = False  # whether FIN was given
        self.queued = 0  # bytes of heads and buffers that have not left yet
        self._slots = list(reversed(range(max_streams)))  # free stream numbers, the last is taken first
        self._msg_id = 0  # of the packet that starts next
        self._max_turns = max_streams - 1  # one slot is kept for control
        self._control: deque[_Outgoing] = deque()
        self._turns: deque[_Outgoing] = deque()  # bulk packets that share the wire
        self._waiting: deque[_Outgoing] = deque()  # bulk packets that would be too many
        self._aborts: deque[int] = deque()  # streams that were withdrawn halfway
        self._finish = False

    def append(self, packet: Packet) -> None:
        """Queue a packet."""
        outgoing = _Outgoing(packet)
        self.queued += outgoing.left
        if not packet.buffers:
            self._control.append(outgoing)
        elif len(self._turns) < self._max_turns:
            self._turns.append(outgoing)
        else:
            self._waiting.append(outgoing)

    def withdraw(self, packet: Packet) -> bool:
        """Drop a packet that has not left entirely; False if there is none."""
        for queue in (self._control, self._turns, self._waiting):
            for outgoing in queue:
                if outgoing.packet is packet:
                    self._remove(outgoing, queue)
                    self.queued -= outgoing.left
                    if outgoing.stream is not None:
                        self._aborts.append(outgoing.stream)
                    return True
        return False

    def finish(self) -> None:
        """Say FIN once everything queued has left."""
        self._finish = True

    def next_record(self) -> Record | None:
        """The parts of the next record, or None if there is nothing to send."""
        if self._aborts:
            stream = self._aborts.popleft()
            self._slots.append(stream)
            return [_CHUNK.pack(ABORT, stream)]
        if self._control:
            return self._advance(self._control)
        if self._turns:
            return self._advance(self._turns)
        if self._finish:
            self._finish = False
            self.finished = True
            return [bytes((FIN,))]
        return None

    def _advance(self, queue: deque[_Outgoing]) -> Record:
        outgoing = queue[0]
        before = outgoing.left
        if outgoing.stream is None:
            record = outgoing.first(self._slots.pop(), self._msg_id)
            self._msg_id += 1
        else:
            record = outgoing.next()
        self.queued -= before - outgoing.left
        if outgoing.left:
            if queue is self._turns:
                queue.rotate(-1)
        else:
            self._remove(outgoing, queue)
            assert outgoing.stream is not None
            self._slots.append(outgoing.stream)
        return record

    def _remove(self, outgoing: _Outgoing, queue: deque[_Outgoing]) -> None:
        queue.remove(outgoing)
        if self._waiting and len(self._turns) < self._max_turns:
            self._turns.append(self._waiting.popleft())


class _Incoming:
    """A packet on its way in: where its payload goes."""

    __slots__ = (
        "_buffers", "_head", "_head_size", "_index", "_offset", "agreed", "left", "msg_id", "received", "sizes",
    )  # fmt: skip

    def __init__(self, msg_id: int, head_size: int, sizes: tuple[int, ...]) -> None:
        self.msg_id = msg_id
        self.sizes = sizes
        self.left = head_size + sum(sizes)
        self.received = 0
        self.agreed = False  # whether its buffers were agreed beforehand; until its head is complete: no
        self._head = bytearray()
        self._head_size = head_size
        self._buffers: tuple[memoryview, ...] | None = None  # until the head is complete and they are admitted
        self._index = 0  # of the buffer that comes next
        self._offset = 0  # in that buffer

    @property
    def reserved(self) -> int:
        """Bytes of memory that it has taken, or will before it is asked about again."""
        return self._head_size + (0 if self._buffers is None else sum(self.sizes))

    @property
    def head(self) -> bytes:
        return bytes(self._head)

    def write(self, payload: memoryview, allow: Callable[[_Incoming], None]) -> None:
        self.left -= payload.nbytes
        self.received += payload.nbytes
        if missing := self._head_size - len(self._head):
            self._head += payload[:missing]
            payload = payload[missing:]
        if self._buffers is None and len(self._head) == self._head_size:
            if self.sizes:
                allow(self)
            self._buffers = tuple([allocate(size) for size in self.sizes])
        while payload.nbytes:
            assert self._buffers is not None
            buffer = self._buffers[self._index]
            piece = payload[: buffer.nbytes - self._offset]
            end = self._offset + piece.nbytes
            buffer[self._offset : end] = piece
            payload = payload[piece.nbytes :]
            if end == buffer.nbytes:
                self._index += 1
                end = 0
            self._offset = end

    def packet(self) -> Packet:
        assert self._buffers is not None
        return Packet(self.head, tuple(buffer.toreadonly() for buffer in self._buffers))


class FrameReader:
    """Takes the records of one direction, in order, and gives the packets that they complete.

    `admit(head, sizes)` is asked about the buffers of a packet as soon as its head is complete; until then no more than
    the head is held. It tells whether they were agreed: all others on a link share `limits.max_under_way` bytes.
    `spare()` tells how many bytes there are for packets under way, whatever they are. After any exception the reader
    is of no further use.
    """

    __slots__ = ("_admit", "_limits", "_msg_id", "_spare", "_streams", "finished")

    def __init__(self, limits: FrameLimits, admit: Admit, spare: Callable[[], float] = lambda: math.inf) -> None:
        self.finished = False  # whether FIN has come
        self._limits = limits
        self._admit = admit
        self._spare = spare
        self._msg_id = 0  # of the packet that starts next
        self._streams: dict[int, _Incoming] = {}

    def feed(self, record: bytes | bytearray | memoryview) -> Packet | None:
        """Take one record; give the packet that it completes, with read-only views of the admitted buffers.

        Raises RemoteProtocolError, and LinkRefused if there is no memory to spare.
        """
        if self.finished:
            raise RemoteProtocolError("a record came after FIN")
        view = memoryview(record)
        kind = view[0] if view.nbytes else None
        if kind == FIRST:
            return self._first(view)
        if kind in (NEXT, LAST):
            return self._next(view)
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

    def _first(self, view: memoryview) -> Packet | None:
        if view.nbytes < _FIRST.size:
            raise RemoteProtocolError("a DATA_FIRST record is too short for its fields")
        _, stream, msg_id, head_size, count = _FIRST.unpack_from(view)
        if stream >= self._limits.max_streams:
            raise RemoteProtocolError(f"stream {stream} is over the {self._limits.max_streams} that may be open")
        if stream in self._streams:
            raise RemoteProtocolError(f"stream {stream} starts a packet before its last one has ended")
        if msg_id != self._msg_id:
            raise RemoteProtocolError(f"packet {msg_id} where {self._msg_id} is next")
        if head_size > self._limits.max_head:
            raise OversizeError(f"a head of {head_size} bytes is over the limit of {self._limits.max_head}")
        if count > self._limits.max_buffers:
            raise OversizeError(f"{count} buffers are over the limit of {self._limits.max_buffers}")
        start = _FIRST.size + _SIZE * count
        if view.nbytes < start:
            raise RemoteProtocolError("a DATA_FIRST record is too short for its sizes")
        sizes = struct.unpack_from(f"!{count}Q", view, _FIRST.size)
        if (total := sum(sizes)) > self._limits.max_message:
            raise OversizeError(f"buffers of {total} bytes are over the limit of {self._limits.max_message}")
        if head_size > view.nbytes - start:
            self._spend(head_size)
        self._msg_id += 1
        return self._write(stream, _Incoming(msg_id, head_size, sizes), view[start:], MAX_RECORD - start)

    def _next(self, view: memoryview) -> Packet | None:
        incoming = self._open_stream(view)
        if (view[0] == LAST) != (incoming.left <= _ROOM):
            raise RemoteProtocolError("DATA_LAST comes early" if view[0] == LAST else "DATA_LAST is missing")
        _, stream = _CHUNK.unpack_from(view)
        return self._write(stream, incoming, view[_CHUNK.size :], _ROOM)

    def _write(self, stream: int, incoming: _Incoming, payload: memoryview, room: int) -> Packet | None:
        if payload.nbytes != (expected := min(room, incoming.left)):
            raise RemoteProtocolError(f"a chunk has {payload.nbytes} bytes where {expected} belong")
        incoming.write(payload, self._allow)
        if incoming.left:
            self._streams[stream] = incoming
            return None
        self._streams.pop(stream, None)
        return incoming.packet()

    def _allow(self, incoming: _Incoming) -> None:
        """Raise unless memory may be taken for the buffers of a packet."""
        size = sum(incoming.sizes)
        incoming.agreed = self._admit(incoming.head, incoming.sizes)
        if not incoming.agreed:
            others = sum(other.reserved for other in self._streams.values() if not other.agreed)
            if others + size > self._limits.max_under_way:
                raise OversizeError(
                    f"{others + size} bytes under way are over the {self._limits.max_under_way} that a link takes of "
                    "tensors that were not agreed"
                )
        self._spend(size)

    def _spend(self, size: int) -> None:
        if size > (spare := self._spare()):
            raise LinkRefused(f"{size} bytes are over the {max(0, spare):.0f} that are to spare for packets under way")

    def _abort(self, view: memoryview) -> None:
        self._open_stream(view)
        if view.nbytes != _CHUNK.size:
            raise RemoteProtocolError("a DATA_ABORT record has bytes too many")
        del self._streams[_CHUNK.unpack(view)[1]]

    def _fin(self, view: memoryview) -> None:
        if view.nbytes != 1 or self._streams:
            raise RemoteProtocolError("FIN has a body, or comes before the packets under way have ended")
        self.finished = True

    def _open_stream(self, view: memoryview) -> _Incoming:
        if view.nbytes < _CHUNK.size:
            raise RemoteProtocolError("a record is too short for its stream number")
        _, stream = _CHUNK.unpack_from(view)
        if stream not in self._streams:
            raise RemoteProtocolError(f"a record continues stream {stream}, on which nothing has started")
        return self._streams[stream]
