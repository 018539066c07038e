"""What every disk of a journal must do."""

from __future__ import annotations

from p2pfl.journal.disk import Disk

__all__ = ["check_disk"]


async def check_disk(disk: Disk) -> None:
    """On an empty one."""
    assert list(disk.names()) == []
    assert disk.read("a") is None
    await disk.write("a", b"one")
    await disk.write("b", b"")
    assert sorted(disk.names()) == ["a", "b"]
    assert disk.read("a") == b"one"
    assert disk.read("b") == b""
    await disk.write("a", b"two")
    assert disk.read("a") == b"two"
    await disk.delete("a")
    await disk.delete("a")
    assert list(disk.names()) == ["b"]
