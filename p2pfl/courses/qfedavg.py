"""q-FedAvg: a fairer spread of accuracy over clients, as those count for more whose loss is large.

T. Li, M. Sanjabi, A. Beirami, V. Smith: "Fair Resource Allocation in Federated Learning", ICLR 2020,
https://arxiv.org/abs/1905.10497: algorithm 2, with L = 1 / lr.

Client k, whose loss is F_k under the model w that it is sent, and which trains to w_k, sends

    -Delta_k = F_k^q d_k    and    h_k = q F_k^(q-1) |d_k|^2 + L F_k^q,    where d_k = L (w_k - w);

the server's next model is w - sum_k Delta_k / sum_k h_k. With q = 0 that is federated averaging.

Deviations: cohorts are drawn evenly and sums are weighted by `course.weights`, which is in the objective the same as
drawing by p_k and not weighting. Losses count as 1e-10 at least. Running statistics of a model are averaged.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from p2pfl.courses.fedavg import FedAvgSettings, starred
from p2pfl.courses.learner import Learner
from p2pfl.courses.parts import Parts
from p2pfl.courses.rules import Averaging, Rule, Trained, Training
from p2pfl.errors import ComputeError, require
from p2pfl.learn.memory import duplicate
from p2pfl.learn.train import learning_rate

__all__ = ["QFEDAVG", "QFedAvgSettings"]

_LEAST_LOSS = 1e-10


@dataclass(frozen=True, slots=True)
class QFedAvgSettings(FedAvgSettings):
    """The table [course] of a course file."""

    name: str = "qfedavg"
    q: float = 0.1
    """How much more a large loss counts; 0: not at all. The larger it is, the smaller are the steps."""

    def __post_init__(self) -> None:
        FedAvgSettings.__post_init__(self)
        require(self.q >= 0, f"course.q is {self.q}; it must not be negative")


class Reweighing(Training):
    """A client that makes as much of its update as its loss is large."""

    def __init__(self, up: Parts, trainable: int, q: float) -> None:
        self._up = up
        self._trainable = trainable
        self._q = q

    async def train(self, learner: Learner, received: Tensor, round: int) -> Trained:
        assert learner.shard is not None, "only seats with examples train"
        before = await learner.evaluate(received, learner.shard, own=False)
        if not before.loss >= 0:
            raise ComputeError(f"the loss is {before.loss}; qfedavg needs one that is a number and not negative")
        found = await learner.fit(received, round)
        lipschitz, loss = 1 / learning_rate(learner.train, round), max(before.loss, _LEAST_LOSS)
        update = duplicate(found.params).sub_(received)
        step = update[: self._trainable].mul_(lipschitz)
        h = self._q * loss ** (self._q - 1) * torch.dot(step, step).item() + lipschitz * loss**self._q
        step.mul_(loss**self._q)
        return Trained(self._up.join(params=update, h=torch.tensor([h])), found.num_examples, found.loss)


class FairDescent(Averaging):
    """A server whose step is as long as its clients' losses allow."""

    def __init__(self, up: Parts, trainable: int) -> None:
        self._up = up
        self._trainable = trainable

    def absorb(self, params: Tensor, mean: Tensor, share: float, round: int) -> Tensor:
        update, h = self._up.split(mean).values()
        after = duplicate(update)
        after[: self._trainable].mul_(1 / h.item() if h > 0 else 0.0)  # where it underflows, the losses are nothing
        return after.add_(params)


def _qfedavg(learner: Learner, settings: QFedAvgSettings) -> Rule:
    rates = [learning_rate(learner.train, round) for round in (0, settings.rounds - 1)]
    require(min(rates) > 0, "train.lr is 0 or falls to it, and qfedavg divides by it; raise it or its schedule_factor")
    up, trainable = Parts(learner.model, h=1), learner.model.layout.trainable_numel
    return Rule(
        learner.parts,
        up,
        lambda: FairDescent(up, trainable),
        lambda: Reweighing(up, trainable, settings.q),
        relative=True,
    )


QFEDAVG = starred("qfedavg", QFedAvgSettings, _qfedavg)
