"""Per-FedAvg: the global model is one from which a single step on a client's own examples leads far.

A. Fallah, A. Mokhtari, A. Ozdaglar: "Personalized Federated Learning with Theoretical Guarantees: A Model-Agnostic
Meta-Learning Approach", NeurIPS 2020, https://arxiv.org/abs/2002.07948. For each batch D of a client, with the next two
batches D' and D'':

    v  = gradient(w - inner_lr gradient(w; D); D')
    w  <- w - lr v                                                               # first-order
    w  <- w - lr (v - inner_lr (gradient(w + delta v; D'') - gradient(w - delta v; D'')) / (2 delta))  # Hessian-free

A client is served by the global model after one step of `inner_lr` on all of its examples.

Deviation: after the last batch of a round the first comes again.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from p2pfl.courses.batchwise import by_batch, require_plain, steps_on_a_batch
from p2pfl.courses.fedavg import FedAvgSettings, starred
from p2pfl.courses.learner import Learner
from p2pfl.courses.rules import Averaging, Rule, Trained, Training
from p2pfl.errors import require
from p2pfl.learn.specs import TrainSpec
from p2pfl.learn.train import learning_rate, mean_loss

__all__ = ["PERFEDAVG", "PerFedAvgSettings"]


@dataclass(frozen=True, slots=True)
class PerFedAvgSettings(FedAvgSettings):
    """The table [course] of a course file. `train.lr` is that of the meta-model, beta."""

    name: str = "perfedavg"
    evaluate: str = "both"
    inner_lr: float = 0.1
    """alpha: the learning rate of the step that adapts a model to a client."""
    delta: float = 0.0
    """How far the Hessian-free form looks to either side, as a factor of the gradient, such as 0.01; 0: the first-order
    form, which costs half as much."""

    def __post_init__(self) -> None:
        FedAvgSettings.__post_init__(self)
        require(self.inner_lr > 0, f"course.inner_lr is {self.inner_lr}; it must be above 0")
        require(self.delta >= 0, f"course.delta is {self.delta}; it must not be negative")


class Meta(Training):
    """The client's half."""

    def __init__(self, step: TrainSpec, size: int, inner_lr: float, delta: float) -> None:
        """`step`: one step of the meta-model; `size`: how many numbers of a model train."""
        self._step = step
        self._size = size
        self._inner_lr = inner_lr
        self._delta = delta
        self._adapt = replace(step, lr=inner_lr, schedule="constant")
        self._unit = replace(step, lr=1.0, schedule="constant")

    async def train(self, learner: Learner, received: Tensor, round: int) -> Trained:
        params, lr = received, learning_rate(self._step, round)
        losses: list[Tensor] = []
        sizes: list[int] = []
        batches = list(by_batch(learner, round))
        for number, batch in enumerate(batches):
            second, third = (batches[(number + ahead) % len(batches)] for ahead in (1, 2))
            adapted = await batch.fit(params, round, train=self._adapt, use=f"adapt {number}")
            slope = await self._gradient(second, adapted.params, round, number)
            if self._delta:
                ahead = await self._gradient(third, params + self._delta * slope, round, number)
                behind = await self._gradient(third, params - self._delta * slope, round, number)
                slope -= (self._inner_lr / (2 * self._delta)) * (ahead - behind)
            params = torch.cat((params[: self._size] - lr * slope[: self._size], adapted.params[self._size :]))
            losses.append(torch.tensor(adapted.loss))
            sizes.append(adapted.num_examples)
        assert learner.shard is not None, "only seats with examples train"
        return Trained(params, len(learner.shard), mean_loss(losses, sizes))

    async def _gradient(self, batch: Learner, params: Tensor, round: int, number: int) -> Tensor:
        found = await batch.fit(params, round, train=self._unit, use=f"gradient {number}")
        return params - found.params

    async def personal(self, learner: Learner, served: Tensor) -> Tensor:
        assert learner.shard is not None, "only seats with examples are served"
        whole = replace(self._adapt, batch_size=max(len(learner.shard), 1))
        return (await learner.fit(served, 0, train=whole, use="adapt")).params


def _perfedavg(learner: Learner, settings: PerFedAvgSettings) -> Rule:
    require_plain(learner.train, "perfedavg")
    step, size = steps_on_a_batch(learner.train, 1), learner.model.layout.trainable_numel
    return Rule(learner.parts, learner.parts, Averaging, lambda: Meta(step, size, settings.inner_lr, settings.delta))


PERFEDAVG = starred("perfedavg", PerFedAvgSettings, _perfedavg)
