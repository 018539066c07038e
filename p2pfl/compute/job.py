"""What can be computed: pure functions with their arguments, and the protocol of whoever computes them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar

from torch import Tensor

from p2pfl.learn.batches import Work
from p2pfl.learn.data import Shard
from p2pfl.learn.evaluate import Evaluation, evaluate
from p2pfl.learn.model import Model
from p2pfl.learn.tiers import fit_one
from p2pfl.learn.train import Fit, FitResult

__all__ = ["Compute", "EvaluateJob", "FitJob", "Job", "alone", "outcome", "portable"]

ResultT_co = TypeVar("ResultT_co", covariant=True)
ResultT = TypeVar("ResultT")


class Job(Protocol[ResultT_co]):
    """A computation that can run anywhere: it reads nothing but itself and changes nothing."""

    @property
    def examples(self) -> int:
        """Forward-and-backward passes over single examples that it costs; an evaluation counts a third of one.

        At most: short last batches are taken for full ones where `train.steps` counts batches.
        """

    @property
    def result_bytes(self) -> int:
        """The memory that its result takes."""
        ...

    def __call__(self) -> ResultT_co: ...


@dataclass(frozen=True, slots=True, eq=False)
class FitJob(Fit):
    """Local training of one client."""

    @property
    def examples(self) -> int:
        if self.spec.steps:
            return self.spec.steps * self._per_batch
        return self._passes * self.spec.epochs * len(self.shard)

    @property
    def result_bytes(self) -> int:
        return self.params.nbytes + (0 if self.memory is None else self.memory.nbytes)

    def within(self, examples: float) -> FitJob:
        """As many of its batches as cost so many `examples`: at least one, and at most all."""
        if self.examples <= examples:
            return self
        fitting = max(1, math.floor(examples / self._per_batch + 1e-9))  # 0.3 * 100 is a little less than 30
        return replace(self, spec=replace(self.spec, steps=min(fitting, Work.of(len(self.shard), self.spec).steps)))

    @property
    def _passes(self) -> int:
        return 2 if self.spec.sam_rho > 0 else 1  # the second at the point that is climbed to

    @property
    def _per_batch(self) -> int:
        return self._passes * min(self.spec.batch_size, len(self.shard))

    def __call__(self) -> FitResult:
        return fit_one(self)


@dataclass(frozen=True, slots=True, eq=False)
class EvaluateJob:
    """Loss and accuracy of a vector on a shard, and metrics of the user's own."""

    params: Tensor
    model: Model
    shard: Shard
    own: tuple[str, ...] = ()  # see MetricsSpec

    @property
    def examples(self) -> int:
        return len(self.shard) // 3

    @property
    def result_bytes(self) -> int:
        return 0

    def __call__(self) -> Evaluation:
        return evaluate(self.params, self.model, self.shard, own=self.own)


class Compute(Protocol):
    """Runs jobs. `tests/compute/kit.py` holds what every implementation must do."""

    @property
    def parallel(self) -> int:
        """How many jobs it can work on at once."""
        ...

    @property
    def examples_per_second(self) -> float | None:
        """How fast it is with one job, where that is known beforehand: see `Job.examples`."""
        ...

    async def run(self, job: Job[ResultT]) -> ResultT:
        """The job's result; what it raises is raised here.

        Who is cancelled here gets no result; a job that has begun may run on to its end. RuntimeError after `close`.
        """

    async def run_all(self, jobs: Sequence[Job[ResultT]]) -> list[ResultT | Exception]:
        """The results of many jobs, in their order; what a job raises stands in its place. RuntimeError after `close`.

        Jobs that are handed over together may be computed as one.
        """

    async def close(self) -> None:
        """Take no more jobs, and let go of workers. Jobs that were taken are still done. May be called again."""


def outcome(job: Job[ResultT]) -> ResultT | Exception:
    """Do the job here and now: its result, or what it raised."""
    try:
        return job()
    except Exception as error:  # noqa: BLE001 - carried over to whoever awaits the job
        return portable(error)


def portable(error: Exception) -> Exception:
    """The error as a future can carry it: a StopIteration cannot be, and a coroutine turns it into this, too."""
    if not isinstance(error, StopIteration):
        return error
    stopped = RuntimeError("the job raised StopIteration")
    stopped.__cause__ = error
    return stopped


async def alone(compute: Compute, job: Job[ResultT]) -> ResultT:
    """What `run` does, for a compute that has `run_all`."""
    (found,) = await compute.run_all((job,))
    if isinstance(found, Exception):
        raise found
    return found
