"""What one member learns with: a model, its examples, how it trains, and where that is computed."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field, replace

from torch import Tensor

from p2pfl.compute.job import Compute, EvaluateJob, FitJob
from p2pfl.compute.speed import Speed
from p2pfl.courses.parts import Parts
from p2pfl.courses.seeds import seed_of
from p2pfl.errors import ComputeError, P2pflError
from p2pfl.learn.data import Shard
from p2pfl.learn.evaluate import Evaluation
from p2pfl.learn.model import Model
from p2pfl.learn.params import model_hash
from p2pfl.learn.specs import MetricsSpec, TrainSpec
from p2pfl.learn.train import FitResult
from p2pfl.wire.tensor import Schema, Tensors

__all__ = ["LARGE", "Learner", "seed_of"]

LARGE = 1 << 18
"""So many numbers take about a millisecond to look at: more of them are looked at on another thread."""


@dataclass(frozen=True, slots=True, eq=False)
class Learner:
    """The learning of one seat. Vectors are flat, float32, of shape (model.layout.numel,)."""

    seat: int
    seed: int
    model: Model
    train: TrainSpec
    compute: Compute
    shard: Shard | None = None  # the examples of this seat; a coordinator has none
    validation: Shard | None = None  # examples of this seat that it does not train on
    test: Shard | None = None  # the course's test part, where this seat has it
    own_test: Shard | None = None  # this seat's share of it, where it is dealt
    metrics: MetricsSpec = field(default_factory=MetricsSpec)
    speed: Speed = field(default_factory=Speed)  # of our training, as far as it has been measured
    parts: Parts = field(init=False)
    """What a model is sent as."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "parts", Parts(self.model))

    @property
    def measured(self) -> Shard:
        """What this seat evaluates on: its part of the test, what it holds out, or else all that it has."""
        shard = self.own_test or self.validation or self.shard
        assert shard is not None, "only seats with examples are asked"
        return shard

    @property
    def schema(self) -> Schema:
        """The tensors that models of this course are sent as."""
        return self.parts.schema

    def tensors(self, vector: Tensor) -> Tensors:
        """A model as it is sent; see Parts."""
        return self.parts.tensors(vector)

    def vector(self, tensors: Tensors, *, finite: bool = True) -> Tensor:
        """A received model; see Parts."""
        return self.parts.vector(tensors, finite=finite)

    def at(self, round: int) -> Learner:
        """This one with its examples as they are in a round, from 0: they may change over time."""
        parts = (self.shard, self.validation, self.own_test)
        if all(part is None or part.shift is None or part.shift.onset == 0 for part in parts):
            return self
        shard, validation, own_test = (part and part.at(round) for part in parts)
        return replace(self, shard=shard, validation=validation, own_test=own_test)

    async def digest(self, vector: Tensor) -> str:
        """See model_hash; a large vector keeps the loop waiting for no longer than a small one."""
        if vector.numel() < LARGE:
            return model_hash(vector)
        return await asyncio.to_thread(model_hash, vector)

    async def fit(
        self,
        params: Tensor,
        round: int,
        *,
        drift: Tensor | None = None,
        train: TrainSpec | None = None,
        use: str = "fit",
        memory: Tensor | None = None,
    ) -> FitResult:
        """Train on our examples, from `params`, in round `round` (from 0).

        `drift`: added to every gradient, as long as `params`; `train`: in place of our own; `use`: what it is for, if
        there is more than one training in a round, so that each draws batches of its own; `memory`: of the optimizer,
        from an earlier result, to go on with; see `Fit.memory`.

        Raises ComputeError if that fails, for whatever reason, or takes longer than `train.limit_seconds`.
        """
        assert self.shard is not None, "only seats with examples train"
        spec, seed = train or self.train, seed_of(self.seed, use, round, self.seat)
        shard, limit = self.shard.at(round), spec.limit_seconds
        job = FitJob(params, self.model, shard, spec, seed, round, drift, memory)
        watchdog = asyncio.timeout(limit or None)
        try:
            async with watchdog:
                return await self.speed.run(self.compute, job) if spec.within_seconds else await self.compute.run(job)
        except P2pflError:
            raise
        except Exception as error:  # a model, a loss and data of the user's own may raise anything
            late = f"it took longer than train.limit_seconds = {limit:g}; raise that, or train less in a round"
            raise ComputeError(f"local training failed: {late if watchdog.expired() else _named(error)}") from error

    async def evaluate(self, params: Tensor, shard: Shard, *, own: bool = True) -> Evaluation:
        """Loss and accuracy on `shard`, and metrics of the user's own, unless they are of no use.

        Raises ComputeError if one of these fails.
        """
        return await self.compute.run(EvaluateJob(params, self.model, shard, self.metrics.own if own else ()))


def _named(error: Exception) -> str:
    """Its kind and its words. A MemoryError has none."""
    return ": ".join(filter(None, (type(error).__name__, str(error))))
