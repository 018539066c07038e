"""Whether an example was among those that a model was trained on: members are better known to it than others.

By the loss alone: S. Yeom, I. Giacomelli, M. Fredrikson, S. Jha: "Privacy Risk in Machine Learning: Analyzing the
Connection to Overfitting", CSF 2018, https://arxiv.org/abs/1709.01604. By how likely the same confidence is of models
that have, and of models that have not, seen the example: N. Carlini et al.: "Membership Inference Attacks From First
Principles" (LiRA), S&P 2022, https://arxiv.org/abs/2112.03570.

Scores are higher for members; see `auc` and `tpr_at` in scores.py for what they are worth.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from p2pfl.learn.data import Shard
from p2pfl.learn.model import Model
from p2pfl.learn.specs import TrainSpec
from p2pfl.learn.train import fit

__all__ = ["Shadows", "by_loss", "confidence", "lira", "shadows_of"]

_LEAST_DEVIATION = 1e-6  # of confidences, where all are equal


def by_loss(model: Model, params: Tensor, shard: Shard) -> Tensor:
    """The negative cross-entropy of each example: (examples,)."""
    logits, y = _logits(model, params, shard)
    return -functional.cross_entropy(logits, y, reduction="none")


def confidence(model: Model, params: Tensor, shard: Shard) -> Tensor:
    """log p / (1 - p), which is about normal, p being the chance that each example's class has: (examples,)."""
    logits, y = _logits(model, params, shard)
    true = logits.gather(1, y[:, None]).squeeze(1)
    return true - logits.scatter(1, y[:, None], -torch.inf).logsumexp(1)


class Shadows(NamedTuple):
    """What models that the attacker has trained say of the examples in question."""

    confidences: Tensor
    """(models, examples)"""
    held: Tensor
    """(models, examples) bool: which model has seen which example."""


def shadows_of(model: Model, shard: Shard, train: TrainSpec, count: int, seed: int = 0) -> Shadows:
    """Train an even number of models, each on a random half of the examples and every second on the other half.

    So each example is in half of them. `train`: as the model under attack is trained.
    """
    random = torch.Generator().manual_seed(seed)
    held = torch.zeros(count, len(shard), dtype=torch.bool)
    for pair in range(0, count, 2):
        held[pair, torch.randperm(len(shard), generator=random)[: len(shard) // 2]] = True
        held[pair + 1] = ~held[pair]
    found = []
    for number, mine in enumerate(held):
        part = Shard(shard.dataset, shard.indices[mine], shard.shift)
        trained = fit(model.initial, model, part, train, seed + number)
        found.append(confidence(model, trained.params, shard))
    return Shadows(torch.stack(found), held)


def lira(confidences: Tensor, shadows: Shadows) -> Tensor:
    """The logarithm of the likelihood ratio that each example was seen: (examples,), from `confidences` like it.

    As the paper has it for few shadow models, all examples share one variance for `seen` and one for `not seen`.
    """
    return _likelihood(confidences, shadows, shadows.held) - _likelihood(confidences, shadows, ~shadows.held)


def _likelihood(confidences: Tensor, shadows: Shadows, chosen: Tensor) -> Tensor:
    weights = chosen.double()
    means = (shadows.confidences * weights).sum(0) / weights.sum(0)
    variance = ((shadows.confidences - means).square() * weights).sum() / weights.sum()
    deviation = variance.sqrt().clamp(min=_LEAST_DEVIATION)
    return -((confidences - means) / deviation).square() / 2 - deviation.log()


def _logits(model: Model, params: Tensor, shard: Shard) -> tuple[Tensor, Tensor]:
    part = shard.shifted()
    x, y = part.dataset.batch(part.indices)
    with model.using(params.clone(), training=False), torch.no_grad():
        logits: Tensor = model.module(x)
    return logits.double(), y
