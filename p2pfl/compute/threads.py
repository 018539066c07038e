"""Jobs on threads, so that the event loop stays free for the links."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TypeVar

from p2pfl.compute.daemons import Daemons
from p2pfl.compute.job import Job, alone, outcome

__all__ = ["Threads"]

ResultT = TypeVar("ResultT")


class Threads:
    """A fixed number of worker threads, which take the jobs in the order in which they come.

    Jobs of one `Model` take turns on its module, so more workers pay off only where there are several models.
    """

    examples_per_second = None  # nobody knows before it is measured

    def __init__(self, workers: int = 1) -> None:
        self._workers = Daemons(workers)

    @property
    def parallel(self) -> int:
        return len(self._workers.threads)

    async def run(self, job: Job[ResultT]) -> ResultT:
        return await alone(self, job)

    async def run_all(self, jobs: Sequence[Job[ResultT]]) -> list[ResultT | Exception]:
        # By way of run_in_executor because it is what a loop with a virtual clock knows to wait for.
        loop = asyncio.get_running_loop()
        futures = [loop.run_in_executor(self._workers, outcome, job) for job in jobs]
        return [await future for future in futures]

    async def close(self) -> None:
        self._workers.shutdown(wait=False)

    def __repr__(self) -> str:
        return f"<Threads {len(self._workers.threads)}>"
