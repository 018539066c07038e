"""Gradient tracking: every node follows an estimate of the mean of all gradients, which it mixes like its model.

A. Nedić, A. Olshevsky, W. Shi: "Achieving Geometric Convergence for Distributed Optimization over Time-Varying Graphs",
SIAM Journal on Optimization 2017, https://arxiv.org/abs/1607.03218 (DIGing); with stochastic gradients A. Koloskova,
T. Lin, S. U. Stich: "An Improved Analysis of Gradient Tracking for Decentralized Machine Learning", NeurIPS 2021,
https://arxiv.org/abs/2202.03836.

Adapt-then-combine: with u = -lr g, x <- W (x + s) and s <- W s + u(next) - u. Each node gives x + s and s, which is
twice the bytes of D-PSGD, and keeps c = W s - u, which is what is known of the others' steps; c of all sum up to zero.
Unlike D² it converges on graphs that change, and for every W.

Deviations: what training changed in several local steps stands for u. `restart_every` as in D²: a message that only one
end of a link misses, and a node that goes on with the model of a neighbour, would else move the mean of all for ever.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from p2pfl.courses.course import Place, RoleState, as_tensor
from p2pfl.courses.dpsgd import MixingSettings, mixing, symmetric
from p2pfl.courses.learner import Learner
from p2pfl.courses.parts import Parts
from p2pfl.courses.steps import Adapt
from p2pfl.errors import require
from p2pfl.learn.train import FitResult

__all__ = ["GRADTRACK", "GradtrackSettings", "Tracked"]


@dataclass(frozen=True, slots=True)
class GradtrackSettings(MixingSettings):
    """The table [course] of a course file."""

    name: str = "gradtrack"
    restart_every: int = 0
    """Rounds after which tracking begins anew, for links that lose what only one end knows; 0: never."""

    def __post_init__(self) -> None:
        MixingSettings.__post_init__(self)
        require(self.restart_every >= 0, f"course.restart_every is {self.restart_every}; it must not be negative")


class Tracked(Adapt):
    """One node's side of gradient tracking. `parts`: the model, and the part `step` as long as it."""

    def __init__(self, parts: Parts, *, restart_every: int = 0) -> None:
        super().__init__(parts)
        self._restart_every = restart_every
        self._others: Tensor | None = None  # c; None: zero

    async def fit(self, learner: Learner, params: Tensor, round: int) -> FitResult:
        if self._restart_every and round % self._restart_every == 0:
            self.restart()
        return await learner.fit(params, round)

    def give(self, params: Tensor, trained: Tensor) -> Tensor:
        step = trained - params
        if self._others is not None:
            step += self._others
        return self.parts.join(params=params + step, step=step)

    def take(self, params: Tensor, trained: Tensor, mixed: Tensor, heard: Mapping[int, Tensor]) -> Tensor:
        parts = self.parts.split(mixed)
        self._others = parts["step"] - (trained - params)
        return parts["params"].clone()  # a view would keep both parts, and cannot be sent as it is

    def shown(self, vector: Tensor) -> Tensor:
        return self.parts.split(vector)["params"]

    def restart(self) -> None:
        self._others = None

    def state(self) -> RoleState:
        return {} if self._others is None else {"others": self._others}

    def resume(self, state: RoleState) -> None:
        self._others = as_tensor(state["others"]) if "others" in state else None


def _steps(place: Place) -> Tracked:
    model = place.learner.model
    return Tracked(Parts(model, step=model.layout.numel), restart_every=place.settings.restart_every)


GRADTRACK = mixing("gradtrack", GradtrackSettings, _steps, symmetric)
