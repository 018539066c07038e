"""In which order a client's examples are trained on: drawn anew in every pass, by seed, and the same in every tier."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from p2pfl.learn.data import Shard
from p2pfl.learn.specs import TrainSpec

__all__ = ["GATHER", "Work", "batches", "orders"]

# Examples that are copied together before they are cut into batches: one copy per small batch would cost more than it.
GATHER = 256


@dataclass(frozen=True, slots=True)
class Work:
    """How much local work a client has.

    >>> Work.of(47, TrainSpec(epochs=2, batch_size=10))
    Work(size=10, per_pass=5, steps=10)
    """

    size: int  # examples in a full batch
    per_pass: int  # batches in a pass
    steps: int  # batches in all

    @classmethod
    def of(cls, examples: int, spec: TrainSpec) -> Work:
        """The work of a client with so many examples."""
        size = min(spec.batch_size, examples)
        if size == 0:
            return cls(0, 0, 0)
        per_pass = examples // size if spec.drop_last else math.ceil(examples / size)
        return cls(size, per_pass, spec.steps or spec.epochs * per_pass)

    @property
    def passes(self) -> int:
        """Passes that are begun."""
        return math.ceil(self.steps / self.per_pass) if self.steps else 0


def orders(examples: int, passes: int, generator: torch.Generator) -> list[Tensor]:
    """The order of the examples in each pass, as int64 positions."""
    return [torch.randperm(examples, generator=generator) for _ in range(passes)]


def batches(shard: Shard, spec: TrainSpec, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """The batches of one client, in their order."""
    shard = shard.shifted()
    work = Work.of(len(shard), spec)
    left = work.steps
    for order in orders(len(shard), work.passes, torch.Generator().manual_seed(seed)):
        rows = shard.indices[order[: min(left, work.per_pass) * work.size]]
        for some in torch.split(rows, work.size * max(1, GATHER // work.size)):
            x, y = shard.dataset.batch(some)
            yield from zip(torch.split(x, work.size), torch.split(y, work.size), strict=True)
        left -= work.per_pass
