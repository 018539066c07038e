"""The best model of a course so far, by any metric, and whether it is time to stop."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from p2pfl.courses.course import RoleState, as_tensor
from p2pfl.courses.scores import BY_CLIENTS, CLIENT
from p2pfl.errors import ConfigError

__all__ = ["BETTER", "Best", "Goal"]

BETTER = ("auto", "highest", "lowest")
_USUAL = ("accuracy", f"{CLIENT}accuracy", "loss", f"{CLIENT}loss")  # what is judged by, the first that is there


@dataclass(frozen=True, slots=True)
class Goal:
    """What makes a model better than another, and what ends a course early."""

    by: str = ""  # a metric; empty: accuracy, or else loss
    better: str = "auto"  # one of BETTER
    patience: int = 0  # evaluations without a better one, after which it is over; 0: never
    target: float = 0.0  # for that metric; 0: none
    target_accuracy: float = 0.0  # 0: none

    def merit(self, metrics: Mapping[str, float]) -> float | None:
        """The higher the better; None if it was not measured.

        >>> Goal().merit({"loss": 2.0}), Goal("staleness", "lowest").merit({"staleness": 3.0})
        (-2.0, -3.0)
        """
        names = (self.by,) if self.by else _USUAL
        name = next((name for name in names if name in metrics), None)
        if name is None:
            return None
        return -metrics[name] if self._falls(name) else metrics[name]

    def _falls(self, name: str) -> bool:
        """Whether less of it is better."""
        return name.endswith("loss") if self.better == "auto" else self.better == "lowest"

    def check(self, metrics: Mapping[str, float]) -> None:
        """After an evaluation. Raises ConfigError if what is to be judged by is none of what there is.

        When no client has answered there are no metrics of clients, and they may be there the next time.
        """
        expected = not self.by.startswith(BY_CLIENTS) or any(name.startswith(BY_CLIENTS) for name in metrics)
        if self.by and expected and self.by not in metrics:
            raise ConfigError(f"course.best_by is {self.by!r}, which is not measured; take one of {', '.join(metrics)}")

    def reached(self, metrics: Mapping[str, float]) -> str | None:
        """What has reached its target, in words; or None."""
        accuracy = metrics.get("accuracy", metrics.get(f"{CLIENT}accuracy", 0.0))
        if self.target_accuracy and accuracy >= self.target_accuracy:
            return f"the accuracy {accuracy:.4f} has reached the target {self.target_accuracy}"
        value = metrics.get(self.by)
        if value is None or not self.target:
            return None
        met = value <= self.target if self._falls(self.by) else value >= self.target
        return f"{self.by} {value:.4f} has reached the target {self.target}" if met else None


class Best:
    """The best evaluation so far."""

    def __init__(self, goal: Goal) -> None:
        self.params: Tensor | None = None
        self._goal = goal
        self._value: float | None = None
        self._since = 0

    def note(self, params: Tensor, metrics: Mapping[str, float]) -> None:
        """A model, and what was measured of it, if anything was."""
        value = self._goal.merit(metrics)
        if value is None:
            return
        if self._value is None or value > self._value:
            self.params, self._value, self._since = params, value, 0
        else:
            self._since += 1

    def state(self) -> RoleState:
        if self.params is None or self._value is None:
            return {}
        return {"best": self.params, "best_value": self._value, "since_best": self._since}

    def resume(self, state: RoleState) -> None:
        if "best" in state:
            self.params = as_tensor(state["best"])
            self._value, self._since = float(state["best_value"]), int(state["since_best"])

    def ended(self, metrics: Mapping[str, float]) -> str | None:
        """Why the course is over, or None."""
        if reached := self._goal.reached(metrics):
            return reached
        if self._goal.patience and self._since >= self._goal.patience:
            return f"{self._since} evaluations brought nothing better"
        return None

    def __repr__(self) -> str:
        return f"<Best by {self._goal.by or 'accuracy or loss'}: {self._value}>"
