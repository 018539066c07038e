"""The loss of many clients' batches at once, and its gradient by the outputs.

The losses that p2pfl has by name are differentiated by hand. Any other is differentiated by torch, client by client,
because nobody knows whether its bits would depend on who is computed together.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from p2pfl.learn.activations import logistic
from p2pfl.learn.model import LOSSES, Loss

__all__ = ["Objective", "Targets", "objective_of"]

Objective = Callable[[Tensor, "Targets"], tuple[Tensor, Tensor]]
"""From outputs (clients, rows, outputs) to the losses (clients, rows), which sum to each client's sum over its
examples, and to the gradient of each client's mean loss."""


@dataclass(frozen=True, slots=True)
class Targets:
    """The targets of one step of `clients` clients. Rows behind a client's own are padding and weigh nothing."""

    y: Tensor  # (clients, rows, ...)
    present: Tensor  # (clients, rows) float32: 1 for an example, 0 for padding
    share: Tensor  # the same, over the number of the client's examples
    counts: Tensor  # (clients,) int64


def objective_of(loss: Loss, y: Tensor, outputs: int) -> Objective:
    """The objective for targets like `y`, (rows, ...), and so many outputs for each example."""
    per_example = math.prod(y.shape[1:])
    if loss is functional.cross_entropy and y.dim() == 1 and not y.is_floating_point():
        return _cross_entropy
    if per_example == outputs:
        if loss is LOSSES["bce"]:
            return _bce
        if loss is LOSSES["mse"] or (loss is functional.mse_loss and y.dim() == 2):
            return _mse
    return _by_torch(loss)


def _cross_entropy(z: Tensor, targets: Targets) -> tuple[Tensor, Tensor]:
    y = targets.y.unsqueeze(2)
    logs = torch.log_softmax(z, 2)
    losses = logs.gather(2, y).squeeze(2).neg_().mul_(targets.present)
    share = targets.share.unsqueeze(2)
    return losses, logs.exp_().mul_(share).scatter_add_(2, y, share.neg())


def _mse(z: Tensor, targets: Targets) -> tuple[Tensor, Tensor]:
    d = z - targets.y.reshape(z.shape)
    losses = d.square().mean(2).mul_(targets.present)
    return losses, d.mul_(2.0 / z.shape[2]).mul_(targets.share.unsqueeze(2))


def _bce(z: Tensor, targets: Targets) -> tuple[Tensor, Tensor]:
    y = targets.y.reshape(z.shape).to(z.dtype)
    # max(z, 0) - z y + log(1 + exp(-|z|)); log1p would give the last elements other bits, see activations.py
    costs = z.clamp(min=0).sub_(z * y).add_(z.abs().neg_().exp_().add_(1).log_())
    losses = costs.mean(2).mul_(targets.present)
    d = logistic(z).sub_(y).mul_(1.0 / z.shape[2])
    return losses, d.mul_(targets.share.unsqueeze(2))


def _by_torch(loss: Loss) -> Objective:
    def objective(z: Tensor, targets: Targets) -> tuple[Tensor, Tensor]:
        losses = torch.zeros_like(targets.present)
        d = torch.zeros_like(z)
        for client, count in enumerate(targets.counts.tolist()):
            outputs = z[client, :count].detach().requires_grad_()
            mean = loss(outputs, targets.y[client, :count])
            (gradient,) = torch.autograd.grad(mean, outputs)
            d[client, :count] = gradient
            losses[client, 0] = mean.detach() * count
        return losses, d

    return objective
