"""pFedMe: personal models are proximal points of the clients' own, which are averaged.

C. T. Dinh, N. H. Tran, T. D. Nguyen: "Personalized Federated Learning with Moreau Envelopes", NeurIPS 2020,
https://arxiv.org/abs/2006.08848. In a round, for each batch of a client, with `theta` and `w` from the model received:

    theta  from `inner_steps` steps of gradient(theta) + pull (theta - w), on this batch
    w      <- w - outer_lr pull (w - theta)

The server goes from its model towards the mean of the clients' `w`, by `server_lr` (beta). The last theta is the
client's personal model.

Deviations: `theta` goes on from batch to batch, as in the authors' program; a client's local rounds are the batches
that [train] asks for.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from p2pfl.courses.batchwise import by_batch, steps_on_a_batch
from p2pfl.courses.course import RoleState, as_tensor
from p2pfl.courses.fedavg import FedAvgSettings, starred
from p2pfl.courses.learner import Learner
from p2pfl.courses.rules import Averaging, Rule, Trained, Training
from p2pfl.errors import require
from p2pfl.learn.specs import TrainSpec
from p2pfl.learn.train import mean_loss

__all__ = ["PFEDME", "PFedMeSettings"]


@dataclass(frozen=True, slots=True)
class PFedMeSettings(FedAvgSettings):
    """The table [course] of a course file. `train.lr` is that of the personal model."""

    name: str = "pfedme"
    evaluate: str = "both"
    weights: str = "equal"
    pull: float = 1.0
    """lambda: how strongly the personal model is pulled towards the client's own; the paper has 15, with a small
    train.lr."""
    inner_steps: int = 5
    """K: steps of the personal model on each batch."""
    outer_lr: float = 0.5
    """eta: the own model goes `outer_lr * pull` of the way to the personal one after each batch."""
    server_lr: float = 1.0
    """beta: so far the server goes towards the mean of the clients' models; 1 is all the way."""

    def __post_init__(self) -> None:
        FedAvgSettings.__post_init__(self)
        require(self.inner_steps >= 1, f"course.inner_steps is {self.inner_steps}; it must be at least 1")
        for name in ("pull", "outer_lr", "server_lr"):
            require(getattr(self, name) > 0, f"course.{name} is {getattr(self, name)}; it must be above 0")
        way = self.outer_lr * self.pull
        require(way <= 1, f"course.outer_lr times course.pull is {way:g}, and must be at most 1; lower course.outer_lr")


class Nearing(Averaging):
    """The server's half."""

    def __init__(self, server_lr: float) -> None:
        self._server_lr = server_lr

    def absorb(self, params: Tensor, mean: Tensor, share: float, round: int) -> Tensor:
        return torch.lerp(params, mean, self._server_lr)


class Enveloped(Training):
    """The client's half. Who has never trained is served by the server's model."""

    stateful = True

    def __init__(self, train: TrainSpec, way: float) -> None:
        """`train`: of the personal model on a batch; `way`: of the own model to it, as a share."""
        self._train = train
        self._way = way
        self._theta: Tensor | None = None

    async def train(self, learner: Learner, received: Tensor, round: int) -> Trained:
        own = theta = received
        losses: list[Tensor] = []
        sizes: list[int] = []
        for number, batch in enumerate(by_batch(learner, round)):
            # Training pulls towards where it starts: pull (theta - w) = pull (theta - start) + pull (start - w).
            drift = (theta - own).mul_(self._train.proximal)
            found = await batch.fit(theta, round, drift=drift, train=self._train, use=f"batch {number}")
            theta = found.params
            own = torch.lerp(own, theta, self._way)
            losses.append(torch.tensor(found.loss))
            sizes.append(found.num_examples)
        self._theta = theta
        assert learner.shard is not None, "only seats with examples train"
        return Trained(own, len(learner.shard), mean_loss(losses, sizes))

    async def personal(self, learner: Learner, served: Tensor) -> Tensor:
        return served if self._theta is None else self._theta

    def state(self) -> RoleState:
        return {} if self._theta is None else {"theta": self._theta}

    def resume(self, state: RoleState) -> None:
        self._theta = as_tensor(state["theta"]) if "theta" in state else None


def _pfedme(learner: Learner, settings: PFedMeSettings) -> Rule:
    train = steps_on_a_batch(learner.train, settings.inner_steps, proximal=settings.pull)
    local = partial(Enveloped, train, settings.outer_lr * settings.pull)
    return Rule(learner.parts, learner.parts, partial(Nearing, settings.server_lr), local)


PFEDME = starred("pfedme", PFedMeSettings, _pfedme, remembers=True)
