"""The disk of a simulated node: what is not synced is lost when the node is killed, and it can be slow, or full."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from random import Random

from p2pfl.errors import JournalError

__all__ = ["SimulatedDisk"]


class SimulatedDisk:
    """Survives its node. A write takes `sync_seconds` of virtual time; a crash meanwhile loses it.

    `torn`: it leaves half a file instead, in place of the old one: what a file system does that does not keep its word.
    """

    def __init__(self, rng: Random, sync_seconds: float = 0.002) -> None:
        self.sync_seconds = sync_seconds
        self.full = False
        self.torn = False
        self._rng = rng
        self._crashes = 0
        self._files: dict[str, bytes] = {}
        self._writing: dict[str, bytes] = {}

    async def write(self, name: str, content: bytes) -> None:
        """See Disk."""
        if self.full:
            raise JournalError(f"{name} cannot be written: the disk is full")
        life = self._crashes
        self._writing[name] = content
        if self.sync_seconds:
            await asyncio.sleep(self.sync_seconds)
        if life != self._crashes:
            raise JournalError(f"{name} was not written: the node is dead")
        if self._writing.get(name) is content:
            del self._writing[name]
        self._files[name] = content

    def read(self, name: str) -> bytes | None:
        """See Disk."""
        return self._files.get(name)

    def names(self) -> Iterable[str]:
        """See Disk."""
        return tuple(self._files)

    async def delete(self, name: str) -> None:
        """See Disk."""
        self._files.pop(name, None)

    def crash(self) -> None:
        """The node is gone, in the middle of what it wrote."""
        self._crashes += 1
        writing, self._writing = self._writing, {}
        if self.torn:
            for name, content in writing.items():
                self._files[name] = content[: self._rng.randrange(len(content))]

    def rot(self, name: str) -> None:
        """Turn one bit of a file."""
        content = bytearray(self._files[name])
        content[self._rng.randrange(len(content))] ^= 1 << self._rng.randrange(8)
        self._files[name] = bytes(content)

    def __repr__(self) -> str:
        return f"<SimulatedDisk of {len(self._files)} files>"
