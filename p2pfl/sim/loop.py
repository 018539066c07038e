"""An event loop whose clock jumps to the next timer when nothing is ready.

`asyncio.sleep`, `asyncio.timeout` and `loop.call_later` work as ever, an hour takes no time, and the same program runs in
the same order again. It is a subclass of the stdlib's selector loop, because uvloop's timers cannot be given a clock.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any, TypeVar

from p2pfl.errors import CourseError

__all__ = ["Stalled", "VirtualLoop", "run_virtual"]

ResultT = TypeVar("ResultT")


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
            return []
        if self._loop.computing:
            return self._real.select(None)  # the clock stands while a thread computes; its end wakes us
        ready = self._real.select(0)
        if ready:
            return ready
        if timeout is None:
            raise Stalled("everything waits, and nothing is under way that could end it")
        self._loop.advance(timeout)
        return []


class VirtualLoop(asyncio.SelectorEventLoop):
    """Starts at time 0. `computing` counts jobs on other threads, during which the clock must not move."""

    def __init__(self) -> None:
        self._now = 0.0
        self.computing = 0
        super().__init__(_Jump(self))

    def time(self) -> float:
        return self._now

    def advance(self, seconds: float) -> None:
        """Move the clock on. Called by the selector."""
        self._now += seconds

    def run_in_executor(self, executor: Any, func: Callable[..., ResultT], *args: Any) -> asyncio.Future[ResultT]:  # type: ignore[override]  # typeshed spells it with TypeVarTuple
        """As ever, with the clock standing until the thread is done."""
        self.computing += 1
        future = super().run_in_executor(executor, func, *args)
        future.add_done_callback(self._computed)
        return future

    def _computed(self, _: object) -> None:
        self.computing -= 1


def run_virtual(work: Coroutine[Any, Any, ResultT]) -> ResultT:
    """`asyncio.run` on a virtual loop of its own. Raises Stalled where the program waits for ever."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        try:
            return runner.run(work)
        except Stalled:
            with suppress(Stalled):  # so that the cancelled tasks can end
                runner.get_loop().run_until_complete(asyncio.sleep(0))
            raise
