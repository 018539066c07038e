"""What the devices have begun to compute. It is computed as late as can be, and so in the largest batches."""

from __future__ import annotations

import asyncio
import heapq
from collections import deque
from typing import Any

from p2pfl.compute.job import Compute, Job
from p2pfl.sim.loop import VirtualLoop

__all__ = ["Backlog", "Begun"]

_TURNS = 3  # jobs for each worker, where there are several: they begin together and should end together
_AHEAD_BYTES = 64 * 2**20  # results that are computed before their time lie in memory until then


class Begun:
    """A job that a device has begun. `answer` has its outcome when the device is through with it."""

    __slots__ = ("answer", "due_at", "job", "number", "outcome", "result_bytes")

    def __init__(self, job: Job[Any], due_at: float, number: int, answer: asyncio.Future[Any]) -> None:
        self.job = job
        self.result_bytes = job.result_bytes
        self.due_at = due_at  # seconds of virtual time
        self.number = number  # of all jobs that were begun, in their order
        self.answer = answer
        self.outcome: tuple[Any] | None = None  # once it has been computed

    def __lt__(self, other: Begun) -> bool:
        return (self.due_at, self.number) < (other.due_at, other.number)


class Backlog:
    """Jobs of all devices of a world, before one compute.

    A result is needed when its device is through, and not before. When that time has come for one job, and the loop has
    nothing else to do at this time, the jobs that all other devices are at are computed with it. Who is cancelled
    before is never computed.
    """

    def __init__(self, compute: Compute) -> None:
        self._compute = compute
        self._count = 0
        self._begun: dict[Begun, None] = {}  # not computed yet
        self._agenda: list[Begun] = []  # a heap of those that are not due yet: at one time, who began first is first
        self._alarm: asyncio.TimerHandle | None = None  # for the first of them
        self._due: deque[Begun] = deque()  # in the order in which the devices were through; not answered yet
        self._task: asyncio.Task[None] | None = None  # the loop keeps no strong reference
        self._woken = False  # something is computed, or will be once the loop is idle

    def begin(self, job: Job[Any], seconds: float) -> Begun:
        """Begin a job that a device is through with after so many seconds. `drop` it to give up."""
        loop = _loop()
        self._count += 1
        begun = Begun(job, loop.time() + seconds, self._count, loop.create_future())
        self._begun[begun] = None
        heapq.heappush(self._agenda, begun)
        if self._agenda[0] is begun:
            self._set_alarm()
        return begun

    def drop(self, begun: Begun) -> None:
        """Nobody waits for it any more."""
        self._begun.pop(begun, None)
        if self._agenda and self._agenda[0] is begun:
            self._set_alarm()

    def _set_alarm(self) -> None:
        while self._agenda and self._agenda[0].answer.done():  # it was given up
            heapq.heappop(self._agenda)
        if self._alarm is not None:
            self._alarm.cancel()
        self._alarm = _loop().call_at(self._agenda[0].due_at, self._ring) if self._agenda else None

    def _ring(self) -> None:
        self._alarm, first = None, self._agenda[0].due_at
        while self._agenda and self._agenda[0].due_at <= first:
            begun = heapq.heappop(self._agenda)
            if not begun.answer.done():
                self._due.append(begun)
        self._set_alarm()
        self._answer()
        self._wake()

    def _wake(self) -> None:
        if self._due and not self._woken:
            self._woken = True
            _loop().when_idle(self._start)

    def _start(self) -> None:
        self._task = _loop().create_task(self._compute_some())

    async def _compute_some(self) -> None:
        batch = self._batch()
        try:
            found = await self._compute.run_all([begun.job for begun in batch])
        except Exception as error:  # noqa: BLE001 - the compute itself has failed: each device is told so
            found = [error] * len(batch)
        for begun, outcome in zip(batch, found, strict=True):
            begun.outcome = (outcome,)
        self._answer()
        self._woken = False
        self._wake()  # for what is left once the answers have been used, and freed

    def _batch(self) -> list[Begun]:
        """The jobs that are due and, as far as memory goes, those that will be next."""
        waiting = [begun for begun in self._due if begun in self._begun]
        later = self._begun.keys() - set(waiting)
        batch: list[Begun] = []
        room, least = _AHEAD_BYTES, _TURNS * self._compute.parallel if self._compute.parallel > 1 else 1
        for begun in (*waiting, *sorted(later)):
            room -= begun.result_bytes
            if room < 0 and len(batch) >= least:
                break
            batch.append(begun)
            del self._begun[begun]
        return batch

    def _answer(self) -> None:
        """In the order in which the devices were through, which does not depend on threads."""
        while self._due and (self._due[0].outcome is not None or self._due[0].answer.done()):
            begun = self._due.popleft()
            if begun.outcome is not None and not begun.answer.done():
                begun.answer.set_result(begun.outcome[0])

    def __repr__(self) -> str:
        return f"<Backlog of {len(self._begun)} before {self._compute!r}>"


def _loop() -> VirtualLoop:
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualLoop), "devices are simulated on a VirtualLoop"
    return loop
