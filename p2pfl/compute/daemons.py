"""Threads that do not keep a process from ending. Nothing here needs torch."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future
from functools import partial
from typing import Any, ParamSpec, TypeVar

__all__ = ["Daemons"]

ResultT = TypeVar("ResultT")
P = ParamSpec("P")


class Daemons(Executor):
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
