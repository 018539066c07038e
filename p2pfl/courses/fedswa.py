"""Stochastic weight averaging at the server: the result is the mean of the models of the last rounds.

D. Caldarola, B. Caputo, M. Ciccone: "Improving Generalization in Federated Learning by Seeking Flat Minima", ECCV 2022,
https://arxiv.org/abs/2203.11834; after P. Izmailov, D. Podoprikhin, T. Garipov, D. Vetrov, A. G. Wilson: "Averaging
Weights Leads to Wider Optima and Better Generalization", UAI 2018, https://arxiv.org/abs/1803.05407.

Training goes on from the model that federated averaging gives; what is evaluated, kept and handed out is the average.

Deviations: the clients' learning rate follows [train], not a cycle. Running statistics of a model are averaged, instead
of found anew by a pass over the data.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from p2pfl.courses.course import RoleState, as_tensor
from p2pfl.courses.fedavg import FedAvgSettings, starred
from p2pfl.courses.learner import Learner
from p2pfl.courses.rules import Averaging, Rule, Training
from p2pfl.errors import require

__all__ = ["FEDSWA", "FedSwaSettings"]


@dataclass(frozen=True, slots=True)
class FedSwaSettings(FedAvgSettings):
    """The table [course] of a course file."""

    name: str = "fedswa"
    swa_start: float = 0.75
    """Share of the rounds after which averaging begins."""
    swa_every: int = 1
    """Rounds between two models that are part of the average."""

    def __post_init__(self) -> None:
        FedAvgSettings.__post_init__(self)
        require(0 <= self.swa_start < 1, f"course.swa_start is {self.swa_start}; it must lie in [0, 1)")
        require(self.swa_every >= 1, f"course.swa_every is {self.swa_every}; it must be at least 1")

    def is_averaged(self, round: int) -> bool:
        """Whether the model of a round, from 0, is part of the average.

        >>> settings = FedSwaSettings(rounds=10, swa_start=0.5, swa_every=2)
        >>> [round for round in range(10) if settings.is_averaged(round)]
        [5, 7, 9]
        """
        since = round - int(self.swa_start * self.rounds)
        return since >= 0 and since % self.swa_every == 0


class RunningAverage(Averaging):
    """A server whose model is the average of those that it trains, once averaging has begun."""

    def __init__(self, settings: FedSwaSettings) -> None:
        self._settings = settings
        self._count = 0  # models in the average
        self._trained: Tensor | None = None  # what training goes on from, where it is not the average

    def broadcast(self, params: Tensor, round: int) -> Tensor:
        return params if self._trained is None else self._trained

    def absorb(self, params: Tensor, mean: Tensor, share: float, round: int) -> Tensor:
        is_averaged = self._settings.is_averaged(round)
        self._count += is_averaged
        if self._count == 0:
            return mean
        self._trained = mean
        return torch.lerp(params, mean, 1 / self._count) if is_averaged else params

    def state(self) -> RoleState:
        return {} if self._trained is None else {"count": self._count, "trained": self._trained}

    def resume(self, state: RoleState) -> None:
        if "trained" in state:
            self._count, self._trained = int(state["count"]), as_tensor(state["trained"])


def _fedswa(learner: Learner, settings: FedSwaSettings) -> Rule:
    return Rule(learner.parts, learner.parts, lambda: RunningAverage(settings), Training)


FEDSWA = starred("fedswa", FedSwaSettings, _fedswa)
