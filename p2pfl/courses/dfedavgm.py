"""Decentralized federated averaging with momentum: several local steps of heavy-ball SGD, then one average.

T. Sun, D. Li, B. Wang: "Decentralized Federated Averaging", IEEE Transactions on Pattern Analysis and Machine
Intelligence 2023, https://arxiv.org/abs/2104.11375 (DFedAvgM).

y(k+1) = y(k) - lr g(y(k)) + momentum (y(k) - y(k-1)) from y(0) = y(-1) = x, and x <- W y of all. The momentum is
local, and begins at zero in every round.

Deviation: what is sent is not quantized.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from p2pfl.courses.course import Place
from p2pfl.courses.dpsgd import MixingSettings, mixing
from p2pfl.courses.learner import Learner
from p2pfl.courses.parts import Parts
from p2pfl.courses.steps import Adapt
from p2pfl.errors import require
from p2pfl.learn.train import FitResult

__all__ = ["DFEDAVGM", "DfedavgmSettings", "Rolling"]


@dataclass(frozen=True, slots=True)
class DfedavgmSettings(MixingSettings):
    """The table [course] of a course file."""

    name: str = "dfedavgm"
    momentum: float = 0.9
    """Of local steps: theta of the paper."""

    def __post_init__(self) -> None:
        MixingSettings.__post_init__(self)
        require(0 <= self.momentum < 1, f"course.momentum is {self.momentum}; it must lie in [0, 1)")


class Rolling(Adapt):
    """One node's side of DFedAvgM."""

    def __init__(self, parts: Parts, momentum: float) -> None:
        super().__init__(parts)
        self._momentum = momentum

    async def fit(self, learner: Learner, params: Tensor, round: int) -> FitResult:
        return await learner.fit(params, round, train=replace(learner.train, momentum=self._momentum))


def _steps(place: Place) -> Rolling:
    train, momentum = place.learner.train, place.settings.momentum
    require(
        train.optimizer == "sgd", f"train.optimizer is {train.optimizer!r}, and dfedavgm is for sgd; set it to that"
    )
    require(
        train.momentum in (0, momentum),
        f"train.momentum is {train.momentum}, and course.momentum {momentum}; leave the first out",
    )
    return Rolling(place.learner.parts, momentum)


DFEDAVGM = mixing("dfedavgm", DfedavgmSettings, _steps)
