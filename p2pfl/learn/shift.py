"""Feature shift: the same kind of data, seen through each client's own instrument."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from p2pfl.errors import ConfigError
from p2pfl.learn.specs import PartitionSpec

__all__ = ["Shift", "shift_of_seat"]

_NOISE_STREAM = 0x6E6F697365  # keeps the noise apart from other draws with the same seed


@dataclass(frozen=True, slots=True)
class Shift:
    """One client's transform of its features: the same for the same examples in the same order."""

    kind: str  # rotation, noise or scale
    amount: float  # degrees; standard deviation; factor
    seed: int = 0

    def apply(self, x: Tensor) -> Tensor:
        """The shifted features, of the same shape. Rotation takes images (n, channels, height, width)."""
        match self.kind:
            case "rotation":
                return _rotate(x, self.amount)
            case "noise":
                generator = torch.Generator().manual_seed(self.seed)
                return x + self.amount * torch.randn(x.shape, generator=generator)
            case _:
                return x * self.amount

    def __str__(self) -> str:
        return f"{self.kind} {self.amount:.3g}"


def shift_of_seat(spec: PartitionSpec, seat: int, seats: int, seed: int, shape: tuple[int, ...]) -> Shift | None:
    """The shift of one client among `seats`: from none at the first seat to the full strength at the last.

    Noise by seat as in NIID-Bench (Li et al., ICDE 2022, https://arxiv.org/abs/2102.02079). `shape` is that of one
    example. Raises ConfigError if it is not that of an image and images are to be rotated.
    """
    if spec.shift == "none":
        return None
    if spec.shift == "rotation" and len(shape) != 3:
        raise ConfigError(
            f"partition.shift is rotation, and the examples have shape {shape}; only images can be rotated"
        )
    part = spec.shift_strength * seat / max(seats - 1, 1)
    amount = 1.0 + part if spec.shift == "scale" else part
    return Shift(spec.shift, amount, seed ^ _NOISE_STREAM ^ (seat << 40))


def _rotate(x: Tensor, degrees: float) -> Tensor:
    """Turn images about their middle, with bilinear sampling and black corners."""
    angle = math.radians(degrees)
    height, width = x.shape[-2:]
    cosine, sine = math.cos(angle), math.sin(angle)
    matrix = torch.tensor([[cosine, -sine * height / width, 0.0], [sine * width / height, cosine, 0.0]])
    grid = functional.affine_grid(matrix.expand(len(x), 2, 3), list(x.shape), align_corners=False)
    return functional.grid_sample(x, grid, align_corners=False)
