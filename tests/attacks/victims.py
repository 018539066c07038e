"""Small models under attack."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from p2pfl.learn.model import Model
from p2pfl.learn.models import mlp


def relu() -> Model:
    """20-16-10, with ReLUs."""
    return _model(lambda: mlp((20,), 10, (16,)), (20,))


def smooth() -> Model:
    """20-16-10, with sigmoids."""
    return _model(lambda: nn.Sequential(nn.Linear(20, 16), nn.Sigmoid(), nn.Linear(16, 10)), (20,))


def _model(make: Callable[[], nn.Module], shape: Sequence[int]) -> Model:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = make()
    return Model.of(module, functional.cross_entropy, torch.zeros(2, *shape), torch.tensor([0, 1]))


def example(seed: int = 1) -> tuple[Tensor, Tensor]:
    """A lone one, of class 3."""
    return torch.randn(1, 20, generator=torch.Generator().manual_seed(seed)), torch.tensor([3])
