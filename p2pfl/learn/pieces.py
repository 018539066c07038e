"""Some entries of a model's flat vector: taken out, put back, or left as they are while the others train."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import lru_cache

import torch
from torch import Tensor, nn

from p2pfl.learn.model import Model
from p2pfl.learn.params import Layout

__all__ = ["Frozen", "Pieces", "frozen", "layers_of", "matching"]


class Pieces:
    """Where some entries lie in the flat vector, one after the other."""

    def __init__(self, layout: Layout, names: Collection[str]) -> None:
        """Raises KeyError for a name that the layout does not have."""
        if strange := set(names).difference(entry.name for entry in layout.entries):
            raise KeyError(min(strange))
        self._runs: list[slice] = []  # what lies side by side is one copy
        for entry in layout.entries:
            if entry.name not in names:
                continue
            begin = entry.offset
            if self._runs and self._runs[-1].stop == begin:
                begin = self._runs.pop().start
            self._runs.append(slice(begin, entry.offset + entry.numel))
        self.numel = sum(run.stop - run.start for run in self._runs)

    def take(self, vector: Tensor) -> Tensor:
        """A new vector of these entries alone, of shape (numel,)."""
        return torch.cat([vector[run] for run in self._runs]) if self._runs else vector.new_empty(0)

    def put(self, vector: Tensor, pieces: Tensor) -> Tensor:
        """A new vector: `vector` with `pieces` in the place of these entries."""
        whole = vector.clone()
        for run, piece in zip(
            self._runs, torch.split(pieces, [run.stop - run.start for run in self._runs]), strict=True
        ):
            whole[run] = piece
        return whole


@dataclass(frozen=True, slots=True, eq=False)
class Frozen:
    """A model of which only some parameters train. Its vectors have an order of their own."""

    model: Model
    _trained: Pieces  # of the whole model's vector, as is the rest
    _rest: Pieces

    def enter(self, params: Tensor) -> Tensor:
        """A vector of the whole model as one of this."""
        return torch.cat((self._trained.take(params), self._rest.take(params)))

    def leave(self, params: Tensor) -> Tensor:
        """A vector of this as one of the whole model."""
        trained, rest = torch.split(params, [self._trained.numel, self._rest.numel])
        return self._rest.put(self._trained.put(params, trained), rest)


@lru_cache(maxsize=8)
def frozen(model: Model, names: frozenset[str]) -> Frozen:
    """`model` with the parameters of these names frozen: to the last bit, whatever the optimizer and its pulls.

    They become buffers, which no step touches. Equal arguments give the same object, so that clients share it. Running
    statistics of normalisation layers are buffers in any case, and go on to follow the batches.
    """
    layout = model.layout
    trained = [entry for entry in layout.entries[: layout.trainable] if entry.name not in names]
    rest = [entry for entry in layout.entries if entry not in trained]
    module = model.copy().module
    for entry in layout.entries[: layout.trainable]:
        if entry.name in names:
            _freeze(module, entry.name)
    pieces = [Pieces(layout, {entry.name for entry in entries}) for entries in (trained, rest)]
    entries, offset = [], 0
    for entry in (*trained, *rest):
        entries.append(type(entry)(entry.name, entry.shape, entry.stride, offset))
        offset += entry.numel
    own = Layout(tuple(entries), offset, len(trained))
    initial = torch.cat([part.take(model.initial) for part in pieces])
    counters = [(buffer, buffer.clone()) for buffer in module.buffers() if not buffer.is_floating_point()]
    twin = Model(module, own, model.loss, initial, model.draws, own.tensors(module), counters)
    return Frozen(twin, *pieces)


def _freeze(module: nn.Module, name: str) -> None:
    """Make a parameter a buffer. It stays the same tensor, for modules that hold on to it (recurrent ones do)."""
    path, _, last = name.rpartition(".")
    owner = module.get_submodule(path)
    parameter = getattr(owner, last).requires_grad_(False)
    delattr(owner, last)
    owner.register_buffer(last, parameter)


def matching(layout: Layout, patterns: Iterable[str]) -> frozenset[str]:
    """The names of all entries that one of some patterns fits, such as `head.*`, case and all."""
    patterns = tuple(patterns)
    return frozenset(e.name for e in layout.entries if any(fnmatchcase(e.name, pattern) for pattern in patterns))


def layers_of(layout: Layout) -> dict[str, frozenset[str]]:
    """The names of each layer's entries, by the layer's, in the order in which the module declares layers.

    A layer is a module with parameters of its own.
    """
    owners = dict.fromkeys(entry.name.rpartition(".")[0] for entry in layout.entries[: layout.trainable])
    return {
        owner: frozenset(entry.name for entry in layout.entries if entry.name.rpartition(".")[0] == owner)
        for owner in owners
    }
