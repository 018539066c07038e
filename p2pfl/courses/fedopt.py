"""Federated optimization: the server takes what the clients have moved by as a gradient, and descends by it.

S. Reddi, Z. Charles, M. Zaheer, Z. Garrett, K. Rush, J. Konečný, S. Kumar, H. B. McMahan: "Adaptive Federated
Optimization", ICLR 2021, https://arxiv.org/abs/2003.00295: algorithm 2, with FedAdagrad, FedAdam and FedYogi.
T.-M. H. Hsu, H. Qi, M. Brown: "Measuring the Effects of Non-Identical Data Distribution for Federated Visual
Classification", 2019, https://arxiv.org/abs/1909.06335: FedAvgM, which is descent with momentum.

As there, moments are not corrected for their bias, and v begins at tau squared.

Deviations: clients send models instead of differences, whose mean is the same. Running statistics of a model, which no
gradient moves, are averaged. The server's learning rate may change over rounds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from p2pfl.courses.course import RoleState, as_tensor
from p2pfl.courses.fedavg import FedAvgSettings, starred
from p2pfl.courses.learner import Learner
from p2pfl.courses.rules import Averaging, Rule, Training
from p2pfl.errors import require
from p2pfl.learn.memory import duplicate
from p2pfl.learn.specs import TrainSpec
from p2pfl.learn.train import learning_rate

__all__ = [
    "FEDAVGM",
    "FEDOPT",
    "Descent",
    "FedAvgMSettings",
    "FedOptSettings",
    "Optimizer",
    "adagrad",
    "adam",
    "momentum_sgd",
    "yogi",
]

Memory = Mapping[str, Tensor]
"""What an optimizer remembers, by name; empty before its first step."""
Optimizer = Callable[[Tensor, Memory], tuple[Tensor, Memory]]
"""Of a gradient and its memory: the direction to descend by, and its next memory. It writes to none of them."""


@dataclass(frozen=True, slots=True)
class FedAvgMSettings(FedAvgSettings):
    """The table [course] of a course file: that of FedAvg, and how the server descends."""

    name: str = "fedavgm"
    server_lr: float = 1.0
    """The server's learning rate of the first round."""
    server_schedule: str = "constant"
    """How it changes over rounds: `constant`, `step`, `cosine`."""
    server_schedule_rounds: int = 10
    """step: rounds between two drops; cosine: rounds until the end of the half wave."""
    server_schedule_factor: float = 0.1
    """step: factor of each drop; cosine: what is left of the rate at the end, as a factor."""
    server_momentum: float = 0.9
    """How much of the last direction stays in the next: beta of FedAvgM, beta_1 of the adaptive optimizers."""
    server_nesterov: bool = False
    """Nesterov's momentum."""

    def __post_init__(self) -> None:
        FedAvgSettings.__post_init__(self)
        require(self.server_lr > 0, f"course.server_lr is {self.server_lr}; it must be above 0")
        schedules = ("constant", "step", "cosine")
        require(
            self.server_schedule in schedules,
            f"course.server_schedule is {self.server_schedule!r}; it must be one of {', '.join(schedules)}",
        )
        rounds, factor = self.server_schedule_rounds, self.server_schedule_factor
        require(rounds >= 1, f"course.server_schedule_rounds is {rounds}; it must be at least 1")
        require(factor >= 0, f"course.server_schedule_factor is {factor}; it must not be negative")
        momentum = self.server_momentum
        require(0 <= momentum < 1, f"course.server_momentum is {momentum}; it must lie in [0, 1)")

    def rate(self, round: int) -> float:
        """The server's learning rate of a round, from 0."""
        rates = TrainSpec(
            lr=self.server_lr,
            schedule=self.server_schedule,
            schedule_rounds=self.server_schedule_rounds,
            schedule_factor=self.server_schedule_factor,
        )
        return learning_rate(rates, round)


@dataclass(frozen=True, slots=True)
class FedOptSettings(FedAvgMSettings):
    """The table [course] of a course file."""

    name: str = "fedopt"
    server_lr: float = 0.1
    server_optimizer: str = "adam"
    """`sgd`, `adagrad`, `adam`, `yogi`. The paper has a server_momentum of 0 for adagrad, and of 0.9 for the others."""
    server_beta2: float = 0.99
    """adam, yogi: how slowly the mean of squared gradients follows them."""
    tau: float = 1e-3
    """All but sgd: added to the root that is divided by. The smaller it is, the more each number has its own rate."""

    def __post_init__(self) -> None:
        FedAvgMSettings.__post_init__(self)
        name = self.server_optimizer
        require(name in _OPTIMIZERS, f"course.server_optimizer is {name!r}; it must be one of {', '.join(_OPTIMIZERS)}")
        idle = self.server_nesterov and name != "sgd"
        require(not idle, f"course.server_nesterov is set, but {name} has no such momentum; leave it out")
        beta2 = self.server_beta2
        require(0 <= beta2 < 1, f"course.server_beta2 is {beta2}; it must lie in [0, 1)")
        require(self.tau > 0, f"course.tau is {self.tau}; it must be above 0")


def momentum_sgd(momentum: float, *, nesterov: bool = False) -> Optimizer:
    """v <- momentum v + g. Descends by v; by Nesterov's rule as torch has it, by momentum v + g."""

    def step(gradient: Tensor, memory: Memory) -> tuple[Tensor, Memory]:
        if not momentum:
            return gradient, {}
        velocity = torch.add(gradient, memory["v"], alpha=momentum) if memory else gradient
        direction = torch.add(gradient, velocity, alpha=momentum) if nesterov else velocity
        return direction, {"v": velocity}

    return step


def adagrad(momentum: float, tau: float) -> Optimizer:
    """v <- v + g^2; see _adaptive."""
    return _adaptive(momentum, tau, torch.add)


def adam(momentum: float, beta2: float, tau: float) -> Optimizer:
    """v <- beta2 v + (1 - beta2) g^2; see _adaptive."""
    return _adaptive(momentum, tau, lambda v, squares: torch.lerp(v, squares, 1 - beta2))


def yogi(momentum: float, beta2: float, tau: float) -> Optimizer:
    """v <- v - (1 - beta2) g^2 sign(v - g^2); see _adaptive."""
    return _adaptive(momentum, tau, lambda v, squares: v - (1 - beta2) * squares * torch.sign(v - squares))


def _adaptive(momentum: float, tau: float, grown: Callable[[Tensor, Tensor], Tensor]) -> Optimizer:
    """m <- momentum m + (1 - momentum) g. Descends by m / (sqrt(v) + tau). `grown`: the next v, of v and g^2."""

    def step(gradient: Tensor, memory: Memory) -> tuple[Tensor, Memory]:
        if not memory:
            memory = {"m": torch.zeros_like(gradient), "v": torch.full_like(gradient, tau**2)}
        m = torch.lerp(memory["m"], gradient, 1 - momentum)
        v = grown(memory["v"], gradient.square())
        return m / (v.sqrt() + tau), {"m": m, "v": v}

    return step


_OPTIMIZERS: Mapping[str, Callable[[Any], Optimizer]] = {  # of settings
    "sgd": lambda settings: momentum_sgd(settings.server_momentum, nesterov=settings.server_nesterov),
    "adagrad": lambda settings: adagrad(settings.server_momentum, settings.tau),
    "adam": lambda settings: adam(settings.server_momentum, settings.server_beta2, settings.tau),
    "yogi": lambda settings: yogi(settings.server_momentum, settings.server_beta2, settings.tau),
}


class Descent(Averaging):
    """A server that descends by the pseudo-gradient, which is its model minus the mean of its clients'."""

    def __init__(self, trainable: int, optimizer: Optimizer, rate: Callable[[int], float]) -> None:
        """`trainable`: how many numbers of a model, from the first, have gradients; `rate`: by round, from 0."""
        self._trainable = trainable
        self._optimizer = optimizer
        self._rate = rate
        self._memory: Memory = {}

    def absorb(self, params: Tensor, mean: Tensor, share: float, round: int) -> Tensor:
        before, after = params[: self._trainable], duplicate(mean)
        gradient = before - mean[: self._trainable]
        direction, self._memory = self._optimizer(gradient, self._memory)
        torch.add(before, direction, alpha=-self._rate(round), out=after[: self._trainable])
        return after

    def state(self) -> RoleState:
        return dict(self._memory)

    def resume(self, state: RoleState) -> None:
        self._memory = {name: as_tensor(value) for name, value in state.items()}


def _fedopt(learner: Learner, settings: FedOptSettings) -> Rule:
    return _descending(learner, settings, _OPTIMIZERS[settings.server_optimizer](settings))


def _fedavgm(learner: Learner, settings: FedAvgMSettings) -> Rule:
    return _descending(learner, settings, _OPTIMIZERS["sgd"](settings))


def _descending(learner: Learner, settings: FedAvgMSettings, optimizer: Optimizer) -> Rule:
    trainable = learner.model.layout.trainable_numel
    return Rule(learner.parts, learner.parts, lambda: Descent(trainable, optimizer, settings.rate), Training)


FEDOPT = starred("fedopt", FedOptSettings, _fedopt)
FEDAVGM = starred("fedavgm", FedAvgMSettings, _fedavgm)
