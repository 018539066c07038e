"""FedEM: each client is served by a mixture of components that all learn together, with weights of its own.

O. Marfoq, G. Neglia, A. Bellet, L. Kameni, R. Vidal: "Federated Multi-Task Learning under a Mixture of Distributions",
NeurIPS 2021, https://arxiv.org/abs/2108.10252. In a round (Algorithm 2), with p_m the probability that component m
gives to an example's class:

    q_m      <- pi_m p_m / sum(pi p)          for each example; pi <- the mean of q          # E, and M for the weights
    theta_m  <- theta_m - lr mean(q_m gradient of -log p_m)                                  # M for the components

The server averages the components. A step of theirs goes by the mixture's likelihood, whose gradient is just that.

Deviations: q follows the components from batch to batch, and is not held for the round. Before it is evaluated, a
client fits its weights to the newest components, by another such step: from equal weights, if it has never trained.

The server's own model is the first component, and that with which a client ends is its heaviest.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from p2pfl.courses.course import RoleState, as_tensor
from p2pfl.courses.fedavg import FedAvgSettings, starred
from p2pfl.courses.fedrep import fit_frozen
from p2pfl.courses.ifca import beginnings
from p2pfl.courses.learner import Learner
from p2pfl.courses.parts import Parts
from p2pfl.courses.rules import Averaging, Rule, Trained, Training
from p2pfl.errors import require
from p2pfl.learn.data import Shard
from p2pfl.learn.evaluate import Evaluation
from p2pfl.learn.mixture import WEIGHTS, Mixture, mixture
from p2pfl.learn.pieces import frozen
from p2pfl.learn.specs import TrainSpec

__all__ = ["FEDEM", "FedEmSettings"]


@dataclass(frozen=True, slots=True)
class FedEmSettings(FedAvgSettings):
    """The table [course] of a course file."""

    name: str = "fedem"
    evaluate: str = "clients"
    components: int = 3
    """How many models are mixed: the first begins as the initial one, the others are drawn by seed."""

    def __post_init__(self) -> None:
        FedAvgSettings.__post_init__(self)
        require(self.components >= 1, f"course.components is {self.components}; it must be at least 1")
        require(self.keep == "last", "course.keep is 'best', and fedem has many models at a time; set it to last")
        tuned = self.finetune_epochs > 0
        require(not tuned, "course.finetune_epochs is set, and fedem serves by more than one model; leave it out")


class Components(Averaging):
    """The server's half."""

    def __init__(self, components: Tensor) -> None:
        """`components`: (count, layout.numel)."""
        self._components = components

    def broadcast(self, params: Tensor, round: int) -> Tensor:
        return self._components.flatten()

    def absorb(self, params: Tensor, mean: Tensor, share: float, round: int) -> Tensor:
        self._components = mean.view_as(self._components)
        return self._components[0].clone()

    def serve(self, params: Tensor) -> Tensor:
        return self._components.flatten()

    def state(self) -> RoleState:
        return {"components": self._components}

    def resume(self, state: RoleState) -> None:
        self._components = as_tensor(state["components"])


class Weighing(Training):
    """The client's half."""

    stateful = True

    def __init__(self, mixed: Mixture) -> None:
        names = frozenset(entry.name for entry in mixed.model.layout.entries)
        self._mixed = mixed
        self._of_components = frozen(mixed.model, frozenset({WEIGHTS}))
        self._of_weights = frozen(mixed.model, names - {WEIGHTS})
        self._weights = torch.full((mixed.count,), 1 / mixed.count)

    async def train(self, learner: Learner, received: Tensor, round: int) -> Trained:
        components = received.view(self._mixed.count, -1)
        weights = await self._weighed(learner, components)
        start, spec = self._mixed.pack(components, weights), replace(learner.train, tier="auto")
        found = await fit_frozen(learner, self._of_components, start, round, train=spec)
        self._weights = weights
        return Trained(self._mixed.unpack(found.params)[0].flatten(), found.num_examples, found.loss)

    async def personal(self, learner: Learner, served: Tensor) -> Tensor:
        components = served.view(self._mixed.count, -1)
        return components[(await self._weighed(learner, components)).argmax()].clone()

    async def evaluate(self, learner: Learner, served: Tensor, shard: Shard) -> Evaluation:
        components = served.view(self._mixed.count, -1)
        vector = self._mixed.pack(components, await self._weighed(learner, components))
        return await replace(learner, model=self._mixed.model).evaluate(vector, shard)

    async def _weighed(self, learner: Learner, components: Tensor) -> Tensor:
        """The mean of q on what we train on.

        It is pi times the mean of p / sum(pi p), and one step of gradient descent leads there: the cross-entropy, which
        is normalised, has the slope 1 - mean(p / sum(pi p)) along pi.
        """
        before, start = self._weights, self._mixed.pack(components, self._weights)
        step = TrainSpec(lr=1.0, batch_size=512, accumulate=1_000_000)  # one, of all examples together
        found = await fit_frozen(learner, self._of_weights, start, 0, train=step, use="weights")
        means = before * (1 + self._mixed.unpack(found.params)[1] - before)
        return means / means.sum()  # which is 1, but for rounding

    def state(self) -> RoleState:
        return {"weights": self._weights}

    def resume(self, state: RoleState) -> None:
        if "weights" in state:
            self._weights = as_tensor(state["weights"])


def _fedem(learner: Learner, settings: FedEmSettings) -> Rule:
    count = settings.components
    mixed, components = mixture(learner.model, count), beginnings(learner, count)
    parts = Parts(learner.model, params=components.numel())
    return Rule(parts, parts, lambda: Components(components), lambda: Weighing(mixed), served=parts)


FEDEM = starred("fedem", FedEmSettings, _fedem, remembers=True)
