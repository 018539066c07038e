"""Local training of many clients at once, for chains of linear layers: batched products, gradients by hand.

A client's result has the same bits whoever is computed with it, one or a hundred, so a host that trains for itself
alone gets what a simulation of all hosts gets. That holds because a batched product computes each of its matrices for
itself, because sums run within a client, because activations and losses are written so (activations.py), and because
what a client's batches are padded to depends on nobody else.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from p2pfl.learn.activations import Activation
from p2pfl.learn.batches import GATHER, Work, orders
from p2pfl.learn.chain import Chain, Dense
from p2pfl.learn.data import Dataset
from p2pfl.learn.descent import Descent, Part, parts_of
from p2pfl.learn.memory import empty
from p2pfl.learn.objective import Objective, Targets, objective_of
from p2pfl.learn.params import Layout
from p2pfl.learn.specs import TrainSpec
from p2pfl.learn.train import Fit, FitResult

__all__ = ["stacked", "suits", "together", "width_of"]

_CACHE_BYTES = 2 * 2**20  # a cohort stays in a core's L2 cache from step to step; also the most that a result pins
_APART_BYTES = 128 * 2**10  # larger vectors are better left as they are
_MOST_CLIENTS = 100  # more bring nothing
_MANY_ROWS = 10  # from so many rows in a batch, W x' is faster than x W' where W is large
_ALIGNED = 16  # float32 in a cache line: products of aligned matrices are faster, and depend on no alignment


def suits(chain: Chain, dataset: Dataset) -> bool:
    """Whether the examples of a data set can go through the chain in batches."""
    shape = dataset.input_shape
    vectors = len(shape) == 1 or (chain.flattens and len(shape) > 0)
    if not vectors or math.prod(shape) != chain.inputs or dataset.x.dtype != torch.float32:
        return False
    # Classes below zero stand for examples to be ignored, which only the plain loss knows how to do.
    return dataset.y.is_floating_point() or dataset.y.numel() == 0 or int(dataset.y.min()) >= 0


def width_of(examples: int, spec: TrainSpec) -> int:
    """Rows that a client's batches are padded to: of one client and the spec only, and never one.

    >>> width_of(7, TrainSpec(batch_size=5)), width_of(7, TrainSpec(batch_size=50)), width_of(1, TrainSpec())
    (5, 8, 2)
    """
    if examples >= spec.batch_size:
        return max(2, spec.batch_size)
    return max(2, 1 << (examples - 1).bit_length())


def together(chain: Chain, fits: Sequence[Fit]) -> list[FitResult]:
    """Train clients of one model, learning rate and width, each with an example or more, or all with a drift.

    Their specs differ in nothing but how much is done.
    """
    spec = fits[0].spec
    width = width_of(len(fits[0].shard), spec)
    works = [Work.of(len(fit.shard), fit.spec) for fit in fits]
    # By steps, so that those who still train are the first; by size, so that equal ones are planned together.
    ranked = sorted(range(len(fits)), key=lambda at: (-works[at].steps, len(fits[at].shard)))
    results: dict[int, FitResult] = {}
    most = _clients_at_once(chain, fits[0], width)
    for some in (ranked[first : first + most] for first in range(0, len(ranked), most)):
        found = _train(chain, [fits[at] for at in some], width)
        results.update(zip(some, found, strict=True))
    return [results[at] for at in range(len(fits))]


def _clients_at_once(chain: Chain, fit: Fit, width: int) -> int:
    numbers = fit.model.layout.numel * (2 if fit.spec.momentum else 1) + width * chain.widths
    return max(1, min(_MOST_CLIENTS, _CACHE_BYTES // (4 * numbers)))


def _train(chain: Chain, fits: Sequence[Fit], width: int) -> list[FitResult]:
    layout, loss = fits[0].model.layout, fits[0].model.loss
    weights = stacked([fit.params for fit in fits])
    store = _Store.of(chain, layout)
    parts = _parts(store, fits, weights)
    cohort = _Cohort(chain, store, parts, Descent.of(fits[0]))
    plan = _Plan.of(fits, width)
    objective = objective_of(loss, fits[0].shard.dataset.y, chain.outputs)
    losses = torch.zeros(len(fits), width)
    for x, targets in plan.batches():
        clients = len(x)
        losses[:clients] += cohort.first(clients).step(x, targets, objective)
    store.write([part.weight for part in parts], weights)
    means = (losses.sum(1).double() / plan.counts.sum(0)).tolist()
    rows = weights[:, : layout.numel].unbind(0)
    return [
        FitResult(row, len(fit.shard), mean, steps)
        for row, fit, mean, steps in zip(rows, fits, means, plan.steps, strict=True)
    ]


def stacked(vectors: Sequence[Tensor]) -> Tensor:
    """Vectors as the rows of a new matrix, which may be longer than they are."""
    length = len(vectors[0])
    matrix = empty(len(vectors), -(-length // _ALIGNED) * _ALIGNED)
    if all(vector is vectors[0] for vector in vectors):
        matrix[:, :length] = vectors[0]
    else:
        torch._foreach_copy_(list(matrix[:, :length].unbind(0)), list(vectors))
    return matrix


@dataclass(frozen=True, slots=True)
class _Store:
    """How the clients' parameters lie in memory while they are trained.

    Small vectors are taken apart, because torch multiplies all clients' matrices in one call only where these lie one
    behind the other. The first layer's weights are turned, too: forward wants them so, and nothing goes further back.
    Large vectors stay as they are: two copies would cost more than they bring.
    """

    layout: Layout
    apart: bool
    turned: int | None  # the entry that is stored as (clients, inputs, outputs)

    @classmethod
    def of(cls, chain: Chain, layout: Layout) -> _Store:
        """It depends on the model, and not on how many clients there are."""
        apart = 4 * layout.numel <= _APART_BYTES
        first = next(layer for layer in chain.layers if isinstance(layer, Dense))
        turned = first.weight if apart and first.outputs > 1 else None
        return cls(layout, apart, turned)

    def read(self, matrix: Tensor) -> list[Tensor]:
        """The parameters in the rows of a matrix, or of zeros."""
        views = self._views(matrix)
        return [view.contiguous() for view in views] if self.apart else views

    def write(self, parameters: Sequence[Tensor], matrix: Tensor) -> None:
        """Put parameters that have been read back into the rows."""
        if self.apart:
            torch._foreach_copy_(self._views(matrix), list(parameters))

    def _views(self, matrix: Tensor) -> list[Tensor]:
        rows = self.layout.rows(matrix)
        return [view.transpose(1, 2) if at == self.turned else view for at, view in enumerate(rows)]


def _parts(store: _Store, fits: Sequence[Fit], weights: Tensor) -> list[Part]:
    """One part for each parameter."""
    spec, drifts = fits[0].spec, [fit.drift for fit in fits if fit.drift is not None]
    return parts_of(
        store.read(weights),
        store.read(torch.zeros_like(weights)) if spec.momentum else None,
        store.read(stacked([fit.params for fit in fits])) if spec.proximal else None,
        store.read(stacked(drifts)) if drifts else None,
    )


class _Cohort:
    """The weights of clients who take their steps together."""

    def __init__(self, chain: Chain, store: _Store, parts: Sequence[Part], descent: Descent) -> None:
        self._chain = chain
        self._store = store
        self._parts = parts
        self._descent = descent
        self._first_trained = next(
            at
            for at, layer in enumerate(chain.layers)
            if isinstance(layer, Dense) and any(map(self._trains, layer.entries))
        )
        used = {at for layer in chain.layers if isinstance(layer, Dense) for at in layer.entries}
        self._idle = [part for at, part in enumerate(parts) if at not in used]
        self._clients = len(parts[0].weight)

    def first(self, clients: int) -> _Cohort:
        """The first clients: the others have done their steps."""
        if clients == self._clients:
            return self
        return _Cohort(self._chain, self._store, [part.first(clients) for part in self._parts], self._descent)

    def step(self, x: Tensor, targets: Targets, objective: Objective) -> Tensor:
        """One step on a batch (clients, rows, inputs); the losses, by example."""
        values = [x]
        for layer in self._chain.layers:
            values.append(self._dense(layer, values[-1]) if isinstance(layer, Dense) else layer.forward(values[-1]))
        losses, d = objective(values[-1], targets)
        for at in range(len(self._chain.layers) - 1, self._first_trained - 1, -1):
            layer = self._chain.layers[at]
            if isinstance(layer, Activation):
                d = layer.backward(d, values[at], values[at + 1])
                continue
            below = torch.bmm(d, self._parts[layer.weight].weight) if at > self._first_trained else d
            self._update(layer, values[at], d)
            d = below
        for part in self._idle:
            self._descent.by_gradient(part, None)
        return losses

    def _trains(self, entry: int) -> bool:
        return entry < self._store.layout.trainable

    def _update(self, layer: Dense, x: Tensor, d: Tensor) -> None:
        if not self._trains(layer.weight):
            pass
        elif layer.weight == self._store.turned:
            self._descent.by_product(self._parts[layer.weight], x.transpose(1, 2), d)
        else:
            # With one output, the strides of a mere transpose would have torch choose its way by the number of clients.
            left = d.transpose(1, 2) if layer.outputs > 1 else d.reshape(len(d), 1, -1)
            self._descent.by_product(self._parts[layer.weight], left, x)
        if layer.bias is not None and self._trains(layer.bias):
            self._descent.by_gradient(self._parts[layer.bias], d.sum(1))

    def _dense(self, layer: Dense, x: Tensor) -> Tensor:
        """x W' + b. One column of outputs is computed as W x', or its bits would depend on the other clients."""
        weight = self._parts[layer.weight].weight
        if layer.weight == self._store.turned:
            product = torch.bmm(x, weight)
        elif layer.outputs == 1 or (not self._store.apart and x.shape[1] >= _MANY_ROWS):
            product = torch.bmm(weight, x.transpose(1, 2)).transpose(1, 2)
        else:
            product = torch.bmm(x, weight.transpose(1, 2))
        return product if layer.bias is None else product.add_(self._parts[layer.bias].weight.unsqueeze(1))


@dataclass(frozen=True, slots=True)
class _Plan:
    """Which examples each client trains on in each step."""

    x: Tensor
    y: Tensor
    rows: Tensor  # (steps, clients, width) of x and y; padding repeats the last example of its batch
    counts: Tensor  # (steps, clients): examples in the batch
    steps: list[int]  # of each client, falling

    @classmethod
    def of(cls, fits: Sequence[Fit], width: int) -> _Plan:
        """The plan of clients who are ranked by their steps."""
        x, y, indices = _examples(fits)
        works = [Work.of(len(fit.shard), fit.spec) for fit in fits]
        rows = torch.zeros(works[0].steps, len(fits), width, dtype=torch.int64)
        counts = torch.zeros(works[0].steps, len(fits), dtype=torch.int64)
        generator = torch.Generator()
        begin = 0
        for (size, work), equal in itertools.groupby(
            zip(fits, works, strict=True), lambda one: (len(one[0].shard), one[1])
        ):
            clients = [fit for fit, _ in equal]
            end = begin + len(clients)
            drawn = [torch.cat(orders(size, work.passes, generator.manual_seed(fit.seed))) for fit in clients]
            places, batch = _places(size, work, width)
            picked = torch.stack(drawn).index_select(1, places.flatten())
            chosen = torch.stack(indices[begin:end]).gather(1, picked)
            rows[: work.steps, begin:end] = chosen.view(-1, *places.shape).transpose(0, 1)
            counts[: work.steps, begin:end] = batch.unsqueeze(1)
            begin = end
        return cls(x, y, rows, counts, [work.steps for work in works])

    def batches(self) -> Iterator[tuple[Tensor, Targets]]:
        """For every step the batches of those who take it: (clients, width, inputs) float32, and their targets."""
        width = self.rows.shape[2]
        present = (torch.arange(width) < self.counts.unsqueeze(2)).float()
        share = present / self.counts.clamp(min=1).unsqueeze(2)
        active = [sum(steps > at for steps in self.steps) for at in range(self.steps[0])]
        for first in range(0, len(active), several := max(1, GATHER // (width * len(self.steps)))):
            some, clients = slice(first, first + several), active[first]
            rows = self.rows[some, :clients]
            x = self.x.index_select(0, rows.reshape(-1)).reshape(*rows.shape, -1)
            y = self.y.index_select(0, rows.reshape(-1))
            y = y.view(*rows.shape, *y.shape[1:])
            y = y if y.is_floating_point() else y.long()
            whole = (x, y, present[some, :clients], share[some, :clients], self.counts[some, :clients])
            for at, tensors in enumerate(zip(*(tensor.unbind(0) for tensor in whole), strict=True), first):
                inputs, *rest = tensors if active[at] == clients else (tensor[: active[at]] for tensor in tensors)
                yield inputs, Targets(*rest)


@lru_cache(maxsize=16)
def _places(examples: int, work: Work, width: int) -> tuple[Tensor, Tensor]:
    """Where the rows of each batch (steps, width) stand in the passes, one behind the other; each batch's size."""
    step = torch.arange(work.steps)
    begin = step % work.per_pass * work.size
    counts = (examples - begin).clamp(max=work.size)
    row = torch.minimum(torch.arange(width), counts.unsqueeze(1) - 1)
    return (step // work.per_pass * examples + begin).unsqueeze(1) + row, counts


def _examples(fits: Sequence[Fit]) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Inputs, targets, and which of their rows each client holds. Nothing is copied if all share one data set."""
    dataset = fits[0].shard.dataset
    if all(fit.shard.dataset is dataset and fit.shard.shift is None for fit in fits):
        return dataset.x, dataset.y, [fit.shard.indices for fit in fits]
    shards = [fit.shard.shifted() for fit in fits]
    parts = [shard.dataset.batch(shard.indices) for shard in shards]
    ends = list(itertools.accumulate(len(shard) for shard in shards))
    rows = [torch.arange(end - len(shard), end) for shard, end in zip(shards, ends, strict=True)]
    return torch.cat([x for x, _ in parts]), torch.cat([y for _, y in parts]), rows
