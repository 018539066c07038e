"""Where a journal's bytes lie: a folder whose files are whole or not there, and stay when the power goes."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

from p2pfl.errors import JournalError

__all__ = ["Disk", "Folder"]


class Disk(Protocol):
    """Files by name. A crash loses what `write` had not returned from, and nothing else."""

    async def write(self, name: str, content: bytes) -> None:
        """Put a file there, in place of one of that name; once it returns, it is there for good. Or JournalError."""

    def read(self, name: str) -> bytes | None:
        """What the file holds; None if there is no such file. Raises JournalError for one that cannot be read."""

    def names(self) -> Iterable[str]:
        """All files."""

    async def delete(self, name: str) -> None:
        """Let it be gone. It may come back after a crash."""


class Folder:
    """A folder of the file system."""

    def __init__(self, path: Path) -> None:
        self.path = path

    async def write(self, name: str, content: bytes) -> None:
        """See Disk. The loop goes on meanwhile."""
        await asyncio.to_thread(self._write, name, content)

    def _write(self, name: str, content: bytes) -> None:
        temporary = self.path / f".{name}.part"
        try:
            with temporary.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(self.path / name)
            self._sync()
        except OSError as error:
            temporary.unlink(missing_ok=True)  # a full disk needs the room
            raise JournalError(f"{self.path / name} cannot be written: {error.strerror or error}") from error

    def _sync(self) -> None:
        """A file that was renamed is there for good once its folder is."""
        folder = os.open(self.path, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def read(self, name: str) -> bytes | None:
        """See Disk."""
        try:
            return (self.path / name).read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise JournalError(f"{self.path / name} cannot be read: {error.strerror or error}") from error

    def names(self) -> Iterable[str]:
        """See Disk."""
        return [path.name for path in self.path.iterdir() if not path.name.startswith(".")]

    async def delete(self, name: str) -> None:
        """See Disk."""
        (self.path / name).unlink(missing_ok=True)

    def __repr__(self) -> str:
        return f"<Folder {self.path}>"
