"""Local training as anyone would write it, for tests that write an algorithm down once more."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import torch
from torch import Tensor

from p2pfl.courses.learner import seed_of
from tests.courses.kit import Played


def gradient(played: Played, params: Tensor, rows: Tensor) -> Tensor:
    """Of the mean loss of the logistic model over these examples, in closed form."""
    x, y = played.data.x[rows].flatten(1), played.data.y[rows]
    weight, bias = params[:640].reshape(10, 64), params[640:]
    error = (torch.softmax(x @ weight.T + bias, 1) - torch.nn.functional.one_hot(y, 10)) / len(y)
    return torch.cat([(error.T @ x).flatten(), error.sum(0)])


def descend(
    played: Played, start: Tensor, seat: int, round: int, extra: Callable[[Tensor], Tensor], epochs: int | None = None
) -> tuple[Tensor, int]:
    """The model after the local steps of a client, and their number. `extra`: what is added to a gradient at w."""
    shard, spec, params, steps = played.shards[seat], played.train, start.clone(), 0
    generator = torch.Generator().manual_seed(seed_of(played.seed, "fit", round, seat))
    for _ in range(spec.epochs if epochs is None else epochs):
        order = shard.indices[torch.randperm(len(shard), generator=generator)]
        for rows in order.split(spec.batch_size):
            params = params - spec.lr * (gradient(played, params, rows) + extra(params))
            steps += 1
    return params, steps


def cohort(played: Played, round: int) -> list[int]:
    """Who trains in a round."""
    seats = sorted(played.shards)
    size = max(1, int(played.settings.fraction * len(seats) + 0.5))
    return sorted(Random(seed_of(played.seed, "cohort", round)).sample(seats, size))
