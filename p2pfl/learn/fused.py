"""Local training of one client, with linear layers updated within the backward pass, for any module.

The gradient of a large linear layer is as large as its weight, is written once and read once, and costs more than the
product that makes it. Here the product is added to the weight at once, `W.addmm_(d', x, alpha=-lr)`, after the gradient
of the layer's input has been taken. What is no linear layer, or is used in another way too, gets its gradient from
torch as ever.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any
from weakref import ref

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from p2pfl.learn.batches import batches
from p2pfl.learn.descent import Descent, Part, parts_of
from p2pfl.learn.memory import duplicate
from p2pfl.learn.train import Fit, FitResult, mean_loss, training_loss

__all__ = ["fit_fused", "large_layers"]

_LARGE = 2**15  # numbers in a weight: below, a custom backward costs more than the gradient


def large_layers(module: nn.Module) -> tuple[str, ...]:
    """The names of the linear layers whose update is worth fusing, and can be. Found once for each module."""
    return _found(ref(module))


@lru_cache(maxsize=256)
def _found(module: ref[nn.Module]) -> tuple[str, ...]:
    original = module()
    assert original is not None, "the caller holds it"
    owners = Counter(id(parameter) for _, parameter in original.named_parameters(remove_duplicate=False))
    return tuple(
        name
        for name, layer in original.named_modules()
        if type(layer) is nn.Linear
        and "forward" not in vars(layer)
        and layer.weight.requires_grad
        and layer.weight.numel() >= _LARGE
        and owners[id(layer.weight)] == 1
    )


def fit_fused(work: Fit) -> FitResult:
    """What `p2pfl.learn.train.fit` gives, to rounding."""
    flat = duplicate(work.params)
    descent, objective = Descent.of(work), training_loss(work.model, work.spec)
    losses: list[Tensor] = []
    sizes: list[int] = []
    with work.model.using(flat, training=True, seed=work.seed) as weights:
        parts = _parts(work, flat)
        with _called(work.model.module, dict(zip(map(id, weights), parts, strict=True)), descent) as layers:
            for x, y in batches(work.shard, work.spec, work.seed):
                loss = objective(work.model.module(x), y)
                with _updating(layers, loss):
                    gradients = torch.autograd.grad(loss, weights, allow_unused=True)
                updated = {id(layer.part) for layer in layers if layer.updated}
                for part, gradient in zip(parts, gradients, strict=True):
                    if id(part) not in updated:
                        descent.by_gradient(part, None if gradient is None else gradient.unsqueeze(0))
                losses.append(loss.detach())
                sizes.append(len(y))
    return FitResult(flat, len(work.shard), mean_loss(losses, sizes), len(sizes))


def _parts(work: Fit, flat: Tensor) -> list[Part]:
    """One part for each parameter that trains, of one client."""

    def views(vector: Tensor | None) -> list[Tensor] | None:
        if vector is None:
            return None
        layout = work.model.layout
        return [view.unsqueeze(0) for view in layout.views(vector)[: layout.trainable]]

    weights = views(flat)
    assert weights is not None
    velocities = torch.zeros_like(flat) if work.spec.momentum else None
    return parts_of(weights, views(velocities), views(work.params if work.spec.proximal else None), views(work.drift))


@dataclass(slots=True, eq=False)
class _Layer:
    """A linear layer whose weight is updated in its backward pass, while `updating`."""

    weight: Tensor
    bias: Tensor | None
    part: Part
    descent: Descent
    updating: bool = False
    updated: bool = False

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - as nn.Linear names it
        outputs: Tensor = _Linear.apply(input, self.weight, self.bias, self)  # type: ignore[no-untyped-call]  # torch's
        return outputs

    def update(self, d: Tensor, x: Tensor) -> None:
        self.descent.by_product(self.part, d.t().unsqueeze(0), x.unsqueeze(0))
        self.updated = True


@contextlib.contextmanager
def _called(module: nn.Module, parts: dict[int, Part], descent: Descent) -> Iterator[list[_Layer]]:
    """Have the module's large linear layers call `_Linear`, for the length of the block."""
    layers: list[_Layer] = []
    lent: list[nn.Linear] = []
    try:
        for name in large_layers(module):
            linear = module.get_submodule(name)
            assert isinstance(linear, nn.Linear)
            layer = _Layer(linear.weight, linear.bias, parts[id(linear.weight)], descent)
            linear.forward = layer.forward  # type: ignore[method-assign]  # deleted again below
            lent.append(linear)
            layers.append(layer)
        yield layers
    finally:
        for linear in lent:
            del linear.forward


class _Linear(torch.autograd.Function):
    """x W' + b, whose backward pass updates W in place of giving its gradient, where its layer says so."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, layer: _Layer) -> Tensor:
        ctx.save_for_backward(x)
        ctx.layer = layer
        return nn.functional.linear(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d: Tensor) -> tuple[Tensor | None, ...]:
        (x,) = ctx.saved_tensors
        layer: _Layer = ctx.layer
        of_input, of_weight, of_bias, _ = ctx.needs_input_grad
        below = d @ layer.part.weight[0] if of_input else None
        rows, x = d.reshape(-1, d.shape[-1]), x.reshape(-1, x.shape[-1])
        gradient = None
        if layer.updating:
            layer.update(rows, x)
        elif of_weight:
            gradient = rows.t() @ x
        return below, gradient, rows.sum(0) if of_bias else None, None


@contextlib.contextmanager
def _updating(layers: Sequence[_Layer], loss: Tensor) -> Iterator[None]:
    """Let those layers update themselves whose weights this loss depends on by one way only."""
    uses = _uses(loss)
    for layer in layers:
        layer.updating, layer.updated = uses[id(layer.weight)] == 1, False
    try:
        yield
    finally:
        for layer in layers:
            layer.updating = False


def _uses(loss: Tensor) -> Counter[int]:
    """How often each parameter (by identity) comes in, in the graph behind `loss`."""
    uses: Counter[int] = Counter()
    seen = {loss.grad_fn}
    left = [loss.grad_fn]
    while left:
        node = left.pop()
        for behind, _ in () if node is None else node.next_functions:
            leaf = getattr(behind, "variable", None)
            if leaf is not None:
                uses[id(leaf)] += 1
            elif behind not in seen:
                seen.add(behind)
                left.append(behind)
    return uses
