"""FedBABU: only the body is trained and averaged; the head stays as it began, until clients tune the whole model.

J. Oh, S. Kim, S.-Y. Yun: "FedBABU: Toward Enhanced Representation for Federated Image Classification", ICLR 2022,
https://arxiv.org/abs/2106.06042.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from p2pfl.courses.fedavg import starred
from p2pfl.courses.fedrep import fit_frozen
from p2pfl.courses.learner import Learner
from p2pfl.courses.partial import FedPerSettings, Sharing, last_layers
from p2pfl.courses.parts import Parts
from p2pfl.courses.private import private_of
from p2pfl.courses.rules import Rule, Trained, Training
from p2pfl.learn.pieces import Frozen, Pieces, frozen

__all__ = ["FEDBABU", "FedBabuSettings"]


@dataclass(frozen=True, slots=True)
class FedBabuSettings(FedPerSettings):
    """The table [course] of a course file. `private` is the head."""

    name: str = "fedbabu"
    layers: int = 1
    """The head has so many layers, from the last."""
    finetune_epochs: int = 1
    """Before a client is evaluated, and in the end, it trains body and head so many passes over its own examples."""


class Body(Training):
    """A client's half: the head is everybody's initial one."""

    def __init__(self, shared: Pieces, body: Frozen) -> None:
        """`shared`: the entries that are not of the head; `body`: the model in which only these train."""
        self._shared = shared
        self._body = body

    async def train(self, learner: Learner, received: Tensor, round: int) -> Trained:
        start = self._shared.put(learner.model.initial, received)
        found = await fit_frozen(learner, self._body, start, round)
        return Trained(self._shared.take(found.params), found.num_examples, found.loss)


def _fedbabu(learner: Learner, settings: FedBabuSettings) -> Rule:
    model = learner.model
    head = private_of(model, settings.name, settings.private, last_layers(model, settings.layers))
    shared, body = Pieces(model.layout, {entry.name for entry in model.layout.entries} - head), frozen(model, head)
    parts = Parts(model, params=shared.numel)
    return Rule(parts, parts, lambda: Sharing(shared), lambda: Body(shared, body))


FEDBABU = starred("fedbabu", FedBabuSettings, _fedbabu)
