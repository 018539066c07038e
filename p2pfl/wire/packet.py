"""What a link moves: one encoded message, as a JSON head and raw buffers beside it."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Packet"]


@dataclass(frozen=True, slots=True, eq=False)
class Packet:
    """A head of at most 256 KiB and any number of contiguous byte buffers.

    A link that stays in the process passes the buffers by reference: whoever sends a buffer does not write to it again.
    Compared by identity: two sends of equal bytes are two packets.
    """

    head: bytes
    buffers: tuple[memoryview, ...] = ()

    @property
    def size(self) -> int:
        """Bytes of head and buffers together, before framing and encryption."""
        size = len(self.head)
        for buffer in self.buffers:
            size += buffer.nbytes
        return size

    def __repr__(self) -> str:
        return f"<Packet {len(self.head)} B head, {len(self.buffers)} buffers, {self.size} B>"
