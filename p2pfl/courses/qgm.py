"""Quasi-global momentum: decentralized SGD whose momentum is made of what mixing has left of the steps.

T. Lin, S. P. Karimireddy, S. U. Stich, M. Jaggi: "Quasi-Global Momentum: Accelerating Decentralized Deep Learning on
Heterogeneous Data", ICML 2021, https://arxiv.org/abs/2102.04761 (QG-DSGDm).

Each node trains with momentum times m added to every gradient, mixes, and then m <- momentum m + (1 - momentum) d,
where d = (x - x(next)) / (lr steps) is the direction in which the model has moved. So m is close to that of all nodes,
where the momentum of one's own gradients would pull towards one's own examples. Nothing more is sent than in D-PSGD.

Deviations: with several local steps d is the mean of one step. A node that has not trained in a round keeps its m.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from p2pfl.courses.course import Place, RoleState, as_tensor
from p2pfl.courses.dpsgd import MixingSettings, mixing
from p2pfl.courses.learner import Learner
from p2pfl.courses.parts import Parts
from p2pfl.courses.steps import Adapt
from p2pfl.errors import require
from p2pfl.learn.train import FitResult, learning_rate

__all__ = ["QGM", "Heavy", "QgmSettings"]


@dataclass(frozen=True, slots=True)
class QgmSettings(MixingSettings):
    """The table [course] of a course file."""

    name: str = "qgm"
    momentum: float = 0.9
    """How much of the buffer is kept in a round, and added to gradients: mu and beta of the paper."""

    def __post_init__(self) -> None:
        MixingSettings.__post_init__(self)
        require(0 <= self.momentum < 1, f"course.momentum is {self.momentum}; it must lie in [0, 1)")


class Heavy(Adapt):
    """One node's side of quasi-global momentum."""

    def __init__(self, parts: Parts, momentum: float) -> None:
        super().__init__(parts)
        self._momentum = momentum
        self._buffer: Tensor | None = None  # None: zero
        self._length = 0.0  # of the last training: learning rate times steps; 0: there was none

    async def fit(self, learner: Learner, params: Tensor, round: int) -> FitResult:
        self._length = 0.0
        drift = None if self._buffer is None else self._momentum * self._buffer
        fitted = await learner.fit(params, round, drift=drift)
        self._length = learning_rate(learner.train, round) * fitted.steps
        return fitted

    def take(self, params: Tensor, trained: Tensor, mixed: Tensor, heard: Mapping[int, Tensor]) -> Tensor:
        if self._length:
            moved = (params - mixed).mul_((1 - self._momentum) / self._length)
            self._buffer = moved if self._buffer is None else moved.add_(self._buffer, alpha=self._momentum)
        return mixed

    def restart(self) -> None:
        self._buffer = None

    def state(self) -> RoleState:
        return {} if self._buffer is None else {"buffer": self._buffer}

    def resume(self, state: RoleState) -> None:
        self._buffer = as_tensor(state["buffer"]) if "buffer" in state else None


def _steps(place: Place) -> Heavy:
    local = place.learner.train.momentum
    require(local == 0, f"train.momentum is {local}, and qgm has a momentum of its own, course.momentum; set it to 0")
    return Heavy(place.learner.parts, place.settings.momentum)


QGM = mixing("qgm", QgmSettings, _steps)
