"""APFL: each client is served by a mixture of the global model and one of its own.

Y. Deng, M. M. Kamani, M. Mahdavi: "Adaptive Personalized Federated Learning", 2020, https://arxiv.org/abs/2003.13461.
In each step of a client, all on one batch, with m = alpha v + (1 - alpha) w:

    w      <- w - lr gradient(w)                              # the client's copy of the global model, which is averaged
    v      <- v - lr alpha gradient(m)                        # its own
    alpha  <- alpha - lr gradient(m) . (v - w), within [0, 1]    # if it adapts: equation 10

Deviation: a client is served by its mixture with the newest global model, not with its last copy.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from p2pfl.courses.batchwise import by_batch, require_plain, steps_on_a_batch
from p2pfl.courses.course import RoleState, as_tensor
from p2pfl.courses.fedavg import FedAvgSettings, starred
from p2pfl.courses.learner import Learner
from p2pfl.courses.rules import Averaging, Rule, Trained, Training
from p2pfl.errors import require
from p2pfl.learn.specs import TrainSpec
from p2pfl.learn.train import mean_loss

__all__ = ["APFL", "ApflSettings"]


@dataclass(frozen=True, slots=True)
class ApflSettings(FedAvgSettings):
    """The table [course] of a course file."""

    name: str = "apfl"
    evaluate: str = "both"
    alpha: float = 0.5
    """The weight of a client's own model in its mixture; 0: it is served by the global one."""
    adapt: bool = True
    """Whether each client goes on to learn its own alpha."""

    def __post_init__(self) -> None:
        FedAvgSettings.__post_init__(self)
        require(0 <= self.alpha <= 1, f"course.alpha is {self.alpha}; it must lie in [0, 1]")


class Mixing(Training):
    """The client's half: its own model begins as the initial one. Who has never trained is served by the global one."""

    stateful = True

    def __init__(self, train: TrainSpec, size: int, alpha: float, adapt: bool) -> None:
        """`train`: one step; `size`: how many numbers of a model train."""
        self._train = train
        self._size = size
        self._alpha = alpha
        self._adapt = adapt
        self._own: Tensor | None = None

    async def train(self, learner: Learner, received: Tensor, round: int) -> Trained:
        copy = received
        own, alpha = learner.model.initial if self._own is None else self._own, self._alpha
        losses: list[Tensor] = []
        sizes: list[int] = []
        for number, batch in enumerate(by_batch(learner, round)):
            mixed = torch.lerp(copy, own, alpha)
            found = await batch.fit(copy, round, train=self._train, use=f"batch {number}")
            stepped = await batch.fit(mixed, round, train=self._train, use=f"personal batch {number}")
            step = mixed - stepped.params  # lr gradient(m)
            if self._adapt:
                slope = torch.dot(step[: self._size], (own - copy)[: self._size])
                alpha_after = min(max(alpha - float(slope), 0.0), 1.0)
            else:
                alpha_after = alpha
            own = torch.sub(own, step, alpha=alpha)
            copy, alpha = found.params, alpha_after
            losses.append(torch.tensor(found.loss))
            sizes.append(found.num_examples)
        self._own, self._alpha = own, alpha
        assert learner.shard is not None, "only seats with examples train"
        return Trained(copy, len(learner.shard), mean_loss(losses, sizes))

    async def personal(self, learner: Learner, served: Tensor) -> Tensor:
        return served if self._own is None else torch.lerp(served, self._own, self._alpha)

    def state(self) -> RoleState:
        return {} if self._own is None else {"own": self._own, "alpha": self._alpha}

    def resume(self, state: RoleState) -> None:
        if "own" in state:
            self._own, self._alpha = as_tensor(state["own"]), float(state["alpha"])


def _apfl(learner: Learner, settings: ApflSettings) -> Rule:
    require_plain(learner.train, "apfl")
    train, size = steps_on_a_batch(learner.train, 1), learner.model.layout.trainable_numel
    local = partial(Mixing, train, size, settings.alpha, settings.adapt)
    return Rule(learner.parts, learner.parts, Averaging, local)


APFL = starred("apfl", ApflSettings, _apfl, remembers=True)
