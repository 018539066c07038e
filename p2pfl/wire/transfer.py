"""One packet on its way out of a link or into one, and what is known of it when the link breaks halfway.

The payload of a packet is its head and then its buffers, end to end. A large packet that a link left halfway is sent
again upon the next: its head anew, its buffers from where they were. It goes by the name of its first journey.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import NamedTuple

from p2pfl.wire.memory import allocate
from p2pfl.wire.packet import Packet

__all__ = ["LARGE_PACKET", "Begun", "Incoming", "Outgoing", "Partial", "TransferId"]

LARGE_PACKET = 1 << 20  # bytes of buffers from which on a packet is worth going on with

Pieces = list[bytes | memoryview]


class TransferId(NamedTuple):
    """The name of a large packet, the same at both ends without a word: on which link, as which packet it began."""

    link: bytes  # the channel id, 32 bytes
    number: int  # the msg_id there


class Partial(NamedTuple):
    """What came of a large packet."""

    buffers: tuple[memoryview, ...]
    received: int  # bytes of the buffers, from the front

    @property
    def sizes(self) -> tuple[int, ...]:
        return tuple([buffer.nbytes for buffer in self.buffers])


class Begun:
    """A large packet of ours that has begun to leave. It does not keep the buffers alive, which tell it from others."""

    __slots__ = ("_buffers", "_size", "sent", "transfer")

    def __init__(self, transfer: TransferId, buffers: tuple[memoryview, ...]) -> None:
        self.transfer = transfer
        self.sent = 0  # bytes of the buffers, on all links
        self._buffers = [weakref.ref(buffer) for buffer in buffers]
        self._size = sum([buffer.nbytes for buffer in buffers])

    @property
    def alive(self) -> bool:
        """Whether its buffers can still be sent again."""
        return all(buffer() is not None for buffer in self._buffers)

    def note(self, left: int) -> None:
        """So many bytes of payload have not left yet."""
        self.sent = max(self.sent, self._size - left)

    def has(self, buffers: tuple[memoryview, ...]) -> bool:
        """Whether these are its buffers: the same objects, whose bytes nobody writes to once they were sent."""
        return len(buffers) == len(self._buffers) and all(
            known() is buffer for known, buffer in zip(self._buffers, buffers, strict=True)
        )


class Outgoing:
    """A packet on its way out, and how far it has got."""

    __slots__ = ("_held", "_index", "_offset", "_parts", "begun", "left", "msg_id", "packet", "stream")

    def __init__(self, packet: Packet) -> None:
        self.packet = packet
        self.left = packet.size  # bytes of payload
        self.stream: int | None = None  # until its first record is made
        self.msg_id = -1  # until then
        self.begun: Begun | None = None  # from then on, if it is large
        self._held = 0  # bytes of payload that stay here until the other end has said how much of them it has
        self._parts = (memoryview(packet.head), *packet.buffers)
        self._index = 0  # of the part that comes next
        self._offset = 0  # in that part

    @property
    def ready(self) -> int:
        """Bytes of payload that can leave now."""
        return self.left - self._held

    def hold(self) -> None:
        """Keep the buffers back, until `go_on`."""
        self._held = self.left - self._parts[0].nbytes

    def go_on(self, received: int) -> None:
        """Let the buffers go, without their first `received` bytes, of which there are some behind."""
        assert received < self._held == self.left
        self.left -= received
        self._held = 0
        self._index, self._offset = 1, received
        while self._offset >= self._parts[self._index].nbytes:
            self._offset -= self._parts[self._index].nbytes
            self._index += 1

    def fill(self, record: Pieces, room: int) -> None:
        """Move up to `room` bytes of payload, as views, to a record."""
        room = min(room, self.ready)
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


class Incoming:
    """A packet on its way in: where its payload goes."""

    __slots__ = (
        "_buffers", "_head", "_head_size", "_index", "_offset", "again", "agreed", "left", "msg_id", "received",
        "resumes", "sizes",
    )  # fmt: skip

    def __init__(self, msg_id: int, head_size: int, sizes: tuple[int, ...], again: TransferId | None = None) -> None:
        self.msg_id = msg_id  # on this link
        self.again = again  # its name, if it began on another
        self.sizes = sizes
        self.left = head_size + sum(sizes)  # bytes of payload
        self.received = 0  # bytes of payload, on this link
        self.agreed = False  # whether its buffers were agreed beforehand; until its head is complete: no
        self.resumes = again is not None  # whether its buffers are held back until it is known how much of them is here
        self._head = bytearray()
        self._head_size = head_size
        self._buffers: tuple[memoryview, ...] | None = None  # until the head is complete and they are admitted
        self._index = 0  # of the buffer that comes next
        self._offset = 0  # in that buffer

    @property
    def ready(self) -> int:
        """Bytes of payload that the other end may send now."""
        return self._head_size - len(self._head) if self.resumes else self.left

    @property
    def reserved(self) -> int:
        """Bytes of memory that it has taken, or will before it is asked about again."""
        return self._head_size + (0 if self._buffers is None else sum(self.sizes))

    @property
    def head(self) -> bytes:
        return bytes(self._head)

    @property
    def partial(self) -> Partial | None:
        """What it leaves behind if it ends here: nothing unless it is large and its buffers have begun to come."""
        size = sum(self.sizes)
        if self._buffers is None or size < LARGE_PACKET or self.left == size:
            return None
        return Partial(self._buffers, size - self.left)

    def write(self, payload: memoryview, admit: Callable[[Incoming], Partial | None]) -> None:
        """Take the next bytes. `admit` is asked for memory once the head is complete: what there is, or None."""
        self.left -= payload.nbytes
        self.received += payload.nbytes
        if missing := self._head_size - len(self._head):
            self._head += payload[:missing]
            payload = payload[missing:]
        if self._buffers is None and len(self._head) == self._head_size:
            self._begin(admit(self) if self.sizes else None)
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

    def _begin(self, partial: Partial | None) -> None:
        self.resumes = False
        if partial is None:
            self._buffers = tuple([allocate(size) for size in self.sizes])
            return
        self._buffers = partial.buffers
        self.left -= partial.received
        self._offset = partial.received
        while self._offset >= self.sizes[self._index]:
            self._offset -= self.sizes[self._index]
            self._index += 1

    def packet(self) -> Packet:
        """The whole packet, with read-only views of its buffers."""
        assert self._buffers is not None
        return Packet(self.head, tuple([buffer.toreadonly() for buffer in self._buffers]))
