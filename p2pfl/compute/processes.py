"""Jobs on worker processes: started once, one thread each, with the models and data that they had at the fork."""

from __future__ import annotations

import asyncio
import os
import sys
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from threading import Lock
from typing import Any

from p2pfl.compute.daemons import Daemons
from p2pfl.compute.forked import Forked, Known, nbytes
from p2pfl.compute.remote import Portable, Remote, WorkerLost, parcel
from p2pfl.errors import ConfigError

__all__ = ["Processes", "available_cpus"]

_CAPACITY = 256 * 2**20  # bytes of memory that each worker shares with us, at least


class Processes(Remote):
    """Trains and evaluates on processes of this machine.

    They are forked at the first job, and anew when models or data come up that they do not know.
    """

    def __init__(self, workers: int = 0) -> None:
        """`workers`: 0 for as many as there are CPUs to be had. Raises ConfigError where processes cannot be forked."""
        super().__init__()
        if not hasattr(os, "fork") or sys.platform == "darwin":
            raise ConfigError("--compute processes needs fork, as on Linux; use cohort or threads here")
        if workers < 0:
            raise ConfigError(f"--compute.workers is {workers}; it must not be negative")
        self._count = workers or available_cpus()
        self._known = Known()
        self._workers: list[Forked] = []
        self._threads: Daemons | None = None  # one for each worker, made after the forks

    async def _attempt(self, jobs: Mapping[int, Portable], found: dict[int, Any], most: int) -> Sequence[int]:
        threads = self._prepare(tuple(jobs.values()))
        left, lock, lost = deque(jobs.items()), Lock(), list[int]()

        def serve(worker: Forked) -> None:
            while True:
                with lock:
                    taken = parcel(left, self._count, most)
                if not taken:
                    return
                for some in _loads(taken, worker.capacity):
                    try:
                        found.update(zip(some, worker.run(tuple(some.values())), strict=True))
                    except WorkerLost:
                        lost.extend(some)
                        return

        # By way of run_in_executor because it is what a loop with a virtual clock knows to wait for.
        loop = asyncio.get_running_loop()
        for future in [loop.run_in_executor(threads, serve, worker) for worker in self._workers]:
            await future
        if lost:
            self._dismiss()
        return lost

    def _prepare(self, jobs: Sequence[Portable]) -> Daemons:
        """See to it that there are workers, that they know these jobs' models and data, and have room for them."""
        largest = max(map(nbytes, jobs))
        if self._threads is not None and self._known.covers(jobs) and self._workers[0].capacity >= largest:
            return self._threads
        self._dismiss()
        self._known = self._known.and_of(jobs)
        for _ in range(self._count):
            self._workers.append(Forked(self._known, max(_CAPACITY, largest), self._workers))
        self._threads = Daemons(self._count)
        return self._threads

    def _dismiss(self) -> None:
        if self._threads is not None:
            self._threads.shutdown()  # before the next fork: a process should have no threads then
            self._threads = None
        workers, self._workers = self._workers, []
        for worker in workers:
            worker.end()

    def __repr__(self) -> str:
        return f"<Processes {self._count}>"


def _loads(taken: dict[int, Portable], capacity: int) -> Iterator[dict[int, Portable]]:
    """A parcel in as many parts as the shared memory can take at a time."""
    load: dict[int, Portable] = {}
    room = capacity
    for at, job in taken.items():
        if load and nbytes(job) > room:
            yield load
            load, room = {}, capacity
        load[at] = job
        room -= nbytes(job)
    yield load


def available_cpus() -> int:
    """CPUs that this process may use: by affinity, and by the quota of its control group."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()
    except (OSError, ValueError):
        return allowed
    return allowed if quota == "max" else max(1, min(allowed, int(quota) // int(period)))
