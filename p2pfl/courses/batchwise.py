"""Training a batch at a time, for algorithms that do more with a batch than one step."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch

from p2pfl.courses.learner import Learner, seed_of
from p2pfl.errors import require
from p2pfl.learn.batches import Work, orders
from p2pfl.learn.specs import TrainSpec

__all__ = ["by_batch", "require_plain", "steps_on_a_batch"]


def by_batch(learner: Learner, round: int, *, use: str = "fit") -> Iterator[Learner]:
    """A learner for each batch that the client would train on in a round, in that order, with its examples alone."""
    assert learner.shard is not None, "only seats with examples train"
    shard = learner.shard.shifted()
    work = Work.of(len(shard), learner.train)
    left = work.steps
    draw = torch.Generator().manual_seed(seed_of(learner.seed, use, round, learner.seat))
    for order in orders(len(shard), work.passes, draw):
        rows = shard.indices[order[: min(left, work.per_pass) * work.size]]
        for some in torch.split(rows, work.size) if work.size else ():
            yield replace(learner, shard=replace(shard, indices=some))
        left -= work.per_pass


def steps_on_a_batch(train: TrainSpec, steps: int, *, proximal: float = 0.0) -> TrainSpec:
    """`train`, but for so many steps that are all of one batch, and with another pull.

    Raises ConfigError if `train.within_seconds` is to bound what is then many trainings.
    """
    timed = train.within_seconds > 0
    require(not timed, "train.within_seconds is set, and this course trains batch by batch; set train.steps instead")
    return replace(train, steps=steps, epochs=1, drop_last=False, proximal=proximal)


def require_plain(train: TrainSpec, name: str) -> None:
    """Raise ConfigError where a step is more than the gradient: what else it goes by is lost from batch to batch."""
    plain = train.optimizer == "sgd" and train.momentum == 0
    require(plain, f"course.name is {name}, which needs plain SGD; leave out train.optimizer and train.momentum")
