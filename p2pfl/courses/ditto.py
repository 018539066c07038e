"""Ditto: beside the global model, each client trains a model of its own that is pulled towards it.

T. Li, S. Hu, A. Beirami, V. Smith: "Ditto: Fair and Robust Federated Learning Through Personalization", ICML 2021,
https://arxiv.org/abs/2012.04221. The global model is that of federated averaging (Algorithm 1).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from p2pfl.courses.fedavg import FedAvgSettings, starred
from p2pfl.courses.learner import Learner
from p2pfl.courses.rules import Averaging, Owning, Rule, Trained
from p2pfl.errors import require
from p2pfl.learn.specs import TrainSpec

__all__ = ["DITTO", "Ditto", "DittoSettings"]


@dataclass(frozen=True, slots=True)
class DittoSettings(FedAvgSettings):
    """The table [course] of a course file."""

    name: str = "ditto"
    evaluate: str = "both"
    pull: float = 0.1
    """lambda: how strongly a client's own model is pulled towards the global one. 0: it is trained alone."""
    personal_epochs: int = 0
    """Passes in which the own model is trained in a round; 0: it is trained as long as the global one."""

    def __post_init__(self) -> None:
        FedAvgSettings.__post_init__(self)
        for name in ("pull", "personal_epochs"):
            require(getattr(self, name) >= 0, f"course.{name} is {getattr(self, name)}; it must not be negative")


class Ditto(Owning):
    """A client's half: its own model begins as the initial one. Who has never trained is served by the global one."""

    def __init__(self, train: TrainSpec) -> None:
        """`train`: how the own model is trained; `train.proximal` is the pull."""
        self._train = train
        super().__init__()

    async def train(self, learner: Learner, received: Tensor, round: int) -> Trained:
        own = await self.personal(learner, learner.model.initial)
        # Training pulls towards where it starts: pull (v - w) = pull (v - start) + pull (start - w).
        drift = (own - received).mul_(self._train.proximal)
        mine = await learner.fit(own, round, drift=drift, train=self._train, use="personal")
        trained = await super().train(learner, received, round)
        self.own = mine.params
        return trained


def _ditto(learner: Learner, settings: DittoSettings) -> Rule:
    train = replace(learner.train, proximal=settings.pull)
    if settings.personal_epochs:
        train = replace(train, epochs=settings.personal_epochs, steps=0)
    return Rule(learner.parts, learner.parts, Averaging, lambda: Ditto(train))


DITTO = starred("ditto", DittoSettings, _ditto, remembers=True)
