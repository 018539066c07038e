"""How good a flat vector is on a set of examples."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from p2pfl.learn.data import Shard
from p2pfl.learn.model import Model

__all__ = ["Evaluation", "evaluate"]


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Means over the examples."""

    loss: float  # NaN if there were no examples
    accuracy: float | None  # share of examples classified correctly; None where targets are no classes
    num_examples: int


def evaluate(params: Tensor, model: Model, shard: Shard, batch_size: int = 512) -> Evaluation:
    """Loss and accuracy of `params` on `shard`, in batches and without gradients. Nothing is changed.

    Outputs with one column are the logit of the second of two classes. Raises ConfigError if the vector does not fit.
    """
    shard = shard.shifted()
    loss, seen, correct, targets = 0.0, 0, 0, 0
    with model.using(params, training=False), torch.no_grad():
        for rows in torch.split(shard.indices, batch_size) if len(shard) else ():
            x, y = shard.dataset.batch(rows)
            outputs = model.module(x)
            loss += model.loss(outputs, y).item() * len(y)
            seen += len(y)
            if not y.is_floating_point():
                correct += int((_classes(outputs, y) == y).sum())
                targets += y.numel()
    if seen == 0:
        return Evaluation(math.nan, None, 0)
    return Evaluation(loss / seen, correct / targets if targets else None, seen)


def _classes(outputs: Tensor, y: Tensor) -> Tensor:
    if outputs.numel() == y.numel():
        return (outputs.reshape(y.shape) > 0).long()
    return outputs.argmax(dim=1)
