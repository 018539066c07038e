"""Workers in other processes: which of them gets which jobs, and what becomes of those that a worker has died of."""

from __future__ import annotations

import asyncio
import traceback
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future
from contextlib import contextmanager
from typing import Any, ParamSpec, Protocol, cast

import msgspec
from torch import Tensor

from p2pfl.compute.job import EvaluateJob, FitJob, Job, outcome
from p2pfl.errors import ComputeError, ConfigError
from p2pfl.learn.evaluate import Evaluation
from p2pfl.learn.train import FitResult

__all__ = ["Crew", "Failure", "Outcome", "Portable", "Worker", "WorkerLost", "shared_vectors"]

P = ParamSpec("P")
Portable = FitJob | EvaluateJob
"""Jobs that can be sent to a worker."""
Outcome = FitResult | Evaluation | Exception

_GRAIN = 2e7  # examples times weights: some milliseconds, against which it does not matter what a parcel costs
_MOST_BYTES = 64 * 2**20  # results of one parcel, unless one job alone has more
_TURNS = 2  # parcels for each worker that what is left is cut into, so that all end at about the same time


class WorkerLost(ComputeError):
    """A worker has died in the middle of its work."""


class Failure(msgspec.Struct, array_like=True, tag=True):
    """An error as it is sent, in words: its class may be unknown here, and its arguments may be anything."""

    text: str
    of_user: bool  # a ConfigError, which is for a person to read; any other becomes a ComputeError
    traceback: str

    @classmethod
    def of(cls, error: Exception) -> Failure:
        """What is sent for an error."""
        of_user = isinstance(error, ConfigError)
        text = str(error) if of_user else f"{type(error).__name__} in a worker: {error}"
        return cls(text, of_user, "".join(traceback.format_exception(error)))

    @property
    def error(self) -> Exception:
        """The error, with the worker's traceback as a note."""
        error = ConfigError(self.text) if self.of_user else ComputeError(self.text)
        error.add_note(self.traceback)
        return error


class Worker(Protocol):
    """Computes parcels of jobs, one after the other."""

    @property
    def pending(self) -> int:
        """Parcels that were begun and are not answered."""
        ...

    def begin(self, jobs: Sequence[Portable]) -> Future[list[Outcome]]:
        """Have jobs computed as one; the outcomes, in their order. Must not block.

        ComputeError where it could not be done; WorkerLost if that may have been because of these jobs.
        """
        ...


def shared_vectors(jobs: Sequence[Job[Any]]) -> list[Tensor]:
    """The vectors that several of the jobs have for parameters: worth sending ahead."""
    vectors = [job.params for job in jobs if isinstance(job, Portable)]
    uses = Counter(map(id, vectors))
    return list({id(vector): vector for vector in vectors if uses[id(vector)] > 1}.values())


class Crew:
    """Some workers. Jobs that cannot be sent to them are done here, on the event loop."""

    def __init__(self, workers: Sequence[Worker], end: Callable[[], None]) -> None:
        """`end` is called once the crew is closed and nothing is under way."""
        self._workers = workers
        self._end = end
        self._under_way = 0  # calls of `run_all`
        self._closed = False

    @contextmanager
    def open(self) -> Iterator[None]:
        """While the block lasts, the workers are needed. Raises RuntimeError after `close`."""
        if self._closed:
            raise RuntimeError("this compute has been closed")
        self._under_way += 1
        try:
            yield
        finally:
            self._under_way -= 1
            self._end_if_done()

    def close(self) -> None:
        """Begin nothing more."""
        self._closed = True
        self._end_if_done()

    def _end_if_done(self) -> None:
        if self._closed and not self._under_way:
            self._end()

    async def run_all(self, jobs: Sequence[Job[Any]]) -> list[Any]:
        """As `Compute.run_all`, in a block of `open`."""
        work = _Work(jobs, len(self._workers))
        async with asyncio.TaskGroup() as group:
            for _ in self._workers:
                group.create_task(self._work_off(work))
        return [work.found[at] if at in work.found else outcome(job) for at, job in enumerate(jobs)]

    async def _work_off(self, work: _Work) -> None:
        while parcel := work.take():
            worker = min(self._workers, key=lambda worker: worker.pending)
            try:
                found = await _elsewhere(worker, tuple(parcel.values()))
            except WorkerLost as error:
                work.lost(parcel, error)
            except ComputeError as error:
                work.found.update(dict.fromkeys(parcel, error))
            else:
                work.found.update(zip(parcel, found, strict=True))


class _Work:
    """Jobs of one `run_all`, by their place in it."""

    def __init__(self, jobs: Sequence[Job[Any]], workers: int) -> None:
        self.found: dict[int, Outcome] = {}
        self._left = deque((at, job) for at, job in enumerate(jobs) if isinstance(job, Portable))
        self._cost = sum(_cost(job) for _, job in self._left)
        self._turns = _TURNS * workers
        self._suspects: set[int] = set()  # a worker has died when it had them

    def take(self) -> dict[int, Portable]:
        """The next parcel; empty if there is none."""
        parcel: dict[int, Portable] = {}
        share, room = max(_GRAIN, self._cost / self._turns), _MOST_BYTES
        while self._left:
            at, job = self._left[0]
            if parcel and (share <= 0 or job.result_bytes > room or at in self._suspects):
                break
            self._left.popleft()
            parcel[at] = job
            self._cost -= _cost(job)
            share -= _cost(job)
            room -= job.result_bytes
            if at in self._suspects:  # each alone, so that only what has killed a worker kills another
                break
        return parcel

    def lost(self, parcel: dict[int, Portable], error: WorkerLost) -> None:
        """A worker has died of this."""
        for at, job in reversed(parcel.items()):
            if at in self._suspects:
                self.found[at] = ComputeError(f"two workers died of this job; is there enough memory? ({error})")
            else:
                self._suspects.add(at)
                self._left.appendleft((at, job))
                self._cost += _cost(job)


def _cost(job: Portable) -> int:
    return job.examples * job.model.layout.numel


class _Away(Executor):
    """Makes calls at once which give a future, and has that for their result: what they begin goes on elsewhere."""

    def submit(self, fn: Callable[P, Any], /, *args: P.args, **kwargs: P.kwargs) -> Future[Any]:
        return cast("Future[Any]", fn(*args, **kwargs))


async def _elsewhere(worker: Worker, jobs: Sequence[Portable]) -> list[Outcome]:
    """By way of `run_in_executor`, because that is what a loop with a virtual clock waits for."""
    outcomes = asyncio.get_running_loop().run_in_executor(_Away(), worker.begin, jobs)
    return cast("list[Outcome]", await outcomes)
