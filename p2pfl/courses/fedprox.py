"""FedProx: clients are held near the model that they are sent, and slow ones may do less.

T. Li, A. K. Sahu, M. Zaheer, M. Sanjabi, A. Talwalkar, V. Smith: "Federated Optimization in Heterogeneous Networks",
MLSys 2020, https://arxiv.org/abs/1812.06127.

    client    minimise F_k(w) + mu/2 |w - w_t|^2, from w_t, as far as its work allows

Deviations: a cohort is drawn uniformly and weighed as in fedavg.py. The paper's stragglers are an exact share of each
cohort; here every client draws for itself, by seed, whether it is one. With mu 0 this is federated averaging that takes
in the partial work of stragglers.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from random import Random

from torch import Tensor

from p2pfl.courses.fedavg import FedAvgSettings, starred
from p2pfl.courses.learner import Learner, seed_of
from p2pfl.courses.rules import Averaging, Rule, Trained, Training
from p2pfl.errors import require
from p2pfl.learn.specs import TrainSpec

__all__ = ["FEDPROX", "FedProxSettings", "proximal"]


@dataclass(frozen=True, slots=True)
class FedProxSettings(FedAvgSettings):
    """The table [course] of a course file."""

    name: str = "fedprox"
    mu: float = 0.01
    """Pull towards the model that the round began with, as a factor of the distance."""
    stragglers: float = 0.0
    """Share of the clients that do less in a round: from 1 to train.epochs passes (or train.steps steps), drawn."""

    def __post_init__(self) -> None:
        FedAvgSettings.__post_init__(self)
        require(self.mu >= 0, f"course.mu is {self.mu}; it must not be negative")
        require(0 <= self.stragglers <= 1, f"course.stragglers is {self.stragglers}; it must lie in [0, 1]")


def proximal(spec: TrainSpec, factor: float, setting: str) -> TrainSpec:
    """`spec` with the pull of a course, which is its `setting`. Raises ConfigError if it has a pull of its own."""
    own = spec.proximal
    require(own == 0, f"train.proximal is {own}, and the course has {setting} for that; leave train.proximal out")
    return replace(spec, proximal=factor)


class Held(Training):
    """The client's half."""

    def __init__(self, train: TrainSpec, stragglers: float) -> None:
        self._train = train
        self._stragglers = stragglers

    async def train(self, learner: Learner, received: Tensor, round: int) -> Trained:
        found = await learner.fit(received, round, train=self._work(learner, round))
        return Trained(found.params, found.num_examples, found.loss)

    def _work(self, learner: Learner, round: int) -> TrainSpec:
        """What this client does in a round."""
        draw = Random(seed_of(learner.seed, "work", round, learner.seat))
        if draw.random() >= self._stragglers:
            return self._train
        if self._train.steps:
            return replace(self._train, steps=draw.randint(1, self._train.steps))
        return replace(self._train, epochs=draw.randint(1, self._train.epochs))


def _rule(learner: Learner, settings: FedProxSettings) -> Rule:
    train = proximal(learner.train, settings.mu, "course.mu")
    return Rule(learner.parts, learner.parts, Averaging, partial(Held, train, settings.stragglers))


FEDPROX = starred("fedprox", FedProxSettings, _rule)
