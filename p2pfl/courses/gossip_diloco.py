"""DiLoCo without a server: each node has the outer optimizer, and the mean of its neighbours instead of that of all.

A. Douillard et al.: "DiLoCo: Distributed Low-Communication Training of Language Models", 2023,
https://arxiv.org/abs/2311.08105, on a graph. J. Kolehmainen, N. Blagoev, J. Donaghy, O. Ersoy, C. Nies: "NoLoCo:
No-all-reduce Low Communication Training Method for Large Models", 2025, https://arxiv.org/abs/2506.10911, is of this
kind.

    y_i <- theta_i after H steps of an optimizer whose state stays at the node
    delta_i <- theta_i - sum_j w_ij y_j;   v_i <- momentum v_i + delta_i
    theta_i <- theta_i - lr (delta_i + momentum v_i)

So delta has in it both what was learned and how far the node is from its neighbours. Where W is doubly stochastic, as
Metropolis weights are, the mean of all nodes moves just as DiLoCo's model does by the mean of what they learned; on a
full graph this is DiLoCo. The nodes come together as long as lr (1 - the least eigenvalue of W) is below
(2 + 2 momentum) / (1 + 2 momentum): with the paper's figures, if that eigenvalue is above -0.93.

Deviations: NoLoCo adds a term of its own for the distance, with its own factor, and has a random partner for each
round: that is the family `random-matching`. A message that only one end of a link misses moves the mean of all a
little. A node that goes on with the model of a neighbour begins with empty optimizers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from p2pfl.courses.course import Place, RoleState, as_tensor
from p2pfl.courses.dpsgd import MixingSettings, mixing
from p2pfl.courses.fedopt import Descent, momentum_sgd
from p2pfl.courses.learner import Learner
from p2pfl.courses.steps import Adapt
from p2pfl.errors import require
from p2pfl.learn.optimizers import is_mindful
from p2pfl.learn.train import FitResult

__all__ = ["GOSSIP_DILOCO", "GossipDilocoSettings", "Outer"]


@dataclass(frozen=True, slots=True)
class GossipDilocoSettings(MixingSettings):
    """The table [course] of a course file."""

    name: str = "gossip-diloco"
    outer_lr: float = 0.7
    """The learning rate of the outer optimizer."""
    outer_momentum: float = 0.9
    """Nesterov's momentum of the outer optimizer. With 0, and an outer_lr of 1, this is dpsgd."""
    carry: bool = True
    """Whether each node's own optimizer goes on where it stood, instead of beginning anew in each round."""

    def __post_init__(self) -> None:
        MixingSettings.__post_init__(self)
        require(self.outer_lr > 0, f"course.outer_lr is {self.outer_lr}; it must be above 0")
        momentum = self.outer_momentum
        require(0 <= momentum < 1, f"course.outer_momentum is {momentum}; it must lie in [0, 1)")


class Outer(Adapt):
    """One node's side."""

    _descent: Descent
    _memory: Tensor | None  # of the node's own optimizer, where that goes on

    def __init__(self, learner: Learner, settings: GossipDilocoSettings) -> None:
        super().__init__(learner.parts)
        self._settings = settings
        self._trainable = learner.model.layout.trainable_numel
        self._carries = settings.carry and is_mindful(learner.train)
        self.restart()

    async def fit(self, learner: Learner, params: Tensor, round: int) -> FitResult:
        fitted = await learner.fit(params, round, memory=self._memory)
        if fitted.memory is not None:
            self._memory = fitted.memory
        return fitted

    def take(self, params: Tensor, trained: Tensor, mixed: Tensor, heard: Mapping[int, Tensor]) -> Tensor:
        return self._descent.absorb(params, mixed, 1.0, 0)

    def restart(self) -> None:
        lr, momentum = self._settings.outer_lr, self._settings.outer_momentum
        self._descent = Descent(self._trainable, momentum_sgd(momentum, nesterov=True), lambda round: lr)
        self._memory = torch.empty(0) if self._carries else None

    def state(self) -> RoleState:
        inner = {} if self._memory is None else {"memory": self._memory}
        return {**inner, **self._descent.state()}

    def resume(self, state: RoleState) -> None:
        if self._carries:
            self._memory = as_tensor(state["memory"])
        self._descent.resume({"v": state["v"]} if "v" in state else {})


def _steps(place: Place) -> Outer:
    return Outer(place.learner, place.settings)


GOSSIP_DILOCO = mixing("gossip-diloco", GossipDilocoSettings, _steps)
