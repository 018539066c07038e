"""Jobs on the event loop itself: simplest, and right where nothing else must happen meanwhile."""

from __future__ import annotations

from typing import TypeVar

from p2pfl.compute.job import Job

__all__ = ["Inline"]

ResultT = TypeVar("ResultT")


class Inline:
    """Computes at once. On a host with links to keep alive, `Threads` is the better choice."""

    async def run(self, job: Job[ResultT]) -> ResultT:
        return job()

    async def close(self) -> None:
        return None

    def __repr__(self) -> str:
        return "<Inline>"
