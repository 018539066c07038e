"""Many clients' local training as one batched computation, on the event loop itself."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, TypeVar, cast

from p2pfl.compute.job import Job, outcome, portable
from p2pfl.learn.tiers import fit_all
from p2pfl.learn.train import Fit

__all__ = ["Cohort"]

ResultT = TypeVar("ResultT")


class Cohort:
    """Computes together what is asked for in one turn of the event loop, and gives each job what it gives alone.

    The loop stands still meanwhile: on a host with links to keep alive, `Threads` is the better choice.
    """

    examples_per_second = None  # nobody knows before it is measured

    def __init__(self) -> None:
        self._asked: list[tuple[Job[Any], asyncio.Future[Any]]] = []  # in this turn
        self._closed = False

    @property
    def parallel(self) -> int:
        return 1

    async def run(self, job: Job[ResultT]) -> ResultT:
        self._refuse_if_closed()
        loop = asyncio.get_running_loop()
        if not self._asked:
            loop.call_soon(self._answer)
        answer: asyncio.Future[ResultT] = loop.create_future()
        self._asked.append((job, answer))
        return await answer

    async def run_all(self, jobs: Sequence[Job[ResultT]]) -> list[ResultT | Exception]:
        self._refuse_if_closed()
        return _outcomes(jobs)

    async def close(self) -> None:
        self._closed = True

    def _refuse_if_closed(self) -> None:
        if self._closed:
            raise RuntimeError("this compute has been closed")

    def _answer(self) -> None:
        asked, self._asked = self._asked, []
        wanted = [(job, answer) for job, answer in asked if not answer.done()]
        for (_, answer), found in zip(wanted, _outcomes([job for job, _ in wanted]), strict=True):
            if isinstance(found, Exception):
                answer.set_exception(found)
            else:
                answer.set_result(found)

    def __repr__(self) -> str:
        return "<Cohort>"


def _outcomes(jobs: Sequence[Job[ResultT]]) -> list[ResultT | Exception]:
    """What each job gives or raises."""
    trained = iter(fit_all([job for job in jobs if isinstance(job, Fit)]))
    found = [next(trained) if isinstance(job, Fit) else outcome(job) for job in jobs]
    portables = [portable(one) if isinstance(one, Exception) else one for one in found]
    return cast("list[ResultT | Exception]", portables)  # the result of a FitJob is the FitResult
