"""What computes with workers elsewhere have in common: what is sent, in which parcels, and what a death means."""

from __future__ import annotations

import asyncio
import sys
from abc import ABC, abstractmethod
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from p2pfl.compute.daemons import Daemons
from p2pfl.compute.job import EvaluateJob, FitJob, Job, alone, outcome
from p2pfl.errors import ComputeError

__all__ = ["Portable", "Remote", "WorkerLost", "parcel"]

ResultT = TypeVar("ResultT")
Portable = FitJob | EvaluateJob
"""Jobs that can be sent."""

_TURNS = 2  # parcels for each worker that what is left is cut into: few, so that batches are large, but not one
_KILLER = "two workers died of this job; see what killed them (is there enough memory?)"


class WorkerLost(ComputeError):
    """A worker has ended in the middle of its work."""


class Remote(ABC):
    """Sends training and evaluation to workers, and runs other jobs here, on a thread.

    What a worker had when it died runs again. A job of which two workers died raises ComputeError.
    """

    def __init__(self) -> None:
        self._turn = asyncio.Lock()  # one list of jobs after the other
        self._taken: set[asyncio.Task[Any]] = set()
        self._here: Daemons | None = None
        self._closed = False

    async def run(self, job: Job[ResultT]) -> ResultT:
        return await alone(self, job)

    async def run_all(self, jobs: Sequence[Job[ResultT]]) -> list[ResultT | Exception]:
        if self._closed:
            raise RuntimeError("this compute has been closed")
        taken = asyncio.create_task(self._run_all(jobs))
        self._taken.add(taken)
        taken.add_done_callback(self._taken.discard)
        return await asyncio.shield(taken)  # whoever is cancelled must not leave a worker with half an answer

    async def close(self) -> None:
        self._closed = True
        if self._taken:
            await asyncio.wait(self._taken)
        if self._here is not None:
            self._here.shutdown(wait=False)
        self._dismiss()

    @abstractmethod
    async def _attempt(self, jobs: Mapping[int, Portable], found: dict[int, Any], most: int) -> Sequence[int]:
        """Have jobs computed, at most so many in a parcel, until all are or no worker is left.

        Outcomes go into `found`; given back are the jobs of which workers died.
        """

    @abstractmethod
    def _dismiss(self) -> None:
        """Let the workers go, if there are any."""

    async def _run_all(self, jobs: Sequence[Job[Any]]) -> list[Any]:
        async with self._turn:
            found: dict[int, Any] = {}
            left = {at: job for at, job in enumerate(jobs) if isinstance(job, Portable)}
            deaths = Counter[int]()
            while left:
                # After a death one at a time, so that a worker that dies again dies of just one job.
                lost = await self._attempt(left, found, 1 if deaths else sys.maxsize)
                deaths.update(lost)
                found |= {at: ComputeError(_KILLER) for at in lost if deaths[at] > 1}
                left = {at: job for at, job in left.items() if at not in found}
            for at, job in enumerate(jobs):
                if at not in found:
                    found[at] = await self._on_thread(job)
            return [found[at] for at in range(len(jobs))]

    async def _on_thread(self, job: Job[ResultT]) -> ResultT | Exception:
        if self._here is None:
            self._here = Daemons(1)
        return await asyncio.get_running_loop().run_in_executor(self._here, outcome, job)


def parcel(left: deque[tuple[int, Portable]], workers: int, most: int) -> dict[int, Portable]:
    """Take the next parcel off a queue: a share of what is left, so that all workers end at about the same time."""
    share = min(most, -(-len(left) // (_TURNS * workers)))
    return dict(left.popleft() for _ in range(share))
