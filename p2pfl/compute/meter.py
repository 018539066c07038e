"""How much has been trained, in floating-point operations."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import TypeVar

from p2pfl.compute.job import Compute, FitJob, Job
from p2pfl.learn.flops import training_flops
from p2pfl.learn.model import Model

__all__ = ["FlopMeter"]

ResultT = TypeVar("ResultT")
log = logging.getLogger("p2pfl.compute")

_LARGE = 1 << 18  # numbers in a model: a pass through more of them would keep the loop waiting


class FlopMeter:
    """Counts the training that comes back from any compute that is watched: the examples, at what one of them takes.

    A model is looked at once; what one example takes is taken to be the same in a batch of any size.
    """

    def __init__(self, before: float | None = 0.0) -> None:
        """`before`: what was counted earlier in the same run; None: not all of it could be."""
        self.flops: float | None = before
        """So far; None if they cannot be told, as where a function of the user's own trains."""
        self._per_example: dict[Model, float] = {}

    def on(self, compute: Compute) -> Compute:
        """The same compute, watched."""
        return _Watched(compute, self)

    async def note(self, job: Job[object]) -> None:
        """A job has been done."""
        if not isinstance(job, FitJob) or self.flops is None:
            return
        if job.spec.function:
            self.flops = None
            return
        if job.model not in self._per_example:
            small = job.model.layout.numel < _LARGE
            counted = _count(job) if small else await asyncio.to_thread(_count, job)
            if counted is None:
                self.flops = None
                return
            self._per_example[job.model] = counted
        if self.flops is not None:
            self.flops += job.examples * self._per_example[job.model]

    def __repr__(self) -> str:
        return f"<FlopMeter {self.flops}>"


def _count(job: FitJob) -> float | None:
    try:
        return training_flops(job.model, job.shard.dataset, job.spec.batch_size)
    except Exception as error:  # noqa: BLE001 - a figure of the report must not end a run, whatever a model does
        log.warning("the operations of %r cannot be counted: %s", job.model, error)
        return None


class _Watched:
    """A compute whose results are noted."""

    def __init__(self, compute: Compute, meter: FlopMeter) -> None:
        self._compute = compute
        self._meter = meter

    @property
    def parallel(self) -> int:
        return self._compute.parallel

    @property
    def examples_per_second(self) -> float | None:
        return self._compute.examples_per_second

    async def run(self, job: Job[ResultT]) -> ResultT:
        result = await self._compute.run(job)
        await self._meter.note(job)
        return result

    async def run_all(self, jobs: Sequence[Job[ResultT]]) -> list[ResultT | Exception]:
        results = await self._compute.run_all(jobs)
        for job, result in zip(jobs, results, strict=True):
            if not isinstance(result, Exception):
                await self._meter.note(job)
        return results

    async def close(self) -> None:
        await self._compute.close()

    def __repr__(self) -> str:
        return repr(self._compute)
