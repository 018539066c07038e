"""What federated learning is compared with: clients that learn alone, and one that has all the data.

`local`: nothing is shared, and each client trains a model of its own. The server's stays as it began.

`pooled`: in each round one client, drawn at random, trains on the whole training part, as [train] says. That is
training in one place, in the roles and with the evaluation of a course, for data that every node can read.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from p2pfl.courses.fedavg import FedAvgSettings, starred
from p2pfl.courses.learner import Learner
from p2pfl.courses.parts import Parts
from p2pfl.courses.rounds import RoundRules
from p2pfl.courses.rules import Averaging, Owning, Rule, Trained, Training
from p2pfl.errors import require
from p2pfl.learn.data import Shard

__all__ = ["LOCAL", "POOLED", "LocalSettings", "PooledSettings"]

_NOTHING = 1  # numbers in a message that says nothing: a tensor has at least one


@dataclass(frozen=True, slots=True)
class LocalSettings(FedAvgSettings):
    """The table [course] of a course file."""

    name: str = "local"
    evaluate: str = "clients"


class Holding(Averaging):
    """The server's half of `local`: nothing goes down, and its model stays."""

    def broadcast(self, params: Tensor, round: int) -> Tensor:
        return torch.zeros(_NOTHING)

    def absorb(self, params: Tensor, mean: Tensor, share: float, round: int) -> Tensor:
        return params


class Alone(Owning):
    """The client's half of `local`: it goes on from its own model, and nothing goes up."""

    async def train(self, learner: Learner, received: Tensor, round: int) -> Trained:
        found = await learner.fit(await self.personal(learner, learner.model.initial), round)
        self.own = found.params
        return Trained(torch.zeros(_NOTHING), found.num_examples, found.loss)


@dataclass(frozen=True, slots=True)
class PooledSettings(FedAvgSettings):
    """The table [course] of a course file. Each round asks one client, whatever `fraction` is."""

    name: str = "pooled"

    @property
    def rules(self) -> RoundRules:
        one = 1e-9  # of a million clients, too, that is the least there is
        return replace(super(PooledSettings, self).rules, fraction=one, over_selection=0.0)


class Pooling(Training):
    """The client's half of `pooled`."""

    def __init__(self, pool: Shard | None) -> None:
        self._pool = pool

    async def train(self, learner: Learner, received: Tensor, round: int) -> Trained:
        return await super().train(replace(learner, shard=self._pool), received, round)


def _local(learner: Learner, _: LocalSettings) -> Rule:
    nothing = Parts(learner.model, params=_NOTHING)
    return Rule(nothing, nothing, Holding, Alone, comparable=False)


def _pooled(learner: Learner, _: PooledSettings) -> Rule:
    pool = None if learner.shard is None else _pool(learner, learner.shard)
    return Rule(learner.parts, learner.parts, Averaging, lambda: Pooling(pool))


def _pool(learner: Learner, shard: Shard) -> Shard:
    """The whole training part. Raises ConfigError where that is not what all clients hold together."""
    held_out = learner.validation is not None
    require(not held_out, "partition.holdout is set, and course pooled would train on what it holds out; leave it out")
    shifted = shard.shift is not None
    require(not shifted, "partition.shift or concepts is set, and course pooled would train without; leave it out")
    everything = shard.dataset.train
    scattered = len(shard) < len(everything)
    require(scattered, "course.name is pooled, but a client alone has all the data that its node can read; take fedavg")
    return everything


LOCAL = starred("local", LocalSettings, _local, remembers=True)
POOLED = starred("pooled", PooledSettings, _pooled)
