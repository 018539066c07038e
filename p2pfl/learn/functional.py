"""Local training of many clients at once, for small models of any kind: torch.func differentiates the loss of one
client, and vmap makes it that of all.

Where many train together it is several times as fast as one by one. But a lone client takes several times as long, the
first use imports torch._dynamo, and the last bits of a client's result may depend on who is trained with it: so it runs
only where `train.tier` asks for it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from p2pfl.learn.batched import stacked
from p2pfl.learn.batches import batches
from p2pfl.learn.descent import Descent, parts_of
from p2pfl.learn.train import Fit, FitResult, mean_loss, training_loss

__all__ = ["fit_functional"]

_MOST_CLIENTS = 50  # more bring little, and take memory for activations


def fit_functional(fits: Sequence[Fit]) -> list[FitResult]:
    """Train clients of one model and learning rate, each with as many examples and steps, all or none with a drift."""
    groups = (fits[first : first + _MOST_CLIENTS] for first in range(0, len(fits), _MOST_CLIENTS))
    return [result for group in groups for result in _train(group)]


def _train(fits: Sequence[Fit]) -> list[FitResult]:
    from torch.func import functional_call, grad_and_value, vmap  # noqa: PLC0415 - its first use takes a second

    model, spec = fits[0].model, fits[0].spec  # the others' differ in nothing but how the same steps are told
    layout, objective = model.layout, training_loss(model, spec)
    weights = stacked([fit.params for fit in fits])
    drifts = [fit.drift for fit in fits if fit.drift is not None]
    parts = parts_of(
        layout.rows(weights),
        layout.rows(torch.zeros_like(weights)) if spec.momentum else None,
        layout.rows(stacked([fit.params for fit in fits])) if spec.proximal else None,
        layout.rows(stacked(drifts)) if drifts else None,
    )
    names = [entry.name for entry in layout.entries]

    def loss_of(parameters: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return objective(functional_call(model.module, parameters, (x,)), y)

    differentiate = vmap(grad_and_value(loss_of))
    descent = Descent.of(fits[0])
    losses: list[Tensor] = []
    sizes: list[int] = []
    with model.using(fits[0].params, training=True):  # for the mode; the parameters come from outside
        for step in zip(*(batches(fit.shard, fit.spec, fit.seed) for fit in fits), strict=True):
            x, y = (torch.stack(column) for column in zip(*step, strict=True))
            parameters = {name: part.weight for name, part in zip(names, parts, strict=True)}
            gradients, values = differentiate(parameters, x, y)
            for name, part in zip(names, parts, strict=True):
                descent.by_gradient(part, gradients[name])
            losses.append(values)
            sizes.append(y.shape[1])
    rows = weights[:, : layout.numel].unbind(0)
    return [
        FitResult(row, len(fit.shard), mean_loss([step[at] for step in losses], sizes), len(sizes))
        for at, (row, fit) in enumerate(zip(rows, fits, strict=True))
    ]
