"""A model's flat vector as numpy arrays, for nodes that have no torch: nothing here needs it."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from p2pfl.errors import ConfigError

__all__ = ["ArrayLayout", "Floats", "Laid", "vector_hash"]

_VECTOR = "params"  # what a whole vector is called

Floats = npt.NDArray[np.float32]
Laid = tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...]
"""Name, shape and strides (in elements) of the arrays that lie one after the other in a vector: Layout.schema."""


@dataclass(frozen=True, slots=True)
class ArrayLayout:
    """How named arrays lie in one flat float32 vector."""

    entries: Laid

    def __post_init__(self) -> None:
        """Raises ConfigError for strides that leave gaps: what a peer has said may not reach beyond the vector."""
        for name, shape, stride in self.entries:
            if len(stride) != len(shape) or min(shape, default=1) < 0 or not _is_dense(shape, stride):
                raise ConfigError(
                    f"layout: {name!r} of shape {shape} has strides {stride}, which leave gaps; give dense ones"
                )

    @classmethod
    def of(cls, shapes: Mapping[str, tuple[int, ...]]) -> Self:
        """Arrays in rows, in this order: as a torch module has them, but for weights with four dimensions.

        >>> ArrayLayout.of({"weight": (3, 2), "bias": (3,)}).numel
        9
        """
        return cls(tuple((name, shape, _strides(shape, range(len(shape)))) for name, shape in shapes.items()))

    @property
    def numel(self) -> int:
        """Elements of the vector."""
        return sum(math.prod(shape) for _, shape, _ in self.entries)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The arrays' shapes, by name."""
        return {name: shape for name, shape, _ in self.entries}

    def views(self, flat: Floats) -> dict[str, Floats]:
        """The arrays, by name: to write to one is to write to `flat`, of shape (numel,)."""
        found, at = {}, 0
        for name, shape, stride in self.entries:
            order, size = _order(stride), math.prod(shape)
            piece = flat[at : at + size].reshape([shape[axis] for axis in order])
            found[name] = piece.transpose(np.argsort(order))
            at += size
        return found

    def write(self, flat: Floats, trained: Any) -> None:
        """Put what a training function gives, arrays by name or one vector, into `flat`. Raises ConfigError."""
        given: Mapping[str, Any] = trained if isinstance(trained, Mapping) else {_VECTOR: trained}
        wanted = self.views(flat) if isinstance(trained, Mapping) else {_VECTOR: flat}
        if given.keys() != wanted.keys():
            raise ConfigError(f"the training function gives {', '.join(given)}; return {', '.join(wanted)}")
        for name, place in wanted.items():
            if np.shape(given[name]) != place.shape:
                raise ConfigError(
                    f"the training function gives {name!r} of shape {np.shape(given[name])}; it must be {place.shape}"
                )
            place[...] = given[name]


def _order(stride: tuple[int, ...]) -> list[int]:
    """The axes as they lie in memory, the slowest first."""
    return sorted(range(len(stride)), key=lambda axis: -stride[axis])


def _is_dense(shape: tuple[int, ...], stride: tuple[int, ...]) -> bool:
    dense = _strides(shape, _order(stride))
    return all(size <= 1 or found == wanted for size, found, wanted in zip(shape, stride, dense, strict=True))


def _strides(shape: tuple[int, ...], order: list[int] | range) -> tuple[int, ...]:
    """Strides of an array whose axes lie in memory in this order."""
    strides, step = [0] * len(shape), 1
    for axis in reversed(order):
        strides[axis] = step
        step *= shape[axis]
    return tuple(strides)


def vector_hash(flat: Floats) -> str:
    """A digest of a vector's bytes: equal if and only if the models are equal to the last bit."""
    return hashlib.blake2b(flat.tobytes(), digest_size=16, person=b"p2pfl-model").hexdigest()
