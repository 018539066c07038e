"""Stages that send fewer numbers: some of the coordinates, or factors of low rank."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from p2pfl.learn.params import Layout
from p2pfl.learn.transform import NoState, Payload, Stage, Step, TransformState, pack, packed_bytes, unpack
from p2pfl.wire.tensor import Schema, TensorSpec

__all__ = ["Matrix", "Places", "low_rank", "matrices", "outside", "random_k", "top_k"]


@dataclass(frozen=True, slots=True)
class Places:
    """Some places of many, in order: as a bit for each of the many, or in the code of Elias and Fano, whichever is
    shorter.

    P. Elias: "Efficient Storage and Retrieval by Content and Address of Static Files", Journal of the ACM, 1974,
    https://doi.org/10.1145/321812.321820. Within half a bit a place of what is least on average, as Golomb's code is;
    but as long whatever the places are, so that peers can agree on it.
    """

    numel: int
    count: int

    @property
    def spec(self) -> TensorSpec:
        coded = packed_bytes(self.count * self._low, 1) + packed_bytes(self._steps, 1)
        marks = TensorSpec("marks", "u8", (packed_bytes(self.numel, 1),))
        return min(TensorSpec("places", "u8", (coded,)), marks, key=lambda spec: spec.nbytes)

    @property
    def _low(self) -> int:
        """So many low bits of each place are written as they are."""
        return (self.numel // self.count).bit_length() - 1

    @property
    def _steps(self) -> int:
        """Bits that the high bits of all take: a one for each place, after a zero for each step of them."""
        return self.count + (self.numel - 1 >> self._low)

    def encode(self, places: Tensor) -> Tensor:
        """Bytes (spec.nbytes,) for places (count,), int64, each larger than the one before."""
        if self.spec.name == "marks":
            return pack(_ones(places, self.numel), 1)
        low = places.unsqueeze(1) >> torch.arange(self._low) & 1
        steps = _ones((places >> self._low) + torch.arange(self.count), self._steps)
        return torch.cat((pack(low.reshape(-1).to(torch.uint8), 1), pack(steps, 1)))

    def decode(self, sent: Tensor) -> Tensor:
        """int64. Raises ValueError for what are not just so many places in order."""
        places = _where(sent, self.numel) if self.spec.name == "marks" else self._decoded(sent)
        in_order = len(places) == self.count and bool((places[1:] > places[:-1]).all())
        if not in_order or places[0] < 0 or places[-1] >= self.numel:
            raise ValueError(f"places came that are not {self.count} of {self.numel} in order")
        return places

    def _decoded(self, sent: Tensor) -> Tensor:
        split = packed_bytes(self.count * self._low, 1)
        steps = _where(sent[split:], self._steps)
        if len(steps) != self.count:
            return steps  # too many or too few, as whoever called will see
        low = unpack(sent[:split], 1, self.count * self._low).view(self.count, self._low).to(torch.int64)
        return (steps - torch.arange(self.count) << self._low) + (low << torch.arange(self._low)).sum(dim=1)


def _ones(places: Tensor, length: int) -> Tensor:
    return torch.zeros(length, dtype=torch.uint8).index_fill_(0, places, 1)


def _where(packed: Tensor, length: int) -> Tensor:
    return unpack(packed, 1, length).nonzero()[:, 0]


@dataclass(frozen=True, slots=True)
class _TopK(NoState):
    """The numbers of the largest magnitude, and where they stood; the others are zero."""

    places: Places

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
class Matrix:
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
        self._view(vector).copy_(matrix.reshape(self.shape))

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
    matrices: tuple[Matrix, ...]

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
        return Step((), torch.cat([*factors, vector[outside(self.matrices, self.numel)]]), after)

    def decode(self, aside: Payload, rest: Tensor) -> Tensor:
        vector, at = torch.zeros(self.numel), 0
        for place in self.matrices:
            rows, columns = place.sides
            middle = at + rows * self.rank
            end = middle + columns * self.rank
            place.put(vector, rest[at:middle].view(rows, self.rank) @ rest[middle:end].view(columns, self.rank).T)
            at = end
        vector[outside(self.matrices, self.numel)] = rest[at:]
        return vector


def top_k(fraction: float) -> Callable[[int], Stage]:
    """The share of largest magnitude: at least one number. See _TopK."""
    return lambda numel: _TopK(Places(numel, _share(fraction, numel)))


def random_k(fraction: float, *, unbiased: bool = True) -> Callable[[int], Stage]:
    """A share that is drawn for each vector. See _RandomK. `unbiased`: scaled up so that the mean is right."""
    return lambda numel: _RandomK(numel, _share(fraction, numel), unbiased)


def low_rank(rank: int, layout: Layout) -> Callable[[int], Stage]:
    """For vectors that lie as `layout` says, or as its parameters do without the buffers. See _LowRank."""

    return lambda numel: _LowRank(numel, rank, matrices(layout, rank))


def matrices(layout: Layout, rank: int) -> tuple[Matrix, ...]:
    """The parameters that are larger than two factors of this rank."""

    def pays(sides: tuple[int, int]) -> bool:
        return rank <= min(sides) and rank * sum(sides) < math.prod(sides)

    found = [Matrix(e.offset, e.shape, e.stride) for e in layout.entries[: layout.trainable] if len(e.shape) > 1]
    return tuple(matrix for matrix in found if pays(matrix.sides))


def outside(matrices: Sequence[Matrix], numel: int) -> Tensor:
    """Which numbers of a vector are in no matrix, as a mask."""
    others = torch.ones(numel, dtype=torch.bool)
    for place in matrices:
        others[place.offset : place.offset + math.prod(place.shape)] = False
    return others


def _share(fraction: float, numel: int) -> int:
    return min(numel, max(1, round(fraction * numel)))
