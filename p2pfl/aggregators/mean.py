"""The weighted mean, in place, and the same to the last bit whatever order the updates arrive in."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable

import torch
from torch import Tensor

from p2pfl.learn.memory import empty

__all__ = ["WeightedMean"]


class WeightedMean:
    """sum(w_i x_i) / sum(w_i) over float32 vectors of one shape.

    Sums of floats depend on their order, so updates are added in the order of `ranks`: one that arrives before its turn
    waits. At worst all but one wait; when they come in order, memory holds one vector.

    >>> mean = WeightedMean(["a", "b"])
    >>> mean.add("b", torch.tensor([4.0]), 1); mean.add("a", torch.tensor([1.0]), 2)
    >>> mean.value()
    tensor([2.])
    """

    def __init__(self, ranks: Iterable[Hashable]) -> None:
        """`ranks`: who may add, in the order of the sum. Raises ValueError if one is named twice."""
        order = list(ranks)
        self._turns = {rank: turn for turn, rank in enumerate(order)}  # of those that neither came nor were skipped
        if len(self._turns) < len(order):
            raise ValueError("a rank is named twice")
        self._next = 0
        self._early: dict[int, tuple[Tensor, float] | None] = {}  # by turn; None: skipped
        self._shape: tuple[int, ...] | None = None
        self._sum: Tensor | None = None
        self._mean: Tensor | None = None
        self.count = 0
        """Updates so far, those that wait for their turn included."""
        self.weight = 0.0
        """Their weights together, but for those that wait."""

    def add(self, rank: Hashable, vector: Tensor, weight: float) -> None:
        """Take one update. It is kept by reference until its turn, and not changed.

        Raises ValueError for a rank that is not expected or came before, for a weight that is not above 0 or not
        finite, and for a vector of another shape than the first.
        """
        if not 0 < weight < math.inf:
            raise ValueError(f"the weight of {rank!r} is {weight}; it must be above 0, and finite")
        if self._shape is None:
            self._shape = tuple(vector.shape)
        elif self._shape != vector.shape:
            raise ValueError(f"the vector of {rank!r} has shape {tuple(vector.shape)}; the others have {self._shape}")
        self._place(rank, (vector, float(weight)))
        self.count += 1

    def skip(self, rank: Hashable) -> None:
        """Expect that one no longer. Raises ValueError as `add` does."""
        self._place(rank, None)

    def value(self) -> Tensor | None:
        """The mean of what was added; None if nothing was. Nothing can be added afterwards."""
        for rank in tuple(self._turns):
            self.skip(rank)
        if self._sum is not None:
            self._mean, self._sum = self._sum.div_(self.weight), None
        return self._mean

    def _place(self, rank: Hashable, update: tuple[Tensor, float] | None) -> None:
        if rank not in self._turns:
            raise ValueError(f"{rank!r} is not expected here, or came before")
        self._early[self._turns.pop(rank)] = update
        while self._next in self._early:
            self._take(self._early.pop(self._next))
            self._next += 1

    def _take(self, update: tuple[Tensor, float] | None) -> None:
        if update is None:
            return
        vector, weight = update
        if self._sum is None:
            self._sum = torch.mul(vector, weight, out=empty(*vector.shape))
        else:
            self._sum.add_(vector, alpha=weight)
        self.weight += weight

    def __repr__(self) -> str:
        return f"<WeightedMean of {self.count}, {len(self._turns)} to come>"
