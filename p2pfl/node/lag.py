"""How late an event loop is: what blocks it delays all links, heartbeats and deadlines of its nodes alike."""

from __future__ import annotations

import asyncio
import math
from collections import deque
from types import TracebackType
from typing import Self

__all__ = ["LoopLag"]


class LoopLag:
    """Sets a timer every `period_seconds` and notes how late it is called: `with LoopLag() as lag: ...`.

    What is told is the longest delay within a window, so that whoever looks once a minute misses no stall. The
    delays are kept as a falling sequence, each until a longer one comes or its time is over: Daniel Lemire, Streaming
    maximum-minimum filter using no more than three comparisons per element, Nordic Journal of Computing 13 (2006),
    https://arxiv.org/abs/cs/0610046.
    """

    def __init__(self, period_seconds: float = 0.25, window_seconds: float = 60.0) -> None:
        self.window_seconds = window_seconds
        self._period = period_seconds
        self._delays: deque[tuple[float, float]] = deque()  # when it ended, how long it was; ever shorter
        self._timer: asyncio.TimerHandle | None = None  # while it runs

    def __enter__(self) -> Self:
        self._set()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def longest(self, seconds: float = math.inf) -> float:
        """The longest delay within the last so many seconds, and within the window at most; in seconds."""
        now = asyncio.get_running_loop().time()
        since = now - min(seconds, self.window_seconds)
        past = next((delay for ended, delay in self._delays if ended >= since), 0.0)
        return max(past, now - self._timer.when() if self._timer is not None else 0.0)

    def _set(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(self._period, self._ring)

    def _ring(self) -> None:
        assert self._timer is not None
        now = asyncio.get_running_loop().time()
        delay = max(0.0, now - self._timer.when())
        while self._delays and self._delays[-1][1] <= delay:
            self._delays.pop()
        self._delays.append((now, delay))
        while self._delays[0][0] < now - self.window_seconds:
            self._delays.popleft()
        self._set()

    def __repr__(self) -> str:
        return f"<LoopLag: every {self._period:g} s, over {self.window_seconds:g} s>"
