from __future__ import annotations

import asyncio
from pathlib import Path
from random import Random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from p2pfl.errors import JournalError
from p2pfl.journal.certificate import Certificate, Contribution
from p2pfl.journal.disk import Folder
from p2pfl.journal.journal import Commit, Journal
from p2pfl.journal.ledger import LEDGER, Ledger
from p2pfl.sim.disk import SimulatedDisk
from p2pfl.sim.loop import run_virtual


def disk(sync_seconds: float = 0.0) -> SimulatedDisk:
    return SimulatedDisk(Random(1), sync_seconds)


def commit(rounds: int) -> Commit:
    certificate = Certificate("run", rounds - 1, 1, f"hash {rounds}", (Contribution(1, "a", "x", 2.0),))
    return Commit(rounds, {"params": torch.full((3,), float(rounds)), "round": rounds}, certificate, {"loss": 0.5})


def rounds_of(found: Commit | None) -> int | None:
    return None if found is None else found.rounds


async def test_the_last_commit_comes_back_whole(tmp_path: Path) -> None:
    journal = Journal(Folder(tmp_path), "run", Ledger(tmp_path))
    assert journal.last() is None
    for rounds in (1, 2, 3):
        await journal.commit(commit(rounds))
    found = Journal(Folder(tmp_path), "run", Ledger(tmp_path)).last()
    assert found is not None
    assert (found.rounds, found.certificate, found.metrics) == (3, commit(3).certificate, {"loss": 0.5})
    assert torch.equal(torch.as_tensor(found.state["params"]), torch.full((3,), 3.0))
    assert sorted(Folder(tmp_path).names()) == [LEDGER, "round-000002.safetensors", "round-000003.safetensors"]


@pytest.mark.parametrize("harm", ["flip", "cut", "empty"])
async def test_a_damaged_state_is_passed_over_and_told(tmp_path: Path, harm: str) -> None:
    journal = Journal(Folder(tmp_path), "run")
    await journal.commit(commit(1))
    await journal.commit(commit(2))
    path = tmp_path / "round-000002.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes({"flip": bytes(content), "cut": bytes(content[:50]), "empty": b""}[harm])
    again = Journal(Folder(tmp_path), "run")
    assert rounds_of(again.last()) == 1
    assert len(again.damage) == 1
    assert "round-000002.safetensors is passed over" in again.damage[0]


async def test_what_is_kept_under_a_name_is_replaced() -> None:
    there = disk()
    journal = Journal(there, "run")
    assert journal.kept("update") is None
    await journal.keep("update", {"round": 1})
    await journal.keep("update", {"round": 2, "params": torch.ones(2), "peer": "x"})
    found = Journal(there, "run").kept("update")
    assert found is not None
    assert (found["round"], found["peer"]) == (2, "x")


async def test_a_kept_thing_that_has_rotted_is_told() -> None:
    there = disk()
    journal = Journal(there, "run")
    await journal.keep("update", {"params": torch.ones(100)})
    there.rot("kept-update.safetensors")
    assert journal.kept("update") is None
    assert "kept-update.safetensors is passed over" in journal.damage[0]


async def test_a_full_disk_leaves_the_last_commit() -> None:
    there = disk()
    journal = Journal(there, "run")
    await journal.commit(commit(1))
    there.full = True
    with pytest.raises(JournalError, match="full"):
        await journal.commit(commit(2))
    assert rounds_of(journal.last()) == 1


@given(st.integers(1, 6), st.floats(0, 0.03), st.booleans(), st.integers(0, 99))
def test_a_crash_at_any_moment_loses_what_was_not_said_to_be_committed_and_nothing_else(
    rounds: int, seconds: float, torn: bool, seed: int
) -> None:
    there = SimulatedDisk(Random(seed), 0.005)
    there.torn = torn
    said = 0

    async def write() -> None:
        nonlocal said
        journal = Journal(there, "run")
        for number in range(1, rounds + 1):
            await journal.commit(commit(number))
            said = number

    async def crash() -> None:
        task = asyncio.create_task(write())
        await asyncio.sleep(seconds)
        task.cancel()
        there.crash()

    run_virtual(crash())
    assert (rounds_of(Journal(there, "run").last()) or 0) in (said, said + 1)
