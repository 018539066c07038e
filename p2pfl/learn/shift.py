"""Shift: the same kind of data, seen through an instrument of one's own, called by other names, in time."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from p2pfl.errors import ConfigError
from p2pfl.learn.specs import PartitionSpec

__all__ = ["Examples", "Shift", "shift_of_seat"]

_NOISE_STREAM = 0x6E6F697365  # keeps the noise apart from other draws with the same seed
_CONCEPT_STREAM = 4  # a random stream apart from those of other modules


class Examples(NamedTuple):
    """What the examples of a data set are like."""

    shape: tuple[int, ...]  # of one
    classes: int  # 0: there are none


@dataclass(frozen=True, slots=True)
class Shift:
    """One client's transform of its examples: the same for the same examples in the same order."""

    kind: str  # rotation, noise, scale or none
    amount: float  # degrees; standard deviation; factor
    seed: int = 0
    names: tuple[int, ...] = ()  # what each class is called here, where that is something else
    onset: int = 0  # rounds over which it sets in

    def apply(self, x: Tensor) -> Tensor:
        """The shifted features, of the same shape. Rotation takes images (n, channels, height, width)."""
        match self.kind:
            case "rotation":
                return _rotate(x, self.amount)
            case "noise":
                generator = torch.Generator().manual_seed(self.seed)
                return x + self.amount * torch.randn(x.shape, generator=generator)
            case "scale":
                return x * self.amount
            case _:
                return x

    def relabel(self, y: Tensor) -> Tensor:
        """The classes as they are called here."""
        return torch.tensor(self.names, dtype=y.dtype)[y.long()] if self.names else y

    def at(self, round: int) -> Shift | None:
        """What there is of it in a round, from 0."""
        if round >= self.onset:
            return replace(self, onset=0)
        neutral = 1.0 if self.kind == "scale" else 0.0
        amount = neutral + (self.amount - neutral) * round / self.onset
        return None if self.kind == "none" else replace(self, amount=amount, names=(), onset=0)

    def __str__(self) -> str:
        parts = [] if self.kind == "none" else [f"{self.kind} {self.amount:.3g}"]
        parts += ["own names"] if self.names else []
        return " and ".join(parts) + (f" after {self.onset} rounds" if self.onset else "")


def shift_of_seat(spec: PartitionSpec, seat: int, seats: int, seed: int, examples: Examples) -> Shift | None:
    """The shift of one client among `seats`: from none at the first seat to the full strength at the last.

    Noise by seat as in NIID-Bench (Li et al., ICDE 2022, https://arxiv.org/abs/2102.02079), names of classes by groups
    as in F. Sattler, K.-R. Müller, W. Samek: "Clustered Federated Learning", TNNLS 2020,
    https://arxiv.org/abs/1910.01991. Raises ConfigError for data that cannot be shifted so.
    """
    if spec.shift == "rotation" and len(examples.shape) != 3:
        raise ConfigError(
            f"partition.shift is rotation, and the examples have shape {examples.shape}; only images can be rotated"
        )
    if spec.concepts > 1 and examples.classes < 2:
        raise ConfigError(
            f"partition.concepts is {spec.concepts}, and there are no classes to call by other names; leave it out"
        )
    if spec.shift == "none" and seat % spec.concepts == 0:
        return None
    part = spec.shift_strength * seat / max(seats - 1, 1)
    amount = 1.0 + part if spec.shift == "scale" else part
    names = _names(seat % spec.concepts, examples.classes, seed)
    return Shift(spec.shift, amount, seed ^ _NOISE_STREAM ^ (seat << 40), names, spec.drift_rounds)


def _names(concept: int, classes: int, seed: int) -> tuple[int, ...]:
    if concept == 0:
        return ()
    return tuple(np.random.default_rng([seed, _CONCEPT_STREAM, concept]).permutation(classes).tolist())


def _rotate(x: Tensor, degrees: float) -> Tensor:
    """Turn images about their middle, with bilinear sampling and black corners."""
    angle = math.radians(degrees)
    height, width = x.shape[-2:]
    cosine, sine = math.cos(angle), math.sin(angle)
    matrix = torch.tensor([[cosine, -sine * height / width, 0.0], [sine * width / height, cosine, 0.0]])
    grid = functional.affine_grid(matrix.expand(len(x), 2, 3), list(x.shape), align_corners=False)
    return functional.grid_sample(x, grid, align_corners=False)
