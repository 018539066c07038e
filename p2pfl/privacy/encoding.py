"""Vectors of floats as integers that can be added under masks, and their sum as a mean of floats.

An entry x of an update that weighs w, in [0, 1], becomes floor((clip(x w) + c) (2^b - 1) / 2c + u), with u uniform in
[0, 1): on average it is exact. Before the entries go three figures, on the scale from 0 to 1: the weight itself, the
loss times the weight, and the share of entries that were clipped. So a sum tells the mean that is weighted by w, and
nobody but the client knows how many examples it has.

The sum of n such integers is at most n (2^b - 1): what is more was not encoded so by somebody.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from p2pfl.crypto.drg import random_stream
from p2pfl.errors import RemoteProtocolError, require

__all__ = ["FIGURES", "MOST_BITS", "Encoding", "Mean", "Ring", "Words"]

Words = npt.NDArray[np.uint32] | npt.NDArray[np.uint64]
Floats = npt.NDArray[np.float32] | npt.NDArray[np.float64]
FIGURES = 3
"""Entries before those of the vector."""
_BITS = range(8, 25)
MOST_BITS = _BITS[-1]
"""Of an entry."""
_CHUNK = 1 << 16  # entries that are encoded at once: what is computed with stays in the cache
_DITHER_BYTES = 4  # for each entry


@dataclass(frozen=True, slots=True)
class Ring:
    """Integers modulo 2^bits, 32 or 64 of them, in which sums are made."""

    bits: int

    @property
    def dtype(self) -> np.dtype[np.uint32] | np.dtype[np.uint64]:
        """Of an array of such integers."""
        return np.dtype("<u4") if self.bits == 32 else np.dtype("<u8")

    def array(self, buffer: memoryview) -> Words:
        """The integers in a buffer, in place."""
        words: Words = np.frombuffer(buffer, dtype="<u4") if self.bits == 32 else np.frombuffer(buffer, dtype="<u8")
        return words

    @property
    def word_bytes(self) -> int:
        """Of one integer."""
        return self.bits // 8


@dataclass(frozen=True, slots=True)
class Mean:
    """What a sum tells: `vector` is the weighted mean, float64, `weight` and `loss` are those of all together."""

    vector: npt.NDArray[np.float64]
    weight: float
    """The sum of the clients' weights."""
    loss: float
    """Their weighted mean; NaN: not told."""
    clipped: float
    """The share of entries that were too large; NaN: not told."""


@dataclass(frozen=True, slots=True)
class Encoding:
    """How many bits an entry has, what it is clipped to, and what losses are clipped to. Raises ConfigError.

    >>> Encoding(bits=16, clip=4.0).error < 2e-4
    True
    """

    bits: int = 16
    clip: float = 4.0
    most_loss: float = 16.0

    def __post_init__(self) -> None:
        inside = f"{_BITS[0]} to {_BITS[-1]}"
        require(self.bits in _BITS, f"course.secagg.bits is {self.bits}; it must be one of {inside}")
        for name in ("clip", "most_loss"):
            value = getattr(self, name)
            require(0 < value < math.inf, f"course.secagg.{name} is {value}; it must be a positive number")

    @property
    def top(self) -> int:
        """The largest integer that an entry may be."""
        return (1 << self.bits) - 1

    @property
    def error(self) -> float:
        """By how much at most one client's entry x w is changed, if it is not clipped."""
        return 2 * self.clip / self.top

    def size(self, numel: int) -> int:
        """Entries of an encoded vector of so many numbers."""
        return numel + FIGURES

    def least(self, listed: int) -> int:
        """How many vectors a sum must have, of a list of so many, because of how they are encoded."""
        return 1

    def ring(self, most_clients: int) -> Ring:
        """The smaller ring in which the sum of so many does not wrap around, at most 2^40 clients."""
        return Ring(32 if self.bits + math.ceil(math.log2(max(most_clients, 1))) <= 32 else 64)

    def encode(self, vector: Floats, weight: float, loss: float, ring: Ring, seed: bytes) -> Words:
        """The integers of a finite vector (d,): shape (d + 3,). `weight` in [0, 1]; `seed`: 32 bytes for this alone.

        Raises ValueError for a weight or an entry that is none.
        """
        words: Words = np.empty(len(vector) + FIGURES, dtype=ring.dtype)
        for _ in self.encoding(words, vector, weight, loss, seed):
            pass
        return words

    def encoding(self, words: Words, vector: Floats, weight: float, loss: float, seed: bytes) -> Iterator[None]:
        """`encode` into `words`, in steps of a millisecond or two."""
        if not 0 <= weight <= 1 or not np.isfinite(vector).all():
            raise ValueError("only a finite vector of a weight between 0 and 1 can be encoded")
        dither = np.frombuffer(random_stream(seed, _DITHER_BYTES * len(words)), dtype="<u4")
        clipped: int = 0
        for start in range(0, len(vector), _CHUNK):
            scaled = vector[start : start + _CHUNK].astype(np.float64) * weight
            clipped += int(np.count_nonzero(np.abs(scaled) > self.clip))
            shifted = (np.clip(scaled, -self.clip, self.clip) + self.clip) * (self.top / (2 * self.clip))
            into = slice(start + FIGURES, start + FIGURES + len(scaled))
            words[into] = self._round(shifted, dither[into])
            yield
        relative = min(max(loss, 0.0) / self.most_loss, 1.0) if math.isfinite(loss) else 0.0
        share = clipped / len(vector) if len(vector) else 0.0
        figures = np.array([weight, relative * weight, share])
        words[:FIGURES] = self._round(figures * self.top, dither[:FIGURES])

    def decode(self, total: Words, clients: int) -> Mean:
        """The mean of so many clients' vectors, of the sum (d + 3,) of their integers.

        Raises RemoteProtocolError where the sum cannot be one of so many, or all weights are 0.
        """
        self.check(total, clients)
        figures = total[:FIGURES].astype(np.float64) / self.top
        weight = float(figures[0])
        if weight <= 0:
            raise RemoteProtocolError("all updates of the sum have no weight")
        vector = total[FIGURES:].astype(np.float64)
        vector *= 2 * self.clip / self.top
        vector -= self.clip * clients
        vector /= weight
        return Mean(vector, weight, float(figures[1]) / weight * self.most_loss, float(figures[2]) / clients)

    def check(self, total: Words, clients: int) -> None:
        """Raise RemoteProtocolError where a sum is larger than so many clients can make it."""
        most = clients * self.top
        if len(total) and int(total.max()) > most:
            raise RemoteProtocolError(
                f"the sum of {clients} updates has entries beyond {most}: somebody's is out of range"
            )

    def _round(self, shifted: npt.NDArray[np.float64], dither: npt.NDArray[np.uint32]) -> npt.NDArray[np.float64]:
        """Up or down, at random, so that the mean is exact. What is at the top stays there."""
        return np.minimum(np.floor(shifted + dither * (1 / 2**32)), self.top)
