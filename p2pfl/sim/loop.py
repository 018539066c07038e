"""An event loop whose clock jumps to the next timer when nothing is ready.

`asyncio.sleep`, `asyncio.timeout` and `loop.call_later` work as ever, an hour takes no time, and the same program runs
in the same order again. It subclasses the stdlib's selector loop because uvloop's timers cannot be given a clock.
"""

from __future__ import annotations

import asyncio
import gc
import math
import selectors
import time
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, cast

from p2pfl.errors import CourseError

__all__ = ["Stalled", "VirtualLoop", "run_virtual"]

ResultT = TypeVar("ResultT")
_RESOLUTION = time.get_clock_info("monotonic").resolution  # by which asyncio lets timers be early
_MOST_NAMED = 5  # tasks in the sentence of a Stalled


class Stalled(CourseError):
    """Every task waits, no timer is set and nothing computes: it would go on like this for ever."""


class _Jump(selectors.BaseSelector):
    """A selector that never waits for a timer: it moves the clock instead. Real waiting is for threads only."""

    def __init__(self, loop: VirtualLoop) -> None:
        self._real = selectors.DefaultSelector()
        self._loop = loop

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        return self._real.register(fileobj, events, data)

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        return self._real.unregister(fileobj)

    def modify(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        return self._real.modify(fileobj, events, data)

    def get_map(self) -> Any:
        return self._real.get_map()

    def close(self) -> None:
        self._real.close()

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is not None and timeout <= 0:
            self._loop.advance(0.0)
            return []
        if self._loop.computing:
            return self._real.select(None)  # the clock stands while a thread computes; its end wakes us
        ready = self._real.select(0)
        if ready or self._loop.idle():
            return ready
        if timeout is None:
            raise Stalled(f"nothing is under way that could end the waiting of {self._loop.who_waits()}")
        self._loop.advance(timeout)
        return []


class VirtualLoop(asyncio.SelectorEventLoop):
    """`computing` counts jobs on other threads, during which the clock must not move."""

    def __init__(self, start: float = 0.0) -> None:
        """`start`: what the clock shows at first, in seconds."""
        self._now = start
        self._threads: Executor | None = None  # the default executor, once there is one
        self._idle_calls: list[Callable[[], object]] = []
        self.computing = 0
        super().__init__(_Jump(self))

    def time(self) -> float:
        """Seconds of virtual time."""
        return self._now

    def advance(self, seconds: float) -> None:
        """Move the clock on. Called by the selector; in a coroutine it makes the loop look stalled for so long."""
        self._now += seconds
        if self._now + _RESOLUTION == self._now:  # after some months a timer is due only once its time is over
            self._now = math.nextafter(self._now, math.inf)

    def when_idle(self, callback: Callable[[], object]) -> None:
        """Call back once nothing more is to be done at this time, before the clock moves on."""
        self._idle_calls.append(callback)

    def idle(self) -> bool:
        """Nothing is ready: call those who asked for this moment; whether there were such. Called by the selector."""
        calls, self._idle_calls = self._idle_calls, []
        for callback in calls:
            self.call_soon(callback)
        return bool(calls)

    def set_default_executor(self, executor: ThreadPoolExecutor) -> None:  # type: ignore[override]  # typeshed: Any
        """As ever."""
        super().set_default_executor(executor)
        self._threads = executor

    async def shutdown_default_executor(self, *args: Any) -> None:
        """As ever; a thread does it."""
        self.computing += 1
        try:
            await super().shutdown_default_executor(*args)
        finally:
            self.computing -= 1

    def run_in_executor(  # type: ignore[override]  # typeshed spells it with TypeVarTuple
        self, executor: Executor | None, func: Callable[..., ResultT], *args: Any
    ) -> asyncio.Future[ResultT]:
        """As ever, with the clock standing until the thread is done, even if nobody waits for it any more."""
        if executor is None and self._threads is None:
            self.set_default_executor(ThreadPoolExecutor(thread_name_prefix="asyncio"))
        job = cast("Executor", executor or self._threads).submit(func, *args)
        self.computing += 1
        future = asyncio.wrap_future(job, loop=self)
        job.add_done_callback(self._job_ended)  # after the callback of `future`, which so is told first
        return future

    def _job_ended(self, _: object) -> None:
        """On the job's thread."""
        with suppress(RuntimeError):  # the loop may have been closed meanwhile
            self.call_soon_threadsafe(self._computed)

    def _computed(self) -> None:
        self.computing -= 1

    def who_waits(self) -> str:
        """The tasks that have not ended, and where each of them stands."""
        places = sorted(_place(task) for task in asyncio.all_tasks(self))
        more = f" and {len(places) - _MOST_NAMED} more" if len(places) > _MOST_NAMED else ""
        return ", ".join(places[:_MOST_NAMED]) + more or "this loop"


def _place(task: asyncio.Task[Any]) -> str:
    frames = task.get_stack()
    if not frames:
        return task.get_name()
    code = frames[-1].f_code
    return f"{task.get_name()} in {code.co_qualname} ({Path(code.co_filename).name}:{frames[-1].f_lineno})"


def run_virtual(work: Coroutine[Any, Any, ResultT], start: float = 0.0) -> ResultT:
    """`asyncio.run` on a virtual loop of its own, from `start` seconds. Raises Stalled where it waits for ever."""
    with _rare_collections(), asyncio.Runner(loop_factory=partial(VirtualLoop, start)) as runner:
        try:
            return runner.run(work)
        except Stalled:
            with suppress(Stalled):  # so that the cancelled tasks can end
                runner.get_loop().run_until_complete(asyncio.sleep(0))
            raise


@contextmanager
def _rare_collections() -> Iterator[None]:
    """Thousands of nodes are a million objects that live to the end: to search them for cycles all the time doubles the
    cost of a message. What a simulation leaves behind is freed by reference counts, nearly all of it.
    """
    before = gc.get_threshold()
    gc.set_threshold(100_000, 50, 100)
    try:
        yield
    finally:
        gc.set_threshold(*before)
