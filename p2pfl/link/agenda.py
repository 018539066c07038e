"""What will arrive when, on all links of a network in the process: one timer serves them all."""

from __future__ import annotations

import asyncio
import heapq
import math
from typing import Protocol

__all__ = ["Agenda", "Arrives"]


class Arrives(Protocol):
    """Something of which the oldest part arrives, each time this is called."""

    def arrive(self) -> None: ...


class Agenda:
    """A heap of arrivals, because its tuples compare ten times faster than the loop's timer handles do."""

    def __init__(self) -> None:
        self._due: list[tuple[float, int, Arrives]] = []  # when, a running number, what
        self._count = 0
        self._alarm = math.inf  # when the loop will look at it next

    def add(self, due: float, what: Arrives) -> None:
        """Let it arrive at `due`, on the loop's clock. What is due at one time arrives in the order of these calls."""
        self._count += 1
        heapq.heappush(self._due, (due, self._count, what))
        if due < self._alarm:
            self._set_alarm(due)

    def _set_alarm(self, due: float) -> None:
        self._alarm = due
        asyncio.get_running_loop().call_at(due, self._deliver, due)

    def _deliver(self, alarm: float) -> None:
        if alarm != self._alarm:
            return  # an earlier arrival came up after this alarm was set
        due, now = self._due, asyncio.get_running_loop().time()
        self._alarm = math.inf
        try:
            while due and due[0][0] <= now:
                heapq.heappop(due)[2].arrive()
        finally:
            if due and due[0][0] < self._alarm:
                self._set_alarm(due[0][0])

    def __repr__(self) -> str:
        return f"<Agenda of {len(self._due)}>"
