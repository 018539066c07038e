"""How much what is late still counts: s(t) of C. Xie, S. Koyejo, I. Gupta: "Asynchronous Federated Optimization", 2019,
https://arxiv.org/abs/1903.03934.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from p2pfl.errors import require

__all__ = ["Staleness"]

_KINDS = ("polynomial", "hinge", "exponential", "constant")


@dataclass(frozen=True, slots=True)
class Staleness:
    """How much of its weight a model, or an update, keeps that is some versions old.

    >>> Staleness("polynomial", a=0.5)(3), Staleness("hinge", a=10, b=4)(4), Staleness("hinge", a=10, b=4)(5)
    (0.5, 1.0, 0.09090909090909091)
    """

    kind: str = "polynomial"
    """`polynomial`, (1 + t)^-a; `hinge`, all until t = b, then 1 / (a (t - b) + 1); `exponential`, e^(-a t);
    `constant`, all."""
    a: float = 0.5
    b: float = 4.0

    def __post_init__(self) -> None:
        """Raises ConfigError that names the settings `discount`, `discount_a` and `discount_b` of a course."""
        require(self.kind in _KINDS, f"course.discount is {self.kind!r}; it must be one of {', '.join(_KINDS)}")
        for name in ("a", "b"):
            value = getattr(self, name)
            require(value >= 0, f"course.discount_{name} is {value}; it must not be negative")

    def __call__(self, versions: int) -> float:
        match self.kind:
            case "polynomial":
                return float((1 + versions) ** -self.a)
            case "hinge":
                return 1.0 if versions <= self.b else 1 / (self.a * (versions - self.b) + 1)
            case "exponential":
                return math.exp(-self.a * versions)
        return 1.0
