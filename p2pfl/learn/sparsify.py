"""Stages that send fewer numbers: some of the coordinates, or factors of low rank."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from p2pfl.learn.params import Layout
from p2pfl.learn.transform import NoState, Payload, Stage, Step, TransformState, pack, packed_bytes, unpack
from p2pfl.wire.tensor import DType, Schema, TensorSpec

__all__ = ["low_rank", "random_k", "top_k"]

_SHORT = 1 << 16  # places below this take two bytes


@dataclass(frozen=True, slots=True)
class _Places:
    """Some places of many, in order: as a bit for each of the many, or as a list, whichever is shorter."""

    numel: int
    count: int

    @property
    def spec(self) -> TensorSpec:
        dtype: DType = "u16" if self.numel <= _SHORT else "i32"
        listed = TensorSpec("places", dtype, (self.count,))
        marks = TensorSpec("marks", "u8", (packed_bytes(self.numel, 1),))
        return min(listed, marks, key=lambda spec: spec.nbytes)

    def encode(self, places: Tensor) -> Tensor:
        if self.spec.name == "marks":
            marked = torch.zeros(self.numel, dtype=torch.uint8)
            marked[places] = 1
            return pack(marked, 1)
        return places.to(torch.uint16 if self.spec.dtype == "u16" else torch.int32)

    def decode(self, sent: Tensor) -> Tensor:
        """int64. Raises ValueError for what are not just so many places in order."""
        marked = self.spec.name == "marks"
        places = unpack(sent, 1, self.numel).nonzero()[:, 0] if marked else sent.to(torch.int64)
        in_order = len(places) == self.count and bool((places[1:] > places[:-1]).all())
        if not in_order or places[0] < 0 or places[-1] >= self.numel:
            raise ValueError(f"places came that are not {self.count} of {self.numel} in order")
        return places


@dataclass(frozen=True, slots=True)
class _TopK(NoState):
    """The numbers of the largest magnitude, and where they stood; the others are zero."""

    places: _Places

    @property
    def schema(self) -> Schema:
        return (self.places.spec,)

    @property
    def rest(self) -> int:
        return self.places.count

    def split(self, vector: Tensor, rng: torch.Generator) -> tuple[Payload, Tensor]:
        places = torch.topk(vector.abs(), self.rest, sorted=False).indices.sort().values
        return (self.places.encode(places),), vector[places]

    def decode(self, aside: Payload, rest: Tensor) -> Tensor:
        return torch.zeros(self.places.numel).index_put_((self.places.decode(aside[0]),), rest)


@dataclass(frozen=True, slots=True)
class _RandomK(NoState):
    """Numbers that are drawn at random; their places follow from a seed, which is all that is sent of them."""

    numel: int
    rest: int
    unbiased: bool = True

    @property
    def schema(self) -> Schema:
        return (TensorSpec("seed", "i64", (1,)),)

    def split(self, vector: Tensor, rng: torch.Generator) -> tuple[Payload, Tensor]:
        seed = torch.randint(1 << 62, (1,), generator=rng)
        return (seed,), vector[self._places(seed)]

    def decode(self, aside: Payload, rest: Tensor) -> Tensor:
        if aside[0] < 0:
            raise ValueError("a seed came that is negative")
        scale = self.numel / self.rest if self.unbiased else 1.0
        return torch.zeros(self.numel).index_put_((self._places(aside[0]),), rest * scale)

    def _places(self, seed: Tensor) -> Tensor:
        """By raw bits, which numpy keeps the same in all its versions, as it does not keep its permutations."""
        drawn = np.random.PCG64(int(seed)).random_raw(self.numel)
        return torch.from_numpy(np.sort(np.argpartition(drawn, self.rest - 1)[: self.rest]))


@dataclass(frozen=True, slots=True)
class _Matrix:
    """A parameter as a matrix within the flat vector: by its first dimension, and all others together."""

    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def sides(self) -> tuple[int, int]:
        return self.shape[0], math.prod(self.shape[1:])

    def of(self, vector: Tensor) -> Tensor:
        """(sides). A view of `vector` where it lies so."""
        return self._view(vector).reshape(self.sides)

    def put(self, vector: Tensor, matrix: Tensor) -> None:
        self._view(vector).copy_(matrix.view(self.shape))

    def _view(self, vector: Tensor) -> Tensor:
        return vector.as_strided(self.shape, self.stride, vector.storage_offset() + self.offset)


@dataclass(frozen=True, slots=True)
class _LowRank:
    """Each matrix as the product of two of low rank, by one step of power iteration from those of the vector before;
    what is no matrix, or would not get smaller, goes on as it is. Nothing is aside: all of it can be quantized.

    T. Vogels, S. P. Karimireddy, M. Jaggi: "PowerSGD: Practical Low-Rank Gradient Compression for Distributed
    Optimization", NeurIPS 2019, https://arxiv.org/abs/1905.13727. Each client has factors of its own, where the paper
    averages the left one before it is made orthonormal: that takes a second exchange in each round.
    """

    numel: int
    rank: int
    matrices: tuple[_Matrix, ...]

    schema: Schema = ()

    @property
    def rest(self) -> int:
        return self.numel + sum(self.rank * sum(m.sides) - math.prod(m.sides) for m in self.matrices)

    def encode(self, vector: Tensor, state: TransformState, rng: torch.Generator) -> Step:
        factors, after = [], {}
        for at, place in enumerate(self.matrices):
            matrix, name = place.of(vector), f"right{at}"
            right = state[name] if name in state else torch.randn(place.sides[1], self.rank, generator=rng)
            left = torch.linalg.qr(matrix @ right).Q
            right = matrix.T @ left
            factors += [left.reshape(-1), right.reshape(-1)]
            after[name] = right
        return Step((), torch.cat([*factors, vector[self._others()]]), after)

    def decode(self, aside: Payload, rest: Tensor) -> Tensor:
        vector, at = torch.zeros(self.numel), 0
        for place in self.matrices:
            rows, columns = place.sides
            middle = at + rows * self.rank
            end = middle + columns * self.rank
            place.put(vector, rest[at:middle].view(rows, self.rank) @ rest[middle:end].view(columns, self.rank).T)
            at = end
        vector[self._others()] = rest[at:]
        return vector

    def _others(self) -> Tensor:
        """Which numbers are in no matrix, as a mask."""
        others = torch.ones(self.numel, dtype=torch.bool)
        for place in self.matrices:
            others[place.offset : place.offset + math.prod(place.shape)] = False
        return others


def top_k(fraction: float) -> Callable[[int], Stage]:
    """The share of largest magnitude: at least one number. See _TopK."""
    return lambda numel: _TopK(_Places(numel, _share(fraction, numel)))


def random_k(fraction: float, *, unbiased: bool = True) -> Callable[[int], Stage]:
    """A share that is drawn for each vector. See _RandomK. `unbiased`: scaled up so that the mean is right."""
    return lambda numel: _RandomK(numel, _share(fraction, numel), unbiased)


def low_rank(rank: int, layout: Layout) -> Callable[[int], Stage]:
    """For vectors that lie as `layout` says, or as its parameters do without the buffers. See _LowRank."""

    def pays(sides: tuple[int, int]) -> bool:
        return rank <= min(sides) and rank * sum(sides) < math.prod(sides)

    matrices = [_Matrix(e.offset, e.shape, e.stride) for e in layout.entries[: layout.trainable] if len(e.shape) > 1]
    return lambda numel: _LowRank(numel, rank, tuple(m for m in matrices if pays(m.sides)))


def _share(fraction: float, numel: int) -> int:
    return min(numel, max(1, round(fraction * numel)))
