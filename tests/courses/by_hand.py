"""What courses that personalise are measured by: gradient descent on all of a client's examples, a line per step."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from p2pfl.courses.learner import Learner
from p2pfl.learn.data import Shard
from p2pfl.learn.model import Model
from p2pfl.learn.specs import ModelSpec, TrainSpec
from p2pfl.sim.loop import run_virtual
from p2pfl.topology.families import build
from tests.courses.kit import Played

LR = 0.3
WHOLE = TrainSpec(epochs=2, lr=LR, batch_size=10_000)  # two steps, each of all examples


def small(course, settings, n=4, **given) -> Played:
    """A course with three clients and a model of two layers: "1" is the first, "3" the last."""
    given = {"model_spec": ModelSpec("mlp", hidden=(6,)), "train": WHOLE, **given}
    return Played(course, replace(settings, weights="equal"), build("star", n), **given)


def gradient(model: Model, params: Tensor, shard: Shard) -> Tensor:
    """Of the mean loss over a client's examples, as long as `params`."""
    found = torch.zeros_like(params)
    x, y = shard.dataset.batch(shard.indices)
    with model.using(params.clone(), training=True) as weights:
        gradients = torch.autograd.grad(model.loss(model.module(x), y), weights)
    for view, g in zip(model.layout.views(found), gradients, strict=False):
        view.copy_(g)
    return found


def descend(model: Model, params: Tensor, shard: Shard, steps: int = 2, mask: Tensor | float = 1.0) -> Tensor:
    """Some steps, of those numbers that `mask` has ones for."""
    for _ in range(steps):
        params = params - LR * mask * gradient(model, params, shard)
    return params


def mask_of(model: Model, *layers: str) -> Tensor:
    """Ones for the numbers of some layers, else zeros."""
    mask = torch.zeros(model.layout.numel)
    for entry, view in zip(model.layout.entries, model.layout.views(mask), strict=True):
        view.fill_(float(entry.name.split(".")[0] in layers))
    return mask


def local_of(played: Played, seat: int):
    """The client's half of a seat."""
    return played.world.seats[seat].roles[0]._outbox.local


def served(half, learner: Learner, params: Tensor) -> Tensor:
    """The model by which a client's half is served."""
    return run_virtual(half.personal(learner, params))


def is_close(found: Tensor, expected: Tensor) -> bool:
    return torch.allclose(found, expected, rtol=1e-4, atol=1e-6)
