from __future__ import annotations

import asyncio
from random import Random

import pytest

from p2pfl.errors import JournalError
from p2pfl.sim.disk import SimulatedDisk
from tests.journal.kit import check_disk


async def test_it_is_a_disk() -> None:
    await check_disk(SimulatedDisk(Random(0)))


async def test_a_crash_loses_what_was_being_written_and_nothing_else() -> None:
    disk = SimulatedDisk(Random(0), sync_seconds=1.0)
    await disk.write("a", b"old")
    async with asyncio.TaskGroup() as group:
        writing = group.create_task(_fails(disk))
        await asyncio.sleep(0.5)
        disk.crash()
        await writing
    assert disk.read("a") == b"old"


async def _fails(disk: SimulatedDisk) -> None:
    with pytest.raises(JournalError, match="dead"):
        await disk.write("a", b"new")


async def test_a_torn_write_leaves_half_a_file() -> None:
    disk = SimulatedDisk(Random(0), sync_seconds=1.0)
    disk.torn = True
    writing = asyncio.create_task(disk.write("a", bytes(100)))
    await asyncio.sleep(0.5)
    writing.cancel()
    disk.crash()
    assert len(disk.read("a") or bytes(200)) < 100


async def test_a_full_disk_says_so_and_keeps_what_it_has() -> None:
    disk = SimulatedDisk(Random(0))
    await disk.write("a", b"old")
    disk.full = True
    with pytest.raises(JournalError, match="a cannot be written: the disk is full"):
        await disk.write("a", b"new")
    assert disk.read("a") == b"old"


async def test_one_bit_rots() -> None:
    disk = SimulatedDisk(Random(0))
    await disk.write("a", bytes(10))
    disk.rot("a")
    assert sum(disk.read("a") or b"").bit_count() == 1
