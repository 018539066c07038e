"""IFCA: clients belong to one of a few clusters, each with a model, and find out which by trying all of them.

A. Ghosh, J. Chung, D. Yin, K. Ramchandran: "An Efficient Framework for Clustered Federated Learning", NeurIPS 2020,
https://arxiv.org/abs/2006.04088. In its form of model averaging: the server sends the models of all clusters, a client
trains the one with the lowest loss on its examples, and the server averages within each cluster.

The server's own model is that of the cluster in which most was learned in the last round.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from p2pfl.courses.course import RoleState, as_tensor
from p2pfl.courses.fedavg import FedAvgSettings, starred
from p2pfl.courses.learner import Learner, seed_of
from p2pfl.courses.parts import Parts
from p2pfl.courses.rules import Averaging, Rule, Trained, Training
from p2pfl.errors import RemoteProtocolError, require
from p2pfl.learn.model import Model
from p2pfl.wire.tensor import Tensors

__all__ = ["IFCA", "IfcaSettings", "beginnings"]


@dataclass(frozen=True, slots=True)
class IfcaSettings(FedAvgSettings):
    """The table [course] of a course file."""

    name: str = "ifca"
    evaluate: str = "clients"
    clusters: int = 2
    """How many models there are: the first is the initial one, the others are drawn by seed."""

    def __post_init__(self) -> None:
        FedAvgSettings.__post_init__(self)
        require(self.clusters >= 1, f"course.clusters is {self.clusters}; it must be at least 1")
        require(self.keep == "last", "course.keep is 'best', and ifca has many models at a time; set it to last")


class Chosen(Parts):
    """One model and which it is of several, as ones and zeros; a received vector has all, zero but for that one."""

    def __init__(self, model: Model, clusters: int) -> None:
        super().__init__(model, cluster=clusters)

    def vector(self, tensors: Tensors, *, finite: bool = True) -> Tensor:
        params, cluster = self.split(super().vector(tensors, finite=finite)).values()
        if sorted(cluster.tolist()) != [0.0] * (len(cluster) - 1) + [1.0]:
            raise RemoteProtocolError("an update came that is not of one cluster")
        return torch.cat((torch.outer(cluster, params).flatten(), cluster))

    def packed(self, tensors: Tensors) -> Tensor:
        return super().vector(tensors, finite=False)


class Clustering(Averaging):
    """The server's half. A cluster without an update keeps its model."""

    def __init__(self, models: Tensor) -> None:
        """`models`: (clusters, layout.numel)."""
        self._models = models

    def broadcast(self, params: Tensor, round: int) -> Tensor:
        return self._models.flatten()

    def absorb(self, params: Tensor, mean: Tensor, share: float, round: int) -> Tensor:
        count, numel = self._models.shape
        sums, weights = mean[: count * numel].view(count, numel), mean[count * numel :]
        self._models = torch.stack([
            total / weight if weight > 0 else model
            for total, weight, model in zip(sums, weights, self._models, strict=True)
        ])  # fmt: skip
        return self._models[weights.argmax()].clone()

    def serve(self, params: Tensor) -> Tensor:
        return self._models.flatten()

    def state(self) -> RoleState:
        return {"models": self._models}

    def resume(self, state: RoleState) -> None:
        self._models = as_tensor(state["models"])


class Choosing(Training):
    """The client's half."""

    def __init__(self, clusters: int) -> None:
        self._clusters = clusters

    async def train(self, learner: Learner, received: Tensor, round: int) -> Trained:
        models = received.chunk(self._clusters)
        mine = await self._nearest(learner, models)
        found = await learner.fit(models[mine], round)
        cluster = torch.zeros(self._clusters)
        cluster[mine] = 1.0
        return Trained(torch.cat((found.params, cluster)), found.num_examples, found.loss)

    async def personal(self, learner: Learner, served: Tensor) -> Tensor:
        models = served.chunk(self._clusters)
        return models[await self._nearest(learner, models)]

    @staticmethod
    async def _nearest(learner: Learner, models: Sequence[Tensor]) -> int:
        """That with the lowest loss on what we train on; the first of equals, or where there is nothing."""
        assert learner.shard is not None, "only seats with examples choose"
        losses = [(await learner.evaluate(model, learner.shard, own=False)).loss for model in models]
        return min(range(len(losses)), key=losses.__getitem__)


def beginnings(learner: Learner, count: int) -> Tensor:
    """So many models to begin with, (count, layout.numel): the initial one, and others, drawn by the course's seed.

    Raises ConfigError where the module's layers cannot draw themselves anew.
    """
    model = learner.model
    others = [model.redrawn(seed_of(learner.seed, "beginning", which)) for which in range(1, count)]
    drawn = all(not torch.equal(model.initial, other) for other in others)
    require(
        drawn, "model.name is a module whose layers have no reset_parameters, and several models would be one; add it"
    )
    return torch.stack([model.initial, *others])


def _ifca(learner: Learner, settings: IfcaSettings) -> Rule:
    count = settings.clusters
    models, down = beginnings(learner, count), Parts(learner.model, params=count * learner.model.layout.numel)
    up = Chosen(learner.model, count)
    return Rule(down, up, lambda: Clustering(models), lambda: Choosing(count), served=down, comparable=False)


IFCA = starred("ifca", IfcaSettings, _ifca, compresses=False)
