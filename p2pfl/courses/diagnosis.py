"""How alike the updates of a round are, from their norms and that of their mean: one pass, and no update is kept.

With updates g_i (what a client has added to the model that it was sent), weights p_i that add up to 1, and their mean
g = sum_i p_i g_i:

`dissimilarity`       B = sqrt(sum_i p_i |g_i|^2 / |g|^2): 1 if all are the same. B-local dissimilarity, of T. Li, A. K.
                      Sahu, M. Zaheer, M. Sanjabi, A. Talwalkar, V. Smith: "Federated Optimization in Heterogeneous
                      Networks", MLSys 2020, https://arxiv.org/abs/1812.06127, definition 3.
`gradient_diversity`  sum_i |p_i g_i|^2 / |sum_i p_i g_i|^2: 1/n if n are the same, 1 if they are orthogonal. D. Yin, A.
                      Pananjady, M. Lam, D. Papailiopoulos, K. Ramchandran, P. Bartlett: "Gradient Diversity: a Key
                      Ingredient for Scalable Distributed Learning", AISTATS 2018, https://arxiv.org/abs/1706.05699,
                      definition 1.
`update_norm`         the mean of |g_i|, each counted once.
`update_distance`     sqrt(sum_i p_i |g_i - g|^2), the distance to the mean.

Deviations: updates take the place of gradients, as they are what is sent; the distance is the root of the mean square,
since the mean of the distances would need a second look at all updates.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

__all__ = ["Diagnosis", "diagnosed"]


class Diagnosis:
    """Of the updates of one round. The order in which they come does not matter.

    >>> found = Diagnosis(lambda vector: vector)
    >>> found.add(torch.tensor([3.0, 0.0]), 1); found.add(torch.tensor([0.0, 3.0]), 1)
    >>> {name: round(value, 2) for name, value in found.figures(torch.tensor([1.5, 1.5])).items()}
    {'dissimilarity': 1.41, 'gradient_diversity': 1.0, 'update_norm': 3.0, 'update_distance': 2.12}
    """

    def __init__(self, update: Callable[[Tensor], Tensor]) -> None:
        """`update`: from a vector as it came, or a mean of these, to what it adds to the model."""
        self._update = update
        self._seen: list[tuple[float, float]] = []  # squares of norms, and weights

    def add(self, vector: Tensor, weight: float) -> None:
        """One of those that are averaged; `weight` above 0."""
        self._seen.append((_square(self._update(vector)), weight))

    def figures(self, mean: Tensor | None) -> dict[str, float]:
        """Of all that were added, and their weighted mean. What is not defined is left out."""
        if mean is None or not self._seen:
            return {}
        total = math.fsum(weight for _, weight in self._seen)
        shares = [(square, weight / total) for square, weight in self._seen]
        of_mean, of_each = _square(self._update(mean)), math.fsum(square * share for square, share in shares)
        found = {}
        if of_mean > 0:
            found["dissimilarity"] = math.sqrt(of_each / of_mean)
            found["gradient_diversity"] = math.fsum(square * share**2 for square, share in shares) / of_mean
        found["update_norm"] = math.fsum(math.sqrt(square) for square, _ in shares) / len(shares)
        found["update_distance"] = math.sqrt(max(0.0, of_each - of_mean))
        return found

    def __repr__(self) -> str:
        return f"<Diagnosis of {len(self._seen)}>"


def diagnosed(before: Tensor, models: Iterable[Tensor]) -> dict[str, float]:
    """The same of models that a node of a graph has, of equal weight, each as it differs from the node's own of before.

    So what nodes disagree in counts for an update as well. Models that are not finite do not count.
    """
    found, total, count = Diagnosis(lambda update: update), torch.zeros_like(before), 0
    for model in models:
        update = model - before
        if math.isfinite(_square(update)):
            found.add(update, 1.0)
            total, count = total.add_(update), count + 1
    return found.figures(total.div_(count) if count else None)


def _square(vector: Tensor) -> float:
    return float(torch.linalg.vector_norm(vector, dtype=torch.float64)) ** 2
