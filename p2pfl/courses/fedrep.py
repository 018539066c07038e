"""FedRep: the body of a model is learned together; each client's head, trained first in every round, stays with it.

L. Collins, H. Hassani, A. Mokhtari, S. Shakkottai: "Exploiting Shared Representations for Personalized Federated
Learning", ICML 2021, https://arxiv.org/abs/2102.07078.

Deviation: running statistics of normalisation layers in the body follow the batches in both phases.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from p2pfl.courses.fedavg import starred
from p2pfl.courses.learner import Learner
from p2pfl.courses.partial import FedPerSettings, last_layers, shared
from p2pfl.courses.private import private_of
from p2pfl.courses.rules import Rule, Trained, Training
from p2pfl.errors import require
from p2pfl.learn.pieces import Frozen, frozen
from p2pfl.learn.specs import TrainSpec
from p2pfl.learn.train import FitResult

__all__ = ["FEDREP", "FedRepSettings", "HeadThenBody", "fit_frozen"]


@dataclass(frozen=True, slots=True)
class FedRepSettings(FedPerSettings):
    """The table [course] of a course file. The body is trained as [train] says."""

    name: str = "fedrep"
    layers: int = 1
    """The head has so many layers, from the last."""
    head_epochs: int = 5
    """Passes in which a round trains the head, before the body."""

    def __post_init__(self) -> None:
        FedPerSettings.__post_init__(self)
        require(self.head_epochs >= 1, f"course.head_epochs is {self.head_epochs}; it must be at least 1")


class HeadThenBody(Training):
    """A client's training: each half is frozen while the other trains."""

    def __init__(self, body: Frozen, head: Frozen, head_train: TrainSpec) -> None:
        """`body` and `head`: the models in which only these train; `head_train`: how the head does."""
        self._body = body
        self._head = head
        self._head_train = head_train

    async def train(self, learner: Learner, received: Tensor, round: int) -> Trained:
        head = await fit_frozen(learner, self._head, received, round, train=self._head_train, use="head")
        found = await fit_frozen(learner, self._body, head.params, round)
        return Trained(found.params, found.num_examples, found.loss)


async def fit_frozen(
    learner: Learner, part: Frozen, params: Tensor, round: int, *, train: TrainSpec | None = None, use: str = "fit"
) -> FitResult:
    """Train that part of a whole model's `params`; see Learner.fit."""
    found = await replace(learner, model=part.model).fit(part.enter(params), round, train=train, use=use)
    return replace(found, params=part.leave(found.params))


def _fedrep(learner: Learner, settings: FedRepSettings) -> Rule:
    model = learner.model
    private = private_of(model, settings.name, settings.private, last_layers(model, settings.layers))
    body = frozen(model, private)
    head = frozen(model, frozenset(entry.name for entry in model.layout.entries) - private)
    train = replace(learner.train, epochs=settings.head_epochs, steps=0)
    return shared(model, private, lambda: HeadThenBody(body, head, train))


FEDREP = starred("fedrep", FedRepSettings, _fedrep, remembers=True)
