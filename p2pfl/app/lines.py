"""A file that grows by lines. A full disk loses some, says so, and ends nothing; who reads it passes over torn ones."""

from __future__ import annotations

import logging
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import orjson

__all__ = ["Lines", "rows_of"]

log = logging.getLogger("p2pfl.app")


class Lines:
    """Every line is written at once, so that a killed process leaves what it had."""

    def __init__(self, path: Path, mode: Literal["w", "a"]) -> None:
        """Raises OSError."""
        self.path = path
        self._file = path.open("wb" if mode == "w" else "ab", buffering=0)
        self._lost = 0
        self._torn = False  # the last line ends in the middle

    def add(self, line: str) -> None:
        """Add a line, if the disk takes it."""
        content = (b"\n" if self._torn else b"") + line.encode() + b"\n"
        try:
            written = self._file.write(content)
        except OSError as error:
            self._lose(error.strerror or str(error))
            return
        self._torn = written < len(content)
        if self._torn:
            self._lose("the disk is full")
        elif self._lost:
            log.warning("%s takes lines again; %d were lost", self.path, self._lost)
            self._lost = 0

    def _lose(self, reason: str) -> None:
        if not self._lost:
            log.warning("lines of %s are lost: %s", self.path, reason)
        self._lost += 1

    def fileno(self) -> int:
        """Of the open file, for a lock."""
        return self._file.fileno()

    def close(self) -> None:
        """Add no more."""
        self._file.close()

    def __repr__(self) -> str:
        return f"<Lines of {self.path}>"


def rows_of(content: bytes) -> list[dict[str, Any]]:
    """The objects of a file of rounds, a line each, but for lines that are torn, or have rotted."""
    found = []
    for line in content.splitlines():
        with suppress(orjson.JSONDecodeError):
            row = orjson.loads(line)
            if isinstance(row, dict) and isinstance(row.get("round"), int):
                found.append(row)
    return found
