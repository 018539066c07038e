"""FedNova: clients that take different numbers of steps, without those that take more of them counting for more.

J. Wang, Q. Liu, H. Liang, G. Joshi, H. V. Poor: "Tackling the Objective Inconsistency Problem in Heterogeneous
Federated Optimization", NeurIPS 2020, https://arxiv.org/abs/2007.07481.

Client i moves by -lr sum_k a_ik g_ik. It sends that over the sum of its a_ik, and the sum itself, which for plain SGD
is the number of its steps. The server goes by the mean of the first times the mean of the second, which is tau_eff.

`train.momentum` and `train.proximal` are part of a_i, alone (section 4.1) or together. Weight decay is part of the
objective, and clipping of the gradient.

Deviation: running statistics of a model, which no gradient moves, are averaged. The means are over a round's cohort.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from p2pfl.courses.fedavg import FedAvgSettings, starred
from p2pfl.courses.learner import Learner
from p2pfl.courses.parts import Parts
from p2pfl.courses.rules import Averaging, Rule, Trained, Training
from p2pfl.errors import require
from p2pfl.learn.memory import duplicate
from p2pfl.learn.specs import TrainSpec
from p2pfl.learn.train import learning_rate

__all__ = ["FEDNOVA", "FedNovaSettings", "reach"]


@dataclass(frozen=True, slots=True)
class FedNovaSettings(FedAvgSettings):
    """The table [course] of a course file."""

    name: str = "fednova"


def reach(spec: TrainSpec, lr: float, steps: int) -> float:
    """How far a client goes in so many steps by a gradient that is always 1, in units of -lr: the sum of its a_i.

    >>> reach(TrainSpec(), 0.1, 5)
    5.0
    >>> reach(TrainSpec(momentum=0.5), 0.1, 3)  # 1, then 1.5, then 1.75
    4.25
    """
    velocity = way = 0.0
    for _ in range(steps):
        velocity = spec.momentum * velocity + 1 - lr * spec.proximal * way
        way += velocity
    return way


class Normalizing(Training):
    """A client that says how far it goes for every step that it has taken, and how many they were."""

    def __init__(self, up: Parts, trainable: int) -> None:
        self._up = up
        self._trainable = trainable

    async def train(self, learner: Learner, received: Tensor, round: int) -> Trained:
        found = await learner.fit(received, round)
        way = reach(learner.train, learning_rate(learner.train, round), found.steps)
        update = duplicate(found.params).sub_(received)
        if way:
            update[: self._trainable].div_(way)
        return Trained(self._up.join(params=update, reach=torch.tensor([way])), found.num_examples, found.loss)


class Novel(Averaging):
    """A server that takes the mean of the clients' directions so far as they go on average."""

    def __init__(self, up: Parts, trainable: int) -> None:
        self._up = up
        self._trainable = trainable

    def absorb(self, params: Tensor, mean: Tensor, share: float, round: int) -> Tensor:
        update, tau_eff = self._up.split(mean).values()
        after = duplicate(update)
        after[: self._trainable].mul_(tau_eff.item())
        return after.add_(params)


def _fednova(learner: Learner, settings: FedNovaSettings) -> Rule:
    optimizer = learner.train.optimizer
    require(optimizer == "sgd", f"train.optimizer is {optimizer!r}, whose steps fednova cannot count; set it to 'sgd'")
    up, trainable = Parts(learner.model, reach=1), learner.model.layout.trainable_numel
    return Rule(learner.parts, up, lambda: Novel(up, trainable), lambda: Normalizing(up, trainable), relative=True)


FEDNOVA = starred("fednova", FedNovaSettings, _fednova)
