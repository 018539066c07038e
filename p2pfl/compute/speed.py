"""Training against the clock: as much of it as a device gets through in the time that it has."""

from __future__ import annotations

import asyncio
import math

from p2pfl.compute.job import Compute, FitJob
from p2pfl.learn.train import FitResult

__all__ = ["Speed"]


class Speed:
    """How fast one seat trains, by the clock of the loop: waiting for others who compute on the same host counts.

    It is that of the last training, since a host may be busier at one time than at another.
    """

    def __init__(self) -> None:
        self.examples_per_second: float | None = None
        """None as long as nothing was measured."""

    async def run(self, compute: Compute, job: FitJob) -> FitResult:
        """As many batches of the job as `train.within_seconds` allows, at least one.

        Where no one knows how fast that goes, a first batch, whose result is of no use, tells.
        """
        known, seconds = compute.examples_per_second, job.spec.within_seconds
        if known is not None:
            return await compute.run(job.within(seconds * known))
        if self.examples_per_second is None:
            _, self.examples_per_second = await _timed(compute, job.within(0))
        result, self.examples_per_second = await _timed(compute, job.within(seconds * self.examples_per_second))
        return result

    def __repr__(self) -> str:
        return f"<Speed {self.examples_per_second} examples/s>"


async def _timed(compute: Compute, job: FitJob) -> tuple[FitResult, float]:
    """What a job gives, and the examples per second."""
    clock = asyncio.get_running_loop().time
    begun = clock()
    result = await compute.run(job)
    seconds = clock() - begun
    return result, job.examples / seconds if seconds else math.inf
