"""How good a flat vector is on a set of examples."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from p2pfl.learn.data import Shard
from p2pfl.learn.metrics import measure
from p2pfl.learn.model import Model

__all__ = ["Evaluation", "evaluate"]


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Means over the examples."""

    loss: float  # NaN if there were no examples
    accuracy: float | None  # share of examples classified correctly; None where targets are no classes
    num_examples: int
    own: Mapping[str, float] = field(default_factory=dict)  # metrics of the user's own, over all examples at once

    @property
    def figures(self) -> dict[str, float]:
        """What is a finite number of these, by name."""
        found = {"accuracy": self.accuracy, "loss": self.loss, **self.own}
        return {name: value for name, value in found.items() if value is not None and math.isfinite(value)}


def evaluate(params: Tensor, model: Model, shard: Shard, batch_size: int = 512, own: Sequence[str] = ()) -> Evaluation:
    """Loss and accuracy of `params` on `shard`, in batches and without gradients. Nothing is changed.

    Outputs with one column are the logit of the second of two classes. `own`: the paths of more metrics, for which the
    outputs of all examples are held at once. Raises ConfigError if the vector does not fit, and what `measure` raises.
    """
    shard = shard.shifted()
    loss, seen, correct, targets = 0.0, 0, 0, 0
    kept: list[tuple[Tensor, Tensor]] = []
    with model.using(params, training=False), torch.no_grad():
        for rows in torch.split(shard.indices, batch_size) if len(shard) else ():
            x, y = shard.dataset.batch(rows)
            outputs = model.module(x)
            loss += model.loss(outputs, y).item() * len(y)
            seen += len(y)
            if own:
                kept.append((outputs, y))
            if not y.is_floating_point():
                correct += int((_classes(outputs, y) == y).sum())
                targets += y.numel()
    if seen == 0:
        return Evaluation(math.nan, None, 0)
    found = measure(own, torch.cat([outputs for outputs, _ in kept]), torch.cat([y for _, y in kept])) if own else {}
    return Evaluation(loss / seen, correct / targets if targets else None, seen, found)


def _classes(outputs: Tensor, y: Tensor) -> Tensor:
    if outputs.numel() == y.numel():
        return (outputs.reshape(y.shape) > 0).long()
    return outputs.argmax(dim=1)
