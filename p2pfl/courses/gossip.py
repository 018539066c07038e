"""What courses without a coordinator share: how long they go on, and how each node measures itself."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from p2pfl.courses.learner import Learner
from p2pfl.courses.messages import number
from p2pfl.errors import ConfigError
from p2pfl.learn.train import FitResult

__all__ = ["GossipSettings"]


@dataclass(frozen=True, slots=True)
class GossipSettings:
    rounds: int = 30
    """How often each node trains and averages."""
    evaluate_every: int = 1
    """Rounds between two evaluations on the test part."""
    evaluators: int = -1
    """The first so many seats evaluate; -1: all."""

    def __post_init__(self) -> None:
        for name in ("rounds", "evaluate_every"):
            if getattr(self, name) < 1:
                raise ConfigError(f"course.{name} is {getattr(self, name)}; it must be at least 1")

    async def measure(self, learner: Learner, params: Tensor, round: int, fitted: FitResult) -> dict[str, float]:
        """The metrics of one node after a round (from 0)."""
        found: dict[str, float | None] = {"train_loss": number(fitted.loss)}
        due = (round + 1) % self.evaluate_every == 0 or round + 1 == self.rounds
        chosen = self.evaluators < 0 or learner.seat < self.evaluators
        if due and chosen and learner.test is not None:
            evaluation = await learner.evaluate(params, learner.test)
            found |= {"accuracy": evaluation.accuracy, "loss": number(evaluation.loss)}
        return {name: value for name, value in found.items() if value is not None}
