"""Jobs on the event loop itself: simplest, and right where nothing else must happen meanwhile."""

from __future__ import annotations

from typing import TypeVar

from p2pfl.compute.job import Job

__all__ = ["Inline"]

ResultT = TypeVar("ResultT")


class Inline:
    """Computes at once. On a host with links to keep alive, `Threads` is the better choice."""

    def __init__(self) -> None:
        self._closed = False

    async def run(self, job: Job[ResultT]) -> ResultT:
        if self._closed:
            raise RuntimeError("this compute has been closed")
        return job()

    async def close(self) -> None:
        self._closed = True

    def __repr__(self) -> str:
        return "<Inline>"
