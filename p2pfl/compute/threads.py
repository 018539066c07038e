"""Jobs on threads, so that the event loop stays free for the links."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future
from functools import partial
from typing import Any, ParamSpec, TypeVar

from p2pfl.compute.job import Job, alone, outcome

__all__ = ["Threads"]

ResultT = TypeVar("ResultT")
P = ParamSpec("P")


class Threads:
    """A fixed number of worker threads, which take the jobs in the order in which they come.

    Jobs of one `Model` take turns on its module, so more workers pay off only where there are several models.
    """

    def __init__(self, workers: int = 1) -> None:
        self._workers = _Daemons(workers)

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


class _Daemons(Executor):
    """Daemon threads, unlike those of ThreadPoolExecutor: a process that is told to stop does not wait for an epoch."""

    def __init__(self, workers: int) -> None:
        self._work: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = queue.SimpleQueue()
        self._closed = False
        self.threads = [
            threading.Thread(target=self._serve, name=f"p2pfl compute {number}", daemon=True)
            for number in range(workers)
        ]
        for thread in self.threads:
            thread.start()

    def submit(self, fn: Callable[P, ResultT], /, *args: P.args, **kwargs: P.kwargs) -> Future[ResultT]:
        if self._closed:
            raise RuntimeError("this compute has been closed")
        future: Future[ResultT] = Future()
        self._work.put((future, partial(fn, *args, **kwargs)))
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """What was submitted is still done."""
        if not self._closed:
            self._closed = True
            for _ in self.threads:
                self._work.put(None)
        if wait:
            for thread in self.threads:
                thread.join()

    def _serve(self) -> None:
        while self._serve_one():
            pass

    def _serve_one(self) -> bool:
        """A function of its own, so that an idle worker does not hold on to the tensors of its last job."""
        work = self._work.get()
        if work is None:
            return False
        future, call = work
        if future.set_running_or_notify_cancel():
            try:
                result = call()
            except BaseException as error:  # noqa: BLE001 - carried over to whoever awaits the job
                future.set_exception(error)
            else:
                future.set_result(result)
        return True
