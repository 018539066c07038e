"""Secure aggregation of processes over real sockets, some of which are killed in the middle."""

from __future__ import annotations

import asyncio
import json
import sys
from asyncio.subprocess import PIPE
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from p2pfl.courses.learner import seed_of
from tests.courses.kit import Played, fit
from tests.end_to_end.secrecy import CLIENTS, KILLED, MOST_EXAMPLES, ROUNDS, course

ROOT = Path(__file__).parents[1]
COUNTS = "reveal"  # the stage in which who is killed has given its update already


def averaged(played: Played, params: Tensor, seats: list[int], round: int) -> Tensor:
    """What federated averaging makes of the training of these seats."""
    fits = [
        fit(params, played.model, played.shards[seat], played.train, seed_of(0, "fit", round, seat), round)
        for seat in seats
    ]
    weights = np.array([min(found.num_examples / MOST_EXAMPLES, 1.0) for found in fits])
    stacked = torch.stack([found.params for found in fits]).double().numpy()
    return torch.from_numpy(np.average(stacked, axis=0, weights=weights)).float()


@pytest.mark.sockets
@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
async def test_of_twelve_processes_three_are_killed_in_the_middle_of_a_session(loop: str) -> None:
    """F5: the sum is that of those who had given their update, and all who are left go on."""
    arguments = (sys.executable, "-W", "error", "-m", "tests.end_to_end.secrecy", "2", loop)
    process = await asyncio.create_subprocess_exec(*arguments, stdout=PIPE, stderr=PIPE, cwd=ROOT)
    out, err = await process.communicate()
    assert process.returncode == 0, err.decode()[-3000:]
    found = json.loads(out)
    dooms = {int(seat): stage for seat, stage in found["dooms"].items()}
    assert len(dooms) == KILLED and len(set(dooms.values())) > 1
    assert found["ends"] == [-9 if seat in dooms else 0 for seat in range(1, CLIENTS + 1)]
    assert not found["failed"]
    first = [seat for seat in range(1, CLIENTS + 1) if dooms.get(seat, COUNTS) == COUNTS]
    rest = [seat for seat in range(1, CLIENTS + 1) if seat not in dooms]
    assert found["participants"] == [len(first), len(rest)] and ROUNDS == 2
    played = course()
    params = averaged(played, averaged(played, played.model.initial, first, 0), rest, 1)
    assert torch.allclose(torch.tensor(found["params"]), params, rtol=0, atol=1e-4)
