from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest

from p2pfl.app.lines import Lines


class Full:
    """A file that takes so many bytes, and then no more."""

    def __init__(self, file: Any, room: int) -> None:
        self._file = file
        self.room = room

    def write(self, content: bytes) -> int:
        if not self.room:
            raise OSError(errno.ENOSPC, "No space left on device")
        taken = content[: self.room]
        self.room -= len(taken)
        return int(self._file.write(taken))

    def close(self) -> None:
        self._file.close()


def test_lines_are_there_at_once(tmp_path: Path) -> None:
    path = tmp_path / "log"
    lines = Lines(path, "w")
    lines.add("one")
    assert path.read_text() == "one\n"
    lines.close()
    again = Lines(path, "a")
    again.add("zwei äöü")
    assert path.read_text(encoding="utf-8") == "one\nzwei äöü\n"
    again.close()
    Lines(path, "w").close()
    assert path.read_text() == ""


def test_a_full_disk_loses_lines_says_so_once_and_ends_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    lines = Lines(tmp_path / "log", "w")
    full = Full(lines._file, 9)
    lines._file = full  # type: ignore[assignment]  # as if the disk were full
    for word in ("one", "two-two", "three", "four"):
        lines.add(word)
    assert [record.message.partition(": ")[2] for record in caplog.records] == ["the disk is full"]
    full.room = 1000
    lines.add("five")
    assert caplog.records[-1].message.endswith("takes lines again; 3 were lost")
    assert (tmp_path / "log").read_text() == "one\ntwo-t\nfive\n", "what is torn is a line of its own"
    lines.close()
