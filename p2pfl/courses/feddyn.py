"""FedDyn: each client's loss is regularised anew in every round, so that its minimum comes to be that of all.

D. A. E. Acar, Y. Zhao, R. Matas Navarro, M. Mattina, P. N. Whatmough, V. Saligrama: "Federated Learning Based on
Dynamic Regularization", ICLR 2021, https://arxiv.org/abs/2111.04263. Algorithm 1:

    client    w_k = argmin F_k(w) - <g_k, w> + alpha/2 |w - w_t|^2;   g_k <- g_k - alpha (w_k - w_t);   sends w_k
    server    h <- h - alpha |S|/N mean(w_k - w_t);   w_t+1 = mean(w_k) - h / alpha

Memories are as long as what trains: the running statistics of batch normalisation have none, and are averaged.

Deviations: the minimum is approached by the local steps that [train] asks for. `course.weights = "examples"` weighs
both means. What came too late for a round stays in its client's memory, and not in the server's.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from p2pfl.courses.course import RoleState, as_tensor
from p2pfl.courses.fedavg import FedAvgSettings, starred
from p2pfl.courses.fedprox import proximal
from p2pfl.courses.learner import Learner
from p2pfl.courses.rules import Averaging, Rule, Trained, Training
from p2pfl.errors import require
from p2pfl.learn.specs import TrainSpec

__all__ = ["FEDDYN", "FedDynSettings"]


@dataclass(frozen=True, slots=True)
class FedDynSettings(FedAvgSettings):
    """The table [course] of a course file."""

    name: str = "feddyn"
    weights: str = "equal"
    """`equal`, as in the paper: all updates weigh the same; `examples`: as many as their clients have."""
    alpha: float = 0.01
    """Strength of the regularisation."""

    def __post_init__(self) -> None:
        FedAvgSettings.__post_init__(self)
        require(self.alpha > 0, f"course.alpha is {self.alpha}; it must be above 0")


class Balancing(Averaging):
    """The server's half."""

    def __init__(self, alpha: float, size: int) -> None:
        """`size`: how many numbers train, from the first."""
        self._alpha = alpha
        self._memory = torch.zeros(size)  # h

    def absorb(self, params: Tensor, mean: Tensor, share: float, round: int) -> Tensor:
        size = len(self._memory)
        self._memory = torch.sub(self._memory, (mean - params)[:size], alpha=self._alpha * share)
        absorbed = mean.clone()
        absorbed[:size].sub_(self._memory, alpha=1 / self._alpha)
        return absorbed

    def state(self) -> RoleState:
        return {"memory": self._memory}

    def resume(self, state: RoleState) -> None:
        self._memory = as_tensor(state["memory"])


class Regularised(Training):
    """The client's half."""

    stateful = True

    def __init__(self, train: TrainSpec, size: int) -> None:
        """`train`: with alpha as its pull."""
        self._train = train
        self._gradient = torch.zeros(size)  # g_k: that of F_k, where the last training has ended

    async def train(self, learner: Learner, received: Tensor, round: int) -> Trained:
        size = len(self._gradient)
        drift = functional.pad(self._gradient.neg(), (0, len(received) - size))
        found = await learner.fit(received, round, drift=drift, train=self._train)
        self._gradient = torch.sub(self._gradient, (found.params - received)[:size], alpha=self._train.proximal)
        return Trained(found.params, found.num_examples, found.loss)

    def state(self) -> RoleState:
        return {"gradient": self._gradient}

    def resume(self, state: RoleState) -> None:
        self._gradient = as_tensor(state["gradient"])


def _rule(learner: Learner, settings: FedDynSettings) -> Rule:
    train = proximal(learner.train, settings.alpha, "course.alpha")
    size = learner.model.layout.trainable_numel
    parts = learner.parts
    return Rule(parts, parts, partial(Balancing, settings.alpha, size), partial(Regularised, train, size))


FEDDYN = starred("feddyn", FedDynSettings, _rule, remembers=True)
