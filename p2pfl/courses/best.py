"""What a coordinator makes of its evaluations: which model was the best, and whether it is time to stop."""

from __future__ import annotations

from torch import Tensor

from p2pfl.courses.course import RoleState, as_tensor

__all__ = ["Best"]


class Best:
    """The best evaluation so far, and whether it is time to stop."""

    def __init__(self, patience: int, target_accuracy: float) -> None:
        """`patience`: evaluations without a better one that end a course; either is 0 where it ends none."""
        self.params: Tensor | None = None
        self._patience = patience
        self._target = target_accuracy
        self._value: float | None = None
        self._since = 0

    def note(self, params: Tensor, metrics: dict[str, float]) -> None:
        value = self._merit(metrics)
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

    def ended(self, metrics: dict[str, float]) -> str | None:
        """Why the course is over, or None."""
        reached = metrics.get("accuracy", metrics.get("client_accuracy", 0.0))
        if self._target and reached >= self._target:
            return f"the accuracy {reached:.4f} has reached the target {self._target}"
        if self._patience and self._since >= self._patience:
            return f"{self._since} evaluations brought nothing better"
        return None

    @staticmethod
    def _merit(metrics: dict[str, float]) -> float | None:
        for name in ("accuracy", "client_accuracy"):
            if name in metrics:
                return metrics[name]
        for name in ("loss", "client_loss"):
            if name in metrics:
                return -metrics[name]
        return None
