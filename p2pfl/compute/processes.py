"""Jobs on worker processes: started once, one thread each, with the models and data that they had at the fork."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from p2pfl.compute.arena import Arena
from p2pfl.compute.crew import Crew, Portable, shared_vectors
from p2pfl.compute.forked import Forked, Known
from p2pfl.compute.job import Job, alone
from p2pfl.errors import ConfigError
from p2pfl.learn.data import Dataset
from p2pfl.learn.model import Model

__all__ = ["Processes", "available_cpus"]

ResultT = TypeVar("ResultT")


class Processes:
    """Trains and evaluates on `workers` processes of this machine; other jobs are done here, on the event loop.

    The processes are forked at `start` or at the first jobs, and anew for models and data that they do not know. What a
    process had when it died is done again; a job that two of them have died of raises ComputeError.
    """

    examples_per_second = None  # nobody knows before it is measured

    def __init__(self, workers: int = 0) -> None:
        """`workers`: 0 for as many as there are CPUs to be had. Raises ConfigError where there is no Linux."""
        if sys.platform != "linux":
            raise ConfigError("--compute processes needs Linux, for its fork and its shared memory; use cohort here")
        if workers < 0:
            raise ConfigError(f"--compute.workers is {workers}; it must not be negative")
        arena = self._arena = Arena()
        known = self._known = Known()
        self._workers = [Forked(known, arena) for _ in range(workers or available_cpus())]
        self._crew = Crew(self._workers, self._end)

    def start(self, things: Iterable[Model | Dataset] = ()) -> None:
        """Fork now, before there are threads, with these models and data; they are never forgotten."""
        self._known.keep(things)
        for worker in self._workers:
            worker.end()
            worker.start()

    @property
    def parallel(self) -> int:
        return len(self._workers)

    async def run(self, job: Job[ResultT]) -> ResultT:
        return await alone(self, job)

    async def run_all(self, jobs: Sequence[Job[ResultT]]) -> list[ResultT | Exception]:
        with self._crew.open():
            self._known.meet(jobs)
            return await self._crew.run_all(self._shared(jobs))

    async def close(self) -> None:
        self._crew.close()

    def _end(self) -> None:
        for worker in self._workers:
            worker.end()

    def _shared(self, jobs: Sequence[Job[Any]]) -> list[Job[Any]]:
        """The jobs, with the vectors that several of them have put where all processes see them, once."""
        copies = {id(vector): self._arena.copy(vector) for vector in shared_vectors(jobs)}
        return [
            replace(job, params=copies[id(job.params)])
            if isinstance(job, Portable) and id(job.params) in copies
            else job
            for job in jobs
        ]

    def __repr__(self) -> str:
        return f"<Processes {len(self._workers)}>"


def available_cpus() -> int:
    """CPUs that this process may use: by affinity, and by the quota of its control group."""
    allowed = len(os.sched_getaffinity(0))
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()
    except (OSError, ValueError):
        return allowed
    return allowed if quota == "max" else max(1, min(allowed, round(int(quota) / int(period))))
