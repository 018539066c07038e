"""SCAFFOLD: control variates take out of each client's steps what leads it away from all the others.

S. P. Karimireddy, S. Kale, M. Mohri, S. J. Reddi, S. U. Stich, A. T. Suresh: "SCAFFOLD: Stochastic Controlled
Averaging for Federated Learning", ICML 2020, https://arxiv.org/abs/1910.06378. Algorithm 1, with option II:

    client    y <- y - lr (g_i(y) - c_i + c), K times from x;   c_i+ = c_i - c + (x - y) / (K lr);   sends y, c_i+ - c_i
    server    x <- x + server_lr mean(y - x);   c <- c + |S|/N mean(c_i+ - c_i)

Controls are as long as what trains: the running statistics of batch normalisation have none, and are averaged.

Deviation: `course.weights = "examples"` weighs both means. The server's control is the mean of the clients' for as long
as each round takes in all that was trained for it; what came too late stays in its client's control alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from p2pfl.courses.course import RoleState, as_tensor
from p2pfl.courses.fedavg import FedAvgSettings, starred
from p2pfl.courses.learner import Learner
from p2pfl.courses.parts import Parts
from p2pfl.courses.rules import Averaging, Rule, Trained, Training
from p2pfl.errors import require
from p2pfl.learn.specs import TrainSpec
from p2pfl.learn.train import learning_rate

__all__ = ["SCAFFOLD", "ScaffoldSettings"]


@dataclass(frozen=True, slots=True)
class ScaffoldSettings(FedAvgSettings):
    """The table [course] of a course file."""

    name: str = "scaffold"
    weights: str = "equal"
    """`equal`, as in the paper: all updates weigh the same; `examples`: as many as their clients have."""
    server_lr: float = 1.0
    """So far the server goes towards the mean of the clients' models: 1 is all the way."""

    def __post_init__(self) -> None:
        FedAvgSettings.__post_init__(self)
        require(self.server_lr > 0, f"course.server_lr is {self.server_lr}; it must be above 0")


class Controlling(Averaging):
    """The server's half."""

    def __init__(self, parts: Parts, server_lr: float, size: int) -> None:
        """`size`: the length of a control."""
        self._parts = parts
        self._server_lr = server_lr
        self._control = torch.zeros(size)

    def broadcast(self, params: Tensor, round: int) -> Tensor:
        return self._parts.join(params=params, control=self._control)

    def absorb(self, params: Tensor, mean: Tensor, share: float, round: int) -> Tensor:
        found = self._parts.split(mean)
        self._control = torch.add(self._control, found["control"], alpha=share)
        return torch.lerp(params, found["params"], self._server_lr)

    def state(self) -> RoleState:
        return {"control": self._control}

    def resume(self, state: RoleState) -> None:
        self._control = as_tensor(state["control"])


class Controlled(Training):
    """The client's half."""

    stateful = True

    def __init__(self, parts: Parts, size: int) -> None:
        self._parts = parts
        self._control = torch.zeros(size)

    async def train(self, learner: Learner, received: Tensor, round: int) -> Trained:
        params, of_all = self._parts.split(received).values()
        correction = of_all - self._control
        size = len(correction)
        drift = functional.pad(correction, (0, len(params) - size))
        found = await learner.fit(params, round, drift=drift)
        change = torch.zeros(size)
        if found.steps:
            way = found.steps * learning_rate(learner.train, round)
            change = (params - found.params)[:size].div_(way).sub_(of_all)
        self._control = self._control + change
        return Trained(self._parts.join(params=found.params, control=change), found.num_examples, found.loss)

    def state(self) -> RoleState:
        return {"control": self._control}

    def resume(self, state: RoleState) -> None:
        self._control = as_tensor(state["control"])


def _rule(learner: Learner, settings: ScaffoldSettings) -> Rule:
    _require_plain(learner.train)
    size = learner.model.layout.trainable_numel
    parts = Parts(learner.model, control=size)
    return Rule(parts, parts, partial(Controlling, parts, settings.server_lr, size), partial(Controlled, parts, size))


def _require_plain(train: TrainSpec) -> None:
    """Raise ConfigError if the way that is gone in a round does not tell the mean gradient."""
    plain = train.optimizer == "sgd" and train.momentum == 0
    require(plain, "course.name is scaffold, which needs plain SGD; leave out train.optimizer and train.momentum")
    moves = train.lr > 0 and (train.schedule == "constant" or train.schedule_factor > 0)
    require(moves, "course.name is scaffold, which divides by train.lr; keep it, and train.schedule_factor, above 0")


SCAFFOLD = starred("scaffold", ScaffoldSettings, _rule, remembers=True)
