"""The weighted mean, in place, and the same to the last bit whatever order the updates arrive in."""

from __future__ import annotations

from collections.abc import Hashable, Iterable

import torch
from torch import Tensor

__all__ = ["WeightedMean"]


class WeightedMean:
    """sum(w_i x_i) / sum(w_i) over vectors of one shape.

    Sums of floats depend on their order, so updates are added in the order of `ranks`: one that arrives before its turn
    waits. At worst all but one wait; when they come in order, memory holds one vector.

    >>> mean = WeightedMean(["a", "b"])
    >>> mean.add("b", torch.tensor([4.0]), 1); mean.add("a", torch.tensor([1.0]), 2)
    >>> mean.value()
    tensor([2.])
    """

    def __init__(self, ranks: Iterable[Hashable]) -> None:
        self._order = list(ranks)
        self._next = 0
        self._early: dict[Hashable, tuple[Tensor, float] | None] = {}
        self._sum: Tensor | None = None
        self.count = 0
        self.weight = 0.0

    def add(self, rank: Hashable, vector: Tensor, weight: float) -> None:
        """Take one update. Raises ValueError for a rank that is not expected, or came before, or for no weight."""
        if not weight > 0:
            raise ValueError(f"the weight of {rank!r} is {weight}; it must be above 0")
        self._place(rank, (vector, weight))
        self.count += 1

    def skip(self, rank: Hashable) -> None:
        """Expect that one no longer."""
        self._place(rank, None)

    def value(self) -> Tensor | None:
        """The mean of what was added; None if nothing was. Nothing can be added afterwards."""
        for rank in self._order[self._next :]:
            self._early.setdefault(rank, None)
        self._advance()
        return None if self._sum is None else self._sum.div_(self.weight)

    def _place(self, rank: Hashable, update: tuple[Tensor, float] | None) -> None:
        if rank in self._early or rank not in self._order[self._next :]:
            raise ValueError(f"{rank!r} is not expected here, or came before")
        self._early[rank] = update
        self._advance()

    def _advance(self) -> None:
        while self._next < len(self._order) and self._order[self._next] in self._early:
            update = self._early.pop(self._order[self._next])
            self._next += 1
            if update is not None:
                vector, weight = update
                self._sum = torch.zeros_like(vector) if self._sum is None else self._sum
                self._sum.add_(vector, alpha=weight)
                self.weight += weight
