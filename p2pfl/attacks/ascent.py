"""A coordinator that pushes the model away from examples and sees who pulls it back: members are learned again.

M. Nasr, R. Shokri, A. Houmansadr: "Comprehensive Privacy Analysis of Deep Learning: Passive and Active White-box
Inference Attacks against Centralized and Federated Learning", S&P 2019, https://arxiv.org/abs/1812.00910, section on
gradient ascent by the global attacker. Deviation: all suspects are pushed at once, and a score is how small their loss
is again after each round, where the paper has a classifier of much more than that.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from p2pfl.attacks.gradients import gradient_of
from p2pfl.attacks.membership import by_loss
from p2pfl.courses.learner import Learner
from p2pfl.courses.rules import Averaging, Rule, averaging
from p2pfl.learn.data import Shard

__all__ = ["Ascent", "ascending"]


class Ascent(Averaging):
    """The server's half of federated averaging by this attacker. `scores`: (suspects,), higher for members."""

    def __init__(self, learner: Learner, suspects: Shard, rate: float) -> None:
        """`rate`: of the step up the suspects' mean loss that each round begins with."""
        self.scores = torch.zeros(len(suspects), dtype=torch.float64)
        self._model = learner.model
        self._suspects = suspects
        self._rate = rate

    def broadcast(self, params: Tensor, round: int) -> Tensor:
        part = self._suspects.shifted()
        gradient = gradient_of(self._model, params, *part.dataset.batch(part.indices))
        pushed = params.clone()
        for view, slope in zip(self._model.layout.views(pushed), gradient, strict=False):  # buffers have none
            view.add_(slope, alpha=self._rate)
        return pushed

    def absorb(self, params: Tensor, mean: Tensor, share: float, round: int) -> Tensor:
        self.scores += by_loss(self._model, mean, self._suspects)
        return mean


def ascending(learner: Learner, ascent: Ascent) -> Rule:
    """Federated averaging, with this half at the server: for `starred` in place of `averaging`."""
    return replace(averaging(learner), central=lambda: ascent)
