"""What was spent of somebody's privacy, over any mechanisms and runs, as numbers that add up."""

from __future__ import annotations

import math
from dataclasses import dataclass

from p2pfl.privacy import rdp
from p2pfl.privacy.gaussian import epsilon_of

__all__ = ["Spent"]


@dataclass(frozen=True, slots=True)
class Spent:
    """Gaussian mechanisms by the sum of their mu², others by their Rényi curve, if there were any.

    >>> once = Spent(mu_squared=0.01)
    >>> round((once * 100).epsilon(1e-5), 4)
    4.3772
    """

    mu_squared: float = 0.0
    curve: rdp.Curve = ()

    def __post_init__(self) -> None:
        if not self.mu_squared >= 0 or not all(cost >= 0 for cost in self.curve):
            raise ValueError(f"{self.mu_squared} and {self.curve} were spent; a cost is not negative")
        if len(self.curve) not in (0, len(rdp.ORDERS)):
            raise ValueError(f"a curve has {len(rdp.ORDERS)} costs, not {len(self.curve)}")

    def __add__(self, other: Spent) -> Spent:
        if self.curve and other.curve:
            curve = tuple(one + more for one, more in zip(self.curve, other.curve, strict=True))
        else:
            curve = self.curve or other.curve
        return Spent(self.mu_squared + other.mu_squared, curve)

    def __mul__(self, times: int) -> Spent:
        return Spent(times * self.mu_squared, tuple(times * cost for cost in self.curve))

    def epsilon(self, delta: float) -> float:
        """The epsilon that goes with a delta in (0, 1)."""
        mu = math.sqrt(self.mu_squared)
        if not self.curve:
            return epsilon_of(mu, delta)
        both = [gaussian + other for gaussian, other in zip(rdp.gaussian(mu), self.curve, strict=True)]
        return rdp.epsilon(both, delta)[0]

    @property
    def accountant(self) -> str:
        """How that epsilon is found, for the report."""
        return "Rényi, orders 2 to 256" if self.curve else "exact Gaussian"
