"""Stages that write numbers with fewer bits: halves, uniform grids, QSGD, signs.

Where a scale is needed each bucket of numbers has its own, as in section 4 of the paper on QSGD: with one scale for all
of a long vector nearly every number would be rounded to nothing. After top-k, signs with one bucket are the sparse
ternary compression (STC) of F. Sattler, S. Wiedemann, K.-R. Müller, W. Samek: "Robust and Communication-Efficient
Federated Learning from Non-IID Data", IEEE Transactions on Neural Networks and Learning Systems, 2020,
https://arxiv.org/abs/1903.02891. Deviations: places in the code of Elias and Fano, not Golomb's; what goes down is the
difference to the initial model, without feedback, so that nobody needs the rounds that it was not in.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from p2pfl.learn.transform import NoState, Payload, Stage, finite, pack, packed_bytes, unpack
from p2pfl.wire.tensor import DType, Schema, TensorSpec

__all__ = ["bfloat16", "float16", "qsgd", "sign", "uniform"]


@dataclass(frozen=True, slots=True)
class _Half(NoState):
    """Two bytes a number, rounded to the nearest; what is too large becomes the largest there is."""

    numel: int
    dtype: torch.dtype
    wire: DType
    rest: int = 0

    @property
    def schema(self) -> Schema:
        return (TensorSpec("halves", self.wire, (self.numel,)),)

    def split(self, vector: Tensor, rng: torch.Generator) -> tuple[Payload, Tensor]:
        most = torch.finfo(self.dtype).max
        return (vector.clamp(-most, most).to(self.dtype),), torch.empty(0)

    def decode(self, aside: Payload, rest: Tensor) -> Tensor:
        finite(aside)
        return aside[0].to(torch.float32)


@dataclass(frozen=True, slots=True)
class _Buckets:
    """A vector as rows of `size` numbers, the last filled up with zeros."""

    numel: int
    size: int

    @property
    def count(self) -> int:
        return math.ceil(self.numel / self.size)

    def rows(self, vector: Tensor) -> Tensor:
        """(count, size); a copy where something is filled up."""
        return torch.nn.functional.pad(vector, (0, self.count * self.size - self.numel)).view(self.count, self.size)

    def flat(self, rows: Tensor) -> Tensor:
        """Rows, or what there is of each number of them, as a vector."""
        return rows.reshape(-1)[: self.numel]


@dataclass(frozen=True, slots=True)
class _Coded(NoState):
    """What the stages with buckets have in common: codes of some bits, and scales."""

    buckets: _Buckets
    bits: int
    rest: int = 0

    @property
    def scales(self) -> int:
        """How many each bucket has."""
        return 1

    @property
    def schema(self) -> Schema:
        return (
            TensorSpec("codes", "u8", (packed_bytes(self.buckets.numel, self.bits),)),
            TensorSpec("scales", "f32", (self.scales * self.buckets.count,)),
        )

    def written(self, codes: Tensor, scales: Tensor) -> tuple[Payload, Tensor]:
        """Codes (count, size) and scales (count, scales) as they are sent."""
        return (pack(self.buckets.flat(codes.to(torch.uint8)), self.bits), scales.reshape(-1)), torch.empty(0)

    def read(self, aside: Payload) -> tuple[Tensor, Tensor]:
        """The codes as float32 (count, size), and the scales (count, scales)."""
        packed, scales = aside
        finite([scales])
        codes = unpack(packed, self.bits, self.buckets.numel).to(torch.float32)
        return self.buckets.rows(codes), scales.view(self.buckets.count, self.scales)


class _Uniform(_Coded):
    """The nearest of 2^bits numbers at equal distances, from the least to the largest of a bucket."""

    __slots__ = ()

    @property
    def scales(self) -> int:
        return 2

    def split(self, vector: Tensor, rng: torch.Generator) -> tuple[Payload, Tensor]:
        rows = self.buckets.rows(vector)
        low, high = rows.aminmax(dim=1, keepdim=True)
        steps = (high - low) / ((1 << self.bits) - 1)
        codes = ((rows - low) / torch.where(steps > 0, steps, 1)).round_().clamp_(0, (1 << self.bits) - 1)
        return self.written(codes, torch.cat((low, steps), dim=1))

    def decode(self, aside: Payload, rest: Tensor) -> Tensor:
        codes, scales = self.read(aside)
        return self.buckets.flat(codes.mul_(scales[:, 1:]).add_(scales[:, :1]))


@dataclass(frozen=True, slots=True)
class _Qsgd(_Coded):
    """A sign and a level of 0 to s = 2^(bits-1) - 1 for each number, rounded up or down at random; the norm of each
    bucket.

    D. Alistarh, D. Grubic, J. Li, R. Tomioka, M. Vojnovic: "QSGD: Communication-Efficient SGD via Gradient Quantization
    and Encoding", NeurIPS 2017, https://arxiv.org/abs/1610.02132. Codes have a fixed length in place of Elias'.
    """

    unbiased: bool = True

    @property
    def levels(self) -> int:
        return (1 << (self.bits - 1)) - 1

    @property
    def variance(self) -> float:
        """The mean of |decode(encode(v)) - v|^2 is at most so many times |v|^2, if unbiased: lemma 3.1."""
        size, levels = min(self.buckets.size, self.buckets.numel), self.levels
        return min(size / levels**2, math.sqrt(size) / levels)

    def split(self, vector: Tensor, rng: torch.Generator) -> tuple[Payload, Tensor]:
        rows = self.buckets.rows(vector)
        norms = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
        wanted = rows.abs() * (self.levels / torch.where(norms > 0, norms, 1))
        levels = (wanted + torch.rand(rows.shape, generator=rng)).floor_().clamp_(0, self.levels)
        return self.written(levels * rows.sign() + self.levels, norms)

    def decode(self, aside: Payload, rest: Tensor) -> Tensor:
        codes, norms = self.read(aside)
        scale = self.levels if self.unbiased else self.levels * (1 + self.variance)
        return self.buckets.flat(codes.sub_(self.levels).mul_(norms / scale))


class _Sign(_Coded):
    """One bit a number, and the mean magnitude of each bucket.

    J. Bernstein, Y.-X. Wang, K. Azizzadenesheli, A. Anandkumar: "signSGD: Compressed Optimisation for Non-Convex
    Problems", ICML 2018, https://arxiv.org/abs/1802.04434; scaled as in the paper on error feedback.
    """

    __slots__ = ()

    def split(self, vector: Tensor, rng: torch.Generator) -> tuple[Payload, Tensor]:
        rows = self.buckets.rows(vector)
        filled = torch.full((self.buckets.count, 1), float(self.buckets.size))
        filled[-1] -= self.buckets.count * self.buckets.size - self.buckets.numel
        return self.written(rows >= 0, rows.abs().sum(dim=1, keepdim=True) / filled)

    def decode(self, aside: Payload, rest: Tensor) -> Tensor:
        codes, scales = self.read(aside)
        return self.buckets.flat(codes.mul_(2).sub_(1).mul_(scales))


def float16(numel: int) -> Stage:
    """IEEE halves: 11 bits of precision, up to 65504."""
    return _Half(numel, torch.float16, "f16")


def bfloat16(numel: int) -> Stage:
    """Brain halves: 8 bits of precision, and the range of float32."""
    return _Half(numel, torch.bfloat16, "bf16")


def uniform(bits: int, bucket: int = 512) -> Callable[[int], Stage]:
    """See _Uniform. `bits`: 1, 2, 4 or 8."""
    return lambda numel: _Uniform(_Buckets(numel, bucket), bits)


def qsgd(bits: int, bucket: int = 512, *, unbiased: bool = True) -> Callable[[int], Stage]:
    """See _Qsgd. `bits`: 2, 4 or 8. `unbiased=False`: scaled down so far that it is a contraction."""
    return lambda numel: _Qsgd(_Buckets(numel, bucket), bits, unbiased=unbiased)


def sign(bucket: int = 512) -> Callable[[int], Stage]:
    """See _Sign."""
    return lambda numel: _Sign(_Buckets(numel, bucket), 1)
