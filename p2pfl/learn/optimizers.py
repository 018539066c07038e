"""The optimizers of torch.optim by name, and what they remember from step to step as one flat vector.

Such a vector is what a client keeps between two trainings, and what a process can be handed. Its parts, one after the
other, are as long as the model for what is remembered of every weight, such as the moments of Adam, and have one number
for each parameter for what is remembered of that, such as its count of steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from p2pfl.errors import ConfigError
from p2pfl.learn.lookup import unknown
from p2pfl.learn.memory import duplicate, empty
from p2pfl.learn.params import Layout
from p2pfl.learn.specs import TrainSpec

if TYPE_CHECKING:
    from torch.optim import Optimizer

__all__ = ["Slots", "is_mindful", "memory_numel", "optimizer_of", "slots_of"]


def is_mindful(spec: TrainSpec) -> bool:
    """Whether the optimizer remembers anything from step to step. Plain SGD does not."""
    return spec.optimizer != "sgd" or spec.momentum > 0


def memory_numel(layout: Layout, spec: TrainSpec) -> int:
    """The length of what the optimizer of `spec` remembers. Raises ConfigError if it is in no form to be kept."""
    if spec.optimizer != "sgd":
        return slots_of(spec).numel(layout)
    return layout.numel if spec.momentum else 0


def optimizer_of(spec: TrainSpec, weights: Sequence[Tensor], lr: float) -> Optimizer:
    """The optimizer that `spec` names. Raises ConfigError for an unknown one, or for parameters that do not fit."""
    from torch import optim  # noqa: PLC0415 - its classes import torch._dynamo at first use, which takes a second

    kind = getattr(optim, spec.optimizer, None)
    known = [name for name in optim.__all__ if name != "Optimizer"] if hasattr(optim, "__all__") else []
    if not (isinstance(kind, type) and issubclass(kind, optim.Optimizer)):
        raise unknown("train.optimizer", spec.optimizer, ["sgd", *known])
    keywords: dict[str, Any] = {"lr": lr, **spec.optimizer_parameters}
    if spec.weight_decay:
        keywords["weight_decay"] = spec.weight_decay
    try:
        return kind(weights, **keywords)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"train.optimizer {spec.optimizer} does not take its parameters: {error}") from error


class Slots(NamedTuple):
    """What an optimizer of torch remembers, by the names that it has there."""

    whole: tuple[str, ...]  # a number for each weight
    single: tuple[str, ...]  # a number for each parameter

    def numel(self, layout: Layout) -> int:
        """How long the memory of a model is."""
        return len(self.whole) * layout.numel + len(self.single) * layout.trainable

    def recall(self, memory: Tensor, optimizer: Optimizer, weights: Sequence[Tensor], layout: Layout) -> None:
        """Have the optimizer remember what `memory` holds; nothing, if that is empty."""
        if memory.numel():
            for weight, found in zip(weights, self._views(duplicate(memory), layout), strict=True):
                optimizer.state[weight].update(found)

    def noted(self, optimizer: Optimizer, weights: Sequence[Tensor], layout: Layout) -> Tensor:
        """The memory of an optimizer; empty before its first step."""
        if not optimizer.state:
            return empty(0)
        memory = empty(self.numel(layout)).zero_()
        for weight, views in zip(weights, self._views(memory, layout), strict=True):
            for name, view in views.items():
                view.copy_(optimizer.state[weight][name])
        return memory

    def _views(self, memory: Tensor, layout: Layout) -> list[dict[str, Tensor]]:
        """The parts of a memory that belong to each parameter, by their names."""
        split = len(self.whole) * layout.numel
        wholes = [layout.views(part) for part in torch.split(memory[:split], layout.numel)]
        singles = memory[split:].reshape(len(self.single), layout.trainable)
        return [
            {name: views[at] for name, views in zip(self.whole, wholes, strict=True)}
            | {name: row[at] for name, row in zip(self.single, singles, strict=True)}
            for at in range(layout.trainable)
        ]


def slots_of(spec: TrainSpec) -> Slots:
    """What the optimizer of `spec` remembers, as it is seen after a step on a small matrix.

    Raises ConfigError for one whose memory takes another form.
    """
    weight = torch.zeros(2, 3, requires_grad=True)
    optimizer = optimizer_of(spec, [weight], 0.0)
    weight.grad = torch.zeros_like(weight)
    optimizer.step()
    whole: list[str] = []
    single: list[str] = []
    for name, value in optimizer.state[weight].items():
        shape = value.shape if isinstance(value, Tensor) and value.dtype == torch.float32 else None
        if shape not in (weight.shape, ()):
            raise ConfigError(
                f"train.optimizer {spec.optimizer} remembers {name!r}, which is in no form to be kept; "
                "choose another, such as AdamW"
            )
        (whole if shape else single).append(name)
    return Slots(tuple(whole), tuple(single))
