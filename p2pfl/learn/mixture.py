"""A mixture of several models of one kind: the probability of a class is the weighted mean of theirs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.nn import functional

from p2pfl.errors import ConfigError
from p2pfl.learn.model import Model
from p2pfl.learn.params import Entry, Layout

__all__ = ["WEIGHTS", "Mixture", "mixture"]

WEIGHTS = "weights"
"""The name of the mixture's own entry, which trains as the others do."""


@dataclass(frozen=True, slots=True, eq=False)
class Mixture:
    """A model of `count` components, whose outputs are logarithms of probabilities."""

    model: Model
    count: int
    _trainable: int  # numbers of one component that train; its others follow behind all that do

    def pack(self, components: Tensor, weights: Tensor) -> Tensor:
        """The mixture's vector, of components (count, layout.numel) and weights (count,), which sum to 1."""
        trained, rest = components[:, : self._trainable], components[:, self._trainable :]
        return torch.cat((trained.flatten(), weights, rest.flatten()))

    def unpack(self, vector: Tensor) -> tuple[Tensor, Tensor]:
        """Its components and weights."""
        trained, weights, rest = vector.tensor_split((self.count * self._trainable, self.count * (self._trainable + 1)))
        parts = [part.view(self.count, -1) for part in (trained, rest) if len(part)]
        return torch.cat(parts, 1), weights


class _Mixed(nn.Module):
    def __init__(self, components: Iterable[nn.Module], count: int) -> None:
        super().__init__()
        self.components = nn.ModuleList(components)
        self.weights = nn.Parameter(torch.full((count,), 1 / count))

    def forward(self, x: Tensor) -> Tensor:
        logs = [functional.log_softmax(component(x), 1) for component in self.components]
        weighted = [log + weight.log() for log, weight in zip(logs, self.weights, strict=True)]
        return torch.logsumexp(torch.stack(weighted), 0)


@lru_cache(maxsize=8)
def mixture(model: Model, count: int) -> Mixture:
    """The mixture of so many of `model`. Equal arguments give the same object, so that clients share it.

    Raises ConfigError where the model's loss is not the cross-entropy of classes.
    """
    if model.loss is not functional.cross_entropy:
        raise ConfigError("model.loss is not cross_entropy, and only models of classes can be mixed")
    module = _Mixed((model.copy().module for _ in range(count)), count)
    layout, trainable = model.layout, model.layout.trainable_numel
    behind = count * (trainable + 1) - trainable  # of the first component's buffers, from where they were
    entries: list[Entry] = []
    for which in range(count):
        entries += [_moved(entry, which, which * trainable) for entry in layout.entries[: layout.trainable]]
    entries.append(Entry(WEIGHTS, (count,), (1,), count * trainable))
    for which in range(count):
        by = behind + which * (layout.numel - trainable)
        entries += [_moved(entry, which, by) for entry in layout.entries[layout.trainable :]]
    whole = Layout(tuple(entries), count * (layout.numel + 1), count * layout.trainable + 1)
    counters = [(buffer, buffer.clone()) for buffer in module.buffers() if not buffer.is_floating_point()]
    initial = torch.cat((
        model.initial[:trainable].repeat(count), module.weights.detach(), model.initial[trainable:].repeat(count)
    ))  # fmt: skip
    twin = Model(module, whole, model.loss, initial, model.draws, whole.tensors(module), counters)
    return Mixture(twin, count, trainable)


def _moved(entry: Entry, which: int, by: int) -> Entry:
    return replace(entry, name=f"components.{which}.{entry.name}", offset=entry.offset + by)
