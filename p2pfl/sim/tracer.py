"""Training that can be traced: what a seat learns in a round is a coordinate of its own, so models tell who is in them.

Seat s adds 1 to coordinate r * n + s in round r. So a weighted mean of trained models holds the weight of each seat in
its coordinate: what was left out is 0, what was counted twice is twice as much, and weights that must add up do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, cast

from torch import Tensor

from p2pfl.compute.job import Compute, EvaluateJob, FitJob, Job
from p2pfl.learn.evaluate import Evaluation
from p2pfl.learn.specs import metric_name
from p2pfl.learn.train import FitResult

__all__ = ["Tracer", "traces"]

ResultT = TypeVar("ResultT")


def traces(params: Tensor, initial: Tensor, n: int) -> Tensor:
    """What a model of `n` seats holds of each, by round: shape (rounds, n). `initial`: what all began from."""
    rounds = len(params) // n
    return (params - initial)[: rounds * n].reshape(rounds, n)


@dataclass(frozen=True, slots=True, eq=False)
class _Traced:
    """A FitJob that takes as long, and leaves a trace instead of learning something."""

    job: FitJob
    coordinate: int

    @property
    def examples(self) -> int:
        return self.job.examples

    @property
    def result_bytes(self) -> int:
        return self.job.result_bytes

    def __call__(self) -> FitResult:
        params = self.job.params.clone()
        params[self.coordinate] += 1
        return FitResult(params, len(self.job.shard), 1 / (1 + self.job.round), 1)


@dataclass(frozen=True, slots=True, eq=False)
class _Glanced:
    """An EvaluateJob that takes as long, and looks at one number of the model."""

    job: EvaluateJob

    @property
    def examples(self) -> int:
        return self.job.examples

    @property
    def result_bytes(self) -> int:
        return self.job.result_bytes

    def __call__(self) -> Evaluation:
        own = {metric_name(path): 0.5 for path in self.job.own}
        return Evaluation(abs(float(self.job.params[0])), 0.5, len(self.job.shard), own)


class Tracer:
    """The compute of one seat of `n`; other jobs than training and evaluation are done as they are."""

    def __init__(self, compute: Compute, seat: int, n: int) -> None:
        self._compute = compute
        self._seat = seat
        self._n = n

    @property
    def parallel(self) -> int:
        return self._compute.parallel

    @property
    def examples_per_second(self) -> float | None:
        return self._compute.examples_per_second

    async def run(self, job: Job[ResultT]) -> ResultT:
        return await self._compute.run(self._traced(job))

    async def run_all(self, jobs: Sequence[Job[ResultT]]) -> list[ResultT | Exception]:
        return await self._compute.run_all([self._traced(job) for job in jobs])

    async def close(self) -> None:
        await self._compute.close()

    def _traced(self, job: Job[ResultT]) -> Job[ResultT]:
        traced: Job[Any] = job
        if isinstance(job, FitJob):
            rounds = len(job.params) // self._n  # later ones begin anew: they are seen in the same coordinates
            traced = _Traced(job, job.round % rounds * self._n + self._seat)
        elif isinstance(job, EvaluateJob):
            traced = _Glanced(job)
        return cast("Job[ResultT]", traced)

    def __repr__(self) -> str:
        return f"<Tracer of seat {self._seat} before {self._compute!r}>"
