"""What makes one model of a course better than another, by any metric, and what ends a course early. Needs no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from p2pfl.courses.scores import BY_CLIENTS, CLIENT
from p2pfl.errors import ConfigError

__all__ = ["BETTER", "USUAL", "Goal"]

BETTER = ("auto", "highest", "lowest")
USUAL = ("accuracy", f"{CLIENT}accuracy", "loss", f"{CLIENT}loss")
"""What is judged by, the first that is there, if nothing else is wanted."""


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
        names = (self.by,) if self.by else USUAL
        name = next((name for name in names if name in metrics), None)
        if name is None:
            return None
        return -metrics[name] if self.falls(name) else metrics[name]

    def falls(self, name: str) -> bool:
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
        met = value <= self.target if self.falls(self.by) else value >= self.target
        return f"{self.by} {value:.4f} has reached the target {self.target}" if met else None
