"""Whether the examples behind an update have a property that the model is not about, without changing anything.

L. Melis, C. Song, E. De Cristofaro, V. Shmatikov: "Exploiting Unintended Feature Leakage in Collaborative Learning",
S&P 2019, https://arxiv.org/abs/1805.04049, the passive attack: who looks makes updates from examples of its own, with
and without the property, and has a classifier learn to tell them apart. Deviation: the classifier is ridge regression
on updates of length one, in closed form, and no random forest.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["property_scores"]


def property_scores(seen: Tensor, having: Tensor, lacking: Tensor, ridge: float = 0.1) -> Tensor:
    """How much each update that was `seen` looks like one that has the property: (updates,), 0 in the middle.

    All are (updates, numel); `having` and `lacking` are the attacker's own. Costs one kernel matrix of these.

    >>> ours = torch.tensor([[1.0, 0.1], [0.9, -0.2]])
    >>> property_scores(torch.tensor([[2.0, 0.0], [-3.0, 0.0]]), ours, -ours).sign()
    tensor([ 1., -1.], dtype=torch.float64)
    """
    own = torch.cat([having, lacking]).double()
    own = own / own.norm(dim=1, keepdim=True)
    center = own.mean(0)
    targets = torch.cat([torch.ones(len(having)), -torch.ones(len(lacking))]).double()
    kernel = (own - center) @ (own - center).T
    duals = torch.linalg.solve(kernel + ridge * torch.eye(len(own)), targets)
    given = seen.double() / seen.double().norm(dim=1, keepdim=True)
    scores: Tensor = (given - center) @ (own - center).T @ duals
    return scores
