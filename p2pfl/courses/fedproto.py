"""FedProto: clients keep their models, and share what the classes look like to them.

Y. Tan, G. Long, L. Liu, T. Zhou, Q. Lu, J. Jiang, C. Zhang: "FedProto: Federated Prototype Learning across
Heterogeneous Clients", AAAI 2022, https://arxiv.org/abs/2105.00243. A prototype is the mean, over the examples of a
class, of what goes into a model's last layer. The server averages each class's prototypes, by the numbers of examples;
clients train their models so that examples come near to the prototype of their class (Algorithm 1, with the mean
squared distance of the authors' program).

Deviations: all clients have models of one kind. They are served by their models' outputs, not by the nearest prototype.
A class of which a round brings nothing keeps its prototype.

The server's own model stays as it began.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from p2pfl.courses.course import RoleState, as_tensor
from p2pfl.courses.fedavg import FedAvgSettings, starred
from p2pfl.courses.fedrep import fit_frozen
from p2pfl.courses.learner import Learner
from p2pfl.courses.parts import Parts
from p2pfl.courses.rules import Averaging, Owning, Rule, Trained
from p2pfl.errors import require
from p2pfl.learn.prototypes import Prototyped, prototyped
from p2pfl.learn.specs import TrainSpec

__all__ = ["FEDPROTO", "FedProtoSettings"]


@dataclass(frozen=True, slots=True)
class FedProtoSettings(FedAvgSettings):
    """The table [course] of a course file."""

    name: str = "fedproto"
    evaluate: str = "clients"
    pull: float = 1.0
    """lambda: how strongly examples are pulled towards the prototype of their class."""

    def __post_init__(self) -> None:
        FedAvgSettings.__post_init__(self)
        require(self.pull >= 0, f"course.pull is {self.pull}; it must not be negative")


class Meeting(Averaging):
    """The server's half."""

    def __init__(self, classes: int, width: int) -> None:
        self._prototypes = torch.zeros(classes, width)
        self._known = torch.zeros(classes)

    def broadcast(self, params: Tensor, round: int) -> Tensor:
        return torch.cat((self._prototypes.flatten(), self._known))

    def absorb(self, params: Tensor, mean: Tensor, share: float, round: int) -> Tensor:
        sums, shares = mean.tensor_split((self._prototypes.numel(),))
        there = shares > 0
        fresh = sums.view_as(self._prototypes) / shares.where(there, 1)[:, None]
        self._prototypes = torch.where(there[:, None], fresh, self._prototypes)
        self._known = torch.where(there, 1.0, self._known)
        return params

    def state(self) -> RoleState:
        return {"prototypes": self._prototypes, "known": self._known}

    def resume(self, state: RoleState) -> None:
        self._prototypes, self._known = as_tensor(state["prototypes"]), as_tensor(state["known"])


class Showing(Owning):
    """The client's half: what goes up is each class's sum and its number, both over the number of all examples."""

    def __init__(self, model: Prototyped) -> None:
        self._model = model
        super().__init__()

    async def train(self, learner: Learner, received: Tensor, round: int) -> Trained:
        model = self._model
        prototypes, known = received.tensor_split((model.classes * model.width,))
        start = model.pack(await self.personal(learner, learner.model.initial), prototypes, known)
        found = await fit_frozen(learner, model.pulled, start, round)
        own, _ = model.unpack(found.params)
        up = torch.cat((await self._sums(learner, own), _shares(learner, model.classes)))
        self.own = own
        return Trained(up, found.num_examples, found.loss)

    async def _sums(self, learner: Learner, params: Tensor) -> Tensor:
        model, step = self._model, TrainSpec(lr=1.0, batch_size=512, accumulate=1_000_000)
        start = model.pack(params, torch.zeros(model.classes * model.width), torch.ones(model.classes))
        found = await fit_frozen(learner, model.gathering, start, 0, train=step, use="prototypes")
        return model.unpack(found.params)[1].flatten()


def _shares(learner: Learner, classes: int) -> Tensor:
    """Of each class in the client's examples."""
    assert learner.shard is not None, "only seats with examples train"
    labels = learner.shard.labels
    return torch.bincount(labels, minlength=classes) / max(len(labels), 1)


def _fedproto(learner: Learner, settings: FedProtoSettings) -> Rule:
    model = prototyped(learner.model, settings.pull)
    parts = Parts(learner.model, params=model.classes * model.width, classes=model.classes)
    return Rule(parts, parts, lambda: Meeting(model.classes, model.width), lambda: Showing(model), comparable=False)


FEDPROTO = starred("fedproto", FedProtoSettings, _fedproto, remembers=True)
