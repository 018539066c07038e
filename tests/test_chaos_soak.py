"""The soak benchmark in small: processes are killed every few seconds, and a course comes to its end all the same."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.benchmarks.soak import Ordeal, endure, problems
from tests.chaos.record import undisturbed

pytestmark = pytest.mark.sockets


@pytest.mark.parametrize("name", ["fedavg", "dpsgd"])
async def test_a_course_comes_through_kills(name: str, tmp_path: Path) -> None:
    ordeal = Ordeal(name, clients=3, seconds=5.0, rounds=200)
    outcome = await endure(ordeal, tmp_path)
    assert outcome.kills >= 1
    assert problems(ordeal, outcome, await asyncio.to_thread(undisturbed, ordeal.course, ordeal.rounds)) == []
