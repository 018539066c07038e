"""A property of the batch that the model is not about shows in its gradient."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.linalg import solve

from p2pfl.attacks.gradients import gradient_of
from p2pfl.attacks.properties import property_scores
from p2pfl.attacks.scores import auc
from tests.attacks.victims import relu


def updates(random: torch.Generator, count: int, *, having: bool) -> Tensor:
    """Of batches of 64: half of the examples of those that have the property have larger last features."""
    model, found = relu(), []
    for _ in range(count):
        x = torch.randn(64, 20, generator=random)
        if having:
            x[:32, 15:] += 3.0
        y = torch.randint(10, (64,), generator=random)
        found.append(torch.cat([part.reshape(-1) for part in gradient_of(model, model.initial, x, y)]))
    return torch.stack(found)


def test_who_has_the_property_is_told_from_who_has_not_also_when_scaled_and_not_under_noise() -> None:
    random = torch.Generator().manual_seed(0)
    having, lacking = updates(random, 60, having=True), updates(random, 60, having=False)
    seen, others = updates(random, 30, having=True), updates(random, 30, having=False)
    clear = auc(property_scores(seen, having, lacking), property_scores(0.1 * others, having, lacking))
    assert clear > 0.75
    noised = [part + torch.randn(part.shape, generator=random) for part in (seen, others)]
    hidden = auc(*(property_scores(part, having, lacking) for part in noised))
    assert hidden < clear - 0.1


def test_it_is_ridge_regression() -> None:
    random = torch.Generator().manual_seed(1)
    seen, having, lacking = (torch.randn(n, 5, generator=random).double() for n in (4, 6, 7))
    own = torch.nn.functional.normalize(torch.cat([having, lacking]))
    targets = torch.cat([torch.ones(6), -torch.ones(7)]).double()
    centered = own - own.mean(0)
    weights = solve(centered.T @ centered + 0.1 * torch.eye(5), centered.T @ (targets - targets.mean()))
    expected = (torch.nn.functional.normalize(seen) - own.mean(0)) @ weights
    assert property_scores(seen, having, lacking).tolist() == pytest.approx(expected.tolist())
