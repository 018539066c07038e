"""One step of SGD on a part of the weights, with the update folded into the product that gives the gradient.

without momentum    w <- (1 - lr (decay + mu)) w + lr mu w0 - lr drift - lr g
with momentum       v <- m v + (decay + mu) w - mu w0 + drift + g;   w <- w - lr v
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from p2pfl.learn.train import Fit

__all__ = ["Descent", "Part", "parts_of"]


@dataclass(frozen=True, slots=True)
class Part:
    """One parameter of `clients` clients, as (clients, ...) views that are written to."""

    weight: Tensor
    velocity: Tensor | None = None  # with momentum
    start: Tensor | None = None  # what the weight began with, with a proximal term
    drift: Tensor | None = None

    def first(self, clients: int) -> Part:
        """The same of the first clients only."""
        others = (None if t is None else t[:clients] for t in (self.velocity, self.start, self.drift))
        return Part(self.weight[:clients], *others)


_Tensors = Sequence[Tensor]
"""One tensor for each parameter."""


def parts_of(
    weights: _Tensors, velocities: _Tensors | None, starts: _Tensors | None, drifts: _Tensors | None
) -> list[Part]:
    """One part for each parameter."""
    others = [[None] * len(weights) if tensors is None else tensors for tensors in (velocities, starts, drifts)]
    return [Part(weight, *rest) for weight, *rest in zip(weights, *others, strict=True)]


@dataclass(frozen=True, slots=True)
class Descent:
    """The numbers of a step."""

    lr: float
    momentum: float
    pull: float  # towards zero and towards the start
    proximal: float

    @classmethod
    def of(cls, fit: Fit) -> Descent:
        """The numbers that `fit` is trained with."""
        spec = fit.spec
        return cls(fit.lr, spec.momentum, spec.weight_decay + spec.proximal, spec.proximal)

    def by_product(self, part: Part, left: Tensor, right: Tensor) -> None:
        """Step by the gradient left @ right, (clients, outputs, rows) @ (clients, rows, inputs), never laid out."""
        if part.velocity is not None:
            part.velocity.baddbmm_(left, right, beta=self.momentum)
            self._follow(part, part.velocity)
        else:
            part.weight.baddbmm_(left, right, beta=1.0 - self.lr * self.pull, alpha=-self.lr)
            self._lean(part)

    def by_gradient(self, part: Part, gradient: Tensor | None) -> None:
        """Step by a gradient of the weight's shape; None is zero."""
        if part.velocity is not None:
            part.velocity.mul_(self.momentum)
            if gradient is not None:
                part.velocity.add_(gradient)
            self._follow(part, part.velocity)
            return
        if self.pull:
            part.weight.mul_(1.0 - self.lr * self.pull)
        if gradient is not None:
            part.weight.add_(gradient, alpha=-self.lr)
        self._lean(part)

    def _lean(self, part: Part) -> None:
        if part.start is not None:
            part.weight.add_(part.start, alpha=self.lr * self.proximal)
        if part.drift is not None:
            part.weight.add_(part.drift, alpha=-self.lr)

    def _follow(self, part: Part, velocity: Tensor) -> None:
        if self.pull:
            velocity.add_(part.weight, alpha=self.pull)
        if part.start is not None:
            velocity.add_(part.start, alpha=-self.proximal)
        if part.drift is not None:
            velocity.add_(part.drift)
        part.weight.add_(velocity, alpha=-self.lr)
