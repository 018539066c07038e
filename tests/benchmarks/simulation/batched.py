"""The limit: all clients of a round as one batched product, with a backward pass written by hand for this one model."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from tests.benchmarks.simulation.workload import State, Work


def run(work: Work, done: Callable[[], None]) -> State:
    """For an MLP with one hidden layer."""
    names = list(work.initial)
    first, first_bias, second, second_bias = work.initial.values()
    mean = [first.T, first_bias, second.T, second_bias]
    x = work.x.flatten(1)
    targets = torch.nn.functional.one_hot(work.y, work.scenario.classes).float()
    for cohort in work.plan:
        weights = [weight.expand(len(cohort), *weight.shape).contiguous() for weight in mean]
        for rows in cohort.transpose(0, 1):
            _step(weights, x[rows], targets[rows], work.scenario.lr)
        mean = [weight.mean(0) for weight in weights]
        done()
    mean[0], mean[2] = mean[0].T.contiguous(), mean[2].T.contiguous()
    return dict(zip(names, mean, strict=True))


def _step(weights: list[Tensor], x: Tensor, targets: Tensor, lr: float) -> None:
    """x: (clients, batch, inputs); targets: (clients, batch, classes); weights: (clients, inputs, outputs)."""
    first, first_bias, second, second_bias = weights
    hidden = torch.baddbmm(first_bias.unsqueeze(1), x, first).relu_()
    outputs = torch.baddbmm(second_bias.unsqueeze(1), hidden, second)
    error = outputs.softmax(2).sub_(targets).mul_(lr / x.shape[1])
    below = torch.bmm(error, second.mT).mul_(hidden > 0)
    second.baddbmm_(hidden.mT, error, alpha=-1)
    second_bias.sub_(error.sum(1))
    first.baddbmm_(x.mT, below, alpha=-1)
    first_bias.sub_(below.sum(1))
