"""Gradients as who attacks has them: of examples that are guessed, or implied by an update that was seen."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from p2pfl.learn.model import Model

__all__ = ["GradientOf", "Gradients", "gradient_of", "guessing", "implied_gradients"]

Gradients = tuple[Tensor, ...]
"""One tensor for each parameter of a model, in the order of its layout."""

GradientOf = Callable[[Tensor, Tensor], Gradients]
"""From x (batch, ...) and y (batch,) classes, or (batch, classes) chances, to the gradient of the batch's mean loss."""


@contextmanager
def guessing(model: Model, params: Tensor) -> Iterator[GradientOf]:
    """The gradient at `params`, (layout.numel,), as a function that can itself be differentiated by x and y."""
    with model.using(params.clone(), training=True) as weights:
        yield lambda x, y: torch.autograd.grad(model.loss(model.module(x), y), weights, create_graph=True)


def gradient_of(model: Model, params: Tensor, x: Tensor, y: Tensor) -> Gradients:
    """The gradient of the mean loss of a batch, as a client would send it."""
    with guessing(model, params) as gradient:
        return tuple(part.detach() for part in gradient(x, y))


def implied_gradients(model: Model, received: Tensor, update: Tensor, lr: float, steps: int = 1) -> Gradients:
    """The mean gradient of so many steps of plain SGD that lead from one model to the other; exact for one step."""
    mean = (received - update) / (lr * steps)
    return tuple(model.layout.views(mean)[: model.layout.trainable])
