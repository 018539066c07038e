from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from p2pfl.errors import JournalError
from p2pfl.journal.disk import Folder
from tests.journal.kit import check_disk


def listing(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


async def test_a_folder_is_a_disk(tmp_path: Path) -> None:
    await check_disk(Folder(tmp_path))


async def test_what_cannot_be_synced_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = Folder(tmp_path)
    await disk.write("a", b"old")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(JournalError, match="a cannot be written: No space left"):
            await disk.write("a", b"new")
    assert disk.read("a") == b"old"
    assert listing(tmp_path) == ["a"]  # nothing half-written takes up room


async def test_file_and_folder_are_synced_before_it_returns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced = []
    real = os.fsync

    def noted(descriptor: int) -> None:
        synced.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)
        real(descriptor)

    monkeypatch.setattr(os, "fsync", noted)
    await Folder(tmp_path).write("a", b"content")
    assert synced == [".a.part", tmp_path.name]


async def test_a_file_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with pytest.raises(JournalError, match="cannot be read"):
        Folder(tmp_path).read("a")
