"""Local training: one client's examples and one flat vector in, another flat vector out."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from p2pfl.errors import ConfigError
from p2pfl.learn.batches import Work, batches
from p2pfl.learn.data import Shard
from p2pfl.learn.memory import duplicate
from p2pfl.learn.model import Loss, Model
from p2pfl.learn.optimizers import optimizer_of, slots_of
from p2pfl.learn.sharpness import climb, norm
from p2pfl.learn.specs import TrainSpec

__all__ = ["Fit", "FitResult", "fit", "fit_plainly", "learning_rate", "mean_loss", "training_loss"]

Gradients = tuple[Tensor, ...]  # not written to: two may be one tensor, as those of biases that are added up
Step = Callable[[Gradients], None]  # one update of the weights by a batch's gradients


class Stepper(NamedTuple):
    """An optimizer at work."""

    step: Step
    memory: Callable[[], Tensor | None] = lambda: None
    """What it remembers by now, where that is wanted."""


@dataclass(frozen=True, slots=True, eq=False)
class FitResult:
    """What local training gives."""

    params: Tensor  # (layout.numel,) float32
    num_examples: int  # of the client: its weight in an average
    loss: float  # mean over the examples seen in training, each under the weights of its step; NaN if there were none
    steps: int
    memory: Tensor | None = None  # the optimizer's, if it was asked for: see `Fit.memory`


@dataclass(frozen=True, slots=True, eq=False)
class Fit:
    """Local training of one client, before it is done: from equal ones come equal bytes, on one thread."""

    params: Tensor  # (layout.numel,) float32; they stay as they are
    model: Model
    shard: Shard
    spec: TrainSpec
    seed: int  # rules the order of the examples, and what the module draws
    round: int = 0  # rules the learning rate
    drift: Tensor | None = None  # as long as `params`, added to every gradient: the control variates of SCAFFOLD
    memory: Tensor | None = None
    """What the optimizer remembers of an earlier training, as a FitResult has it; empty: nothing yet. None: nothing,
    and nobody wants to know what it remembers in the end."""

    @property
    def lr(self) -> float:
        """The learning rate of this round."""
        return learning_rate(self.spec, self.round)


def fit(
    params: Tensor,
    model: Model,
    shard: Shard,
    spec: TrainSpec,
    seed: int,
    round: int = 0,
    drift: Tensor | None = None,
) -> FitResult:
    """Train `params` on a client's examples. The arguments are those of `Fit`.

    A client without examples gives the parameters back. Raises ConfigError if the vector or the optimizer's parameters
    do not fit.
    """
    return fit_plainly(Fit(params, model, shard, spec, seed, round, drift))


def fit_plainly(work: Fit) -> FitResult:
    """One plain step after the other: what all faster ways are measured by.

    References: plain SGD as in McMahan et al., AISTATS 2017; `spec.proximal` as in Li et al., "Federated Optimization
    in Heterogeneous Networks", MLSys 2020, https://arxiv.org/abs/1812.06127; momentum and weight decay as in torch;
    `spec.sam_rho` in sharpness.py.
    """
    model, spec = work.model, work.spec
    flat = duplicate(work.params)
    losses: list[Tensor] = []
    sizes: list[int] = []
    steps = 0
    with model.using(flat, training=True, seed=work.seed) as weights:
        slope = _Slope(model, weights, training_loss(model, spec), mixed=spec.precision != "float32")
        stepper = _stepper(_Run(flat, work.params, weights, model, work.drift, work.memory), spec, work.lr)
        for group in _groups(work):
            gradients, found = slope.at(group)
            losses += found
            sizes += [len(y) for _, y in group]
            if spec.sam_rho > 0:
                kept = flat.clone()
                climb(weights, gradients, spec.sam_rho, adaptive=spec.sam_adaptive)
                gradients, _ = slope.at(group)
                flat.copy_(kept)  # with the running statistics from before the climb
            if spec.clip > 0:
                gradients = _clipped(gradients, spec.clip)
            stepper.step(gradients)
            steps += 1
        memory = stepper.memory()
    return FitResult(flat, len(work.shard), mean_loss(losses, sizes), steps, memory)


def training_loss(model: Model, spec: TrainSpec) -> Loss:
    """The loss that a model is trained by. Raises ConfigError if its own has no labels to smooth."""
    if spec.label_smoothing == 0:
        return model.loss
    if model.loss is not functional.cross_entropy:
        raise ConfigError("train.label_smoothing is set, but model.loss is not cross_entropy; leave it out")
    return partial(functional.cross_entropy, label_smoothing=spec.label_smoothing)


def mean_loss(losses: Sequence[Tensor], sizes: Sequence[int]) -> float:
    """Mean over all examples, of the mean losses of batches of these sizes; NaN if there were none."""
    if not sizes:
        return math.nan
    return (torch.stack(list(losses)) @ torch.tensor(sizes).float()).item() / sum(sizes)


def learning_rate(spec: TrainSpec, round: int) -> float:
    """The learning rate of a round, from 0.

    >>> learning_rate(TrainSpec(lr=1.0, schedule="step", schedule_rounds=10, schedule_factor=0.5), 20)
    0.25
    """
    match spec.schedule:
        case "step":
            return spec.lr * math.pow(spec.schedule_factor, round // spec.schedule_rounds)
        case "cosine":
            progress = min(round / spec.schedule_rounds, 1.0)
            wave = (1 + math.cos(math.pi * progress)) / 2
            return spec.lr * (spec.schedule_factor + (1 - spec.schedule_factor) * wave)
        case _:
            return spec.lr


Batch = tuple[Tensor, Tensor]  # inputs and targets


def _groups(work: Fit) -> Iterator[list[Batch]]:
    """The batches of each step. None has batches of two passes."""
    left = batches(work.shard, work.spec, work.seed)
    plan = Work.of(len(work.shard), work.spec)
    done = 0
    while done < plan.steps:
        group = list(islice(left, min(work.spec.accumulate, plan.per_pass - done % plan.per_pass)))
        done += len(group)
        yield group


@dataclass(frozen=True, slots=True, eq=False)
class _Slope:
    """The gradient of the loss by the weights that are in the module."""

    model: Model
    weights: list[Tensor]
    loss: Loss
    mixed: bool

    def at(self, group: Sequence[Batch]) -> tuple[Gradients, list[Tensor]]:
        """Over all examples of some batches; and the mean loss of each batch."""
        gradients, loss = self._of(*group[0])
        if len(group) == 1:
            return gradients, [loss]
        total = sum(len(y) for _, y in group)
        mean, losses = torch._foreach_mul(gradients, len(group[0][1]) / total), [loss]
        for x, y in group[1:]:
            gradients, loss = self._of(x, y)
            torch._foreach_add_(mean, gradients, alpha=len(y) / total)
            losses.append(loss)
        return mean, losses

    def _of(self, x: Tensor, y: Tensor) -> tuple[Gradients, Tensor]:
        with torch.autocast("cpu", torch.bfloat16) if self.mixed else nullcontext():
            loss = self.loss(self.model.module(x), y)
        gradients = torch.autograd.grad(loss, self.weights, allow_unused=True)
        if any(gradient is None for gradient in gradients):
            gradients = tuple(
                torch.zeros_like(w) if g is None else g for w, g in zip(self.weights, gradients, strict=True)
            )
        return gradients, loss.detach()


def _clipped(gradients: Gradients, bound: float) -> Gradients:
    return torch._foreach_mul(gradients, (bound / (norm(gradients) + 1e-6)).clamp(max=1.0))


@dataclass(frozen=True, slots=True, eq=False)
class _Run:
    """The tensors of one training run."""

    flat: Tensor  # what is trained
    start: Tensor  # what it began with
    weights: list[Tensor]  # the module's parameters: views into `flat`
    model: Model
    drift: Tensor | None
    memory: Tensor | None


def _stepper(run: _Run, spec: TrainSpec, lr: float) -> Stepper:
    if spec.optimizer != "sgd":
        return _torch_optim(run, spec, lr)
    return _momentum_sgd(run, spec, lr) if spec.momentum else _sgd(run, spec, lr)


def _sgd(run: _Run, spec: TrainSpec, lr: float) -> Stepper:
    """w <- (1 - lr (decay + mu)) w + lr mu w0 - lr drift - lr g: all but the last on the flat vector."""
    size = run.model.layout.trainable_numel
    vector, start = run.flat[:size], run.start[:size]
    weights = [weight.detach() for weight in run.weights]
    drift = None if run.drift is None else run.drift[:size]
    shrink = 1.0 - lr * (spec.weight_decay + spec.proximal)

    def step(gradients: Gradients) -> None:
        if shrink != 1.0:
            vector.mul_(shrink)
        if spec.proximal:
            vector.add_(start, alpha=lr * spec.proximal)
        if drift is not None:
            vector.add_(drift, alpha=-lr)
        torch._foreach_add_(weights, gradients, alpha=-lr)

    return Stepper(step, lambda: run.memory)


def _momentum_sgd(run: _Run, spec: TrainSpec, lr: float) -> Stepper:
    """v <- m v + (decay + mu) w - mu w0 + drift + g; w <- w - lr v."""
    size = run.model.layout.trainable_numel
    vector, start = run.flat[:size], run.start[:size]
    memory = run.memory
    velocity = torch.zeros_like(run.flat) if memory is None or not len(memory) else duplicate(memory)
    velocities = run.model.layout.views(velocity)[: len(run.weights)]
    drift = None if run.drift is None else run.drift[:size]
    pull = spec.weight_decay + spec.proximal
    moving = velocity[:size]

    def step(gradients: Gradients) -> None:
        moving.mul_(spec.momentum)
        if pull:
            moving.add_(vector, alpha=pull)
        if spec.proximal:
            moving.add_(start, alpha=-spec.proximal)
        if drift is not None:
            moving.add_(drift)
        torch._foreach_add_(velocities, gradients)
        vector.add_(moving, alpha=-lr)

    return Stepper(step, lambda: None if memory is None else velocity)


def _torch_optim(run: _Run, spec: TrainSpec, lr: float) -> Stepper:
    layout, count = run.model.layout, len(run.weights)
    optimizer = optimizer_of(spec, run.weights, lr)
    slots = None if run.memory is None else slots_of(spec)
    if slots is not None and run.memory is not None:
        slots.recall(run.memory, optimizer, run.weights, layout)
    starts = layout.views(run.start)[:count]
    drifts = None if run.drift is None else layout.views(run.drift)[:count]

    def step(gradients: Gradients) -> None:
        with torch.no_grad():
            if spec.proximal:
                gradients = torch._foreach_add(gradients, torch._foreach_sub(run.weights, starts), alpha=spec.proximal)
            if drifts is not None:
                gradients = torch._foreach_add(gradients, drifts)
        for weight, gradient in zip(run.weights, gradients, strict=True):
            weight.grad = gradient
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return Stepper(step, lambda: None if slots is None else slots.noted(optimizer, run.weights, layout))
