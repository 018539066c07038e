"""Jobs on the event loop itself: simplest, and right where nothing else must happen meanwhile."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from p2pfl.compute.job import Job, alone, outcome

__all__ = ["Inline"]

ResultT = TypeVar("ResultT")


class Inline:
    """Computes at once, one job after the other. On a host with links to keep alive, `Threads` is the better choice."""

    examples_per_second = None  # nobody knows before it is measured

    def __init__(self) -> None:
        self._closed = False

    @property
    def parallel(self) -> int:
        return 1

    async def run(self, job: Job[ResultT]) -> ResultT:
        return await alone(self, job)

    async def run_all(self, jobs: Sequence[Job[ResultT]]) -> list[ResultT | Exception]:
        if self._closed:
            raise RuntimeError("this compute has been closed")
        return [outcome(job) for job in jobs]

    async def close(self) -> None:
        self._closed = True

    def __repr__(self) -> str:
        return "<Inline>"
