"""What a simulated node has for a process: its tasks, which end together when it is killed, and its wall clock."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine, Generator, Iterator
from contextlib import contextmanager
from contextvars import ContextVar, copy_context
from typing import Any

__all__ = ["Process", "note_tasks", "wall_clocks"]

_CURRENT: ContextVar[Process | None] = ContextVar("process", default=None)


class Process:
    """All tasks that are made in `context`, and by these tasks. It knows them on a loop that `note_tasks` was told of.

    A node's code runs in the context in which it was entered, also where it is called back by a link.
    """

    def __init__(self, wall_seconds: float = 0.0) -> None:
        """`wall_seconds`: by which its wall clock is fast."""
        self.wall_seconds = wall_seconds
        self.killed = False
        self.context = copy_context()
        self.context.run(_CURRENT.set, self)
        self._tasks: dict[asyncio.Task[Any], None] = {}  # in the order in which they were made

    @staticmethod
    def current() -> Process | None:
        """The process that this code runs in, if any."""
        return _CURRENT.get()

    @property
    def tasks(self) -> tuple[asyncio.Task[Any], ...]:
        """Those that have not ended."""
        return tuple(self._tasks)

    def adopt(self, task: asyncio.Task[Any]) -> None:
        """A task was made in this process."""
        self._tasks[task] = None
        task.add_done_callback(self._tasks.pop)
        if self.killed:  # by one that is about to end
            task.cancel()

    def kill(self) -> None:
        """End all tasks. What they do as they end must have no effect: their links and disks are gone before."""
        self.killed = True
        for task in self.tasks:
            task.cancel()

    def __repr__(self) -> str:
        return f"<Process of {len(self._tasks)} tasks{', killed' if self.killed else ''}>"


def note_tasks(loop: asyncio.AbstractEventLoop) -> None:
    """From now on each process on this loop knows its tasks."""

    def make(
        loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, Any] | Generator[Any, None, Any], **options: Any
    ) -> asyncio.Task[Any]:
        task: asyncio.Task[Any] = asyncio.Task(work, loop=loop, **options)
        context = options.get("context")
        process = _CURRENT.get() if context is None else context.get(_CURRENT)
        if process is not None:
            process.adopt(task)
        return task

    loop.set_task_factory(make)


@contextmanager
def wall_clocks() -> Iterator[None]:
    """While the block lasts, `time.time()` and `time.time_ns()` in each process are those of its own wall clock."""
    true_time, true_time_ns = time.time, time.time_ns

    def fast() -> float:
        process = _CURRENT.get()
        return 0.0 if process is None else process.wall_seconds

    time.time = lambda: true_time() + fast()
    time.time_ns = lambda: true_time_ns() + int(fast() * 1e9)
    try:
        yield
    finally:
        time.time, time.time_ns = true_time, true_time_ns
