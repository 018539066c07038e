"""The best model of a course so far, and whether it is time to stop."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from p2pfl.courses.course import RoleState, as_tensor
from p2pfl.courses.goal import Goal

__all__ = ["Best"]


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
