"""Jobs on threads, so that the event loop stays free for the links."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable
from typing import TypeVar

from p2pfl.compute.job import Job

__all__ = ["Threads"]

ResultT = TypeVar("ResultT")


class Threads:
    """A fixed number of worker threads.

    They are daemons, unlike those of concurrent.futures: a process that was told to stop does not wait for an epoch.
    """

    def __init__(self, workers: int = 1) -> None:
        self._work: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._threads = [
            threading.Thread(target=self._serve, name=f"p2pfl compute {n}", daemon=True) for n in range(workers)
        ]
        for thread in self._threads:
            thread.start()

    async def run(self, job: Job[ResultT]) -> ResultT:
        loop = asyncio.get_running_loop()
        done: asyncio.Future[ResultT] = loop.create_future()

        def compute() -> None:
            if done.cancelled():
                return
            try:
                result, error = job(), None
            except Exception as raised:  # noqa: BLE001 - carried over to whoever awaits the job
                result, error = None, raised
            if not loop.is_closed():
                loop.call_soon_threadsafe(_settle, done, result, error)

        self._work.put(compute)
        return await done

    async def close(self) -> None:
        for _ in self._threads:
            self._work.put(None)

    def _serve(self) -> None:
        while (work := self._work.get()) is not None:
            work()

    def __repr__(self) -> str:
        return f"<Threads {len(self._threads)}>"


def _settle(done: asyncio.Future[ResultT], result: ResultT, error: Exception | None) -> None:
    if not done.done():
        done.set_exception(error) if error is not None else done.set_result(result)
