"""The Haar wavelet transform of a vector: coarse means and, level by level, what they leave out.

A. Haar: "Zur Theorie der orthogonalen Funktionensysteme", Mathematische Annalen 69, 1910. It is orthonormal: norms and
distances stay as they are.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["haar", "padded", "unhaar"]

_HALF = 0.5**0.5


def padded(numel: int, levels: int) -> int:
    """How many coefficients a vector of so many numbers has: it is filled up with zeros.

    >>> padded(17, 4)
    32
    """
    return -(-numel >> levels) << levels


def haar(vector: Tensor, levels: int) -> Tensor:
    """The coefficients (padded(n, levels),) of a vector (n,): the means, then the differences from coarse to fine.

    >>> haar(torch.tensor([3.0, 1.0, 2.0, 2.0]), 2).round(decimals=4).tolist()
    [4.0, 0.0, 1.4142, 0.0]
    """
    means = torch.nn.functional.pad(vector, (0, padded(len(vector), levels) - len(vector)))
    found: list[Tensor] = []
    for _ in range(levels):
        pairs = means.view(-1, 2)
        found.append((pairs[:, 0] - pairs[:, 1]) * _HALF)
        means = pairs.sum(dim=1) * _HALF
    return torch.cat([means, *reversed(found)])


def unhaar(coefficients: Tensor, levels: int, numel: int) -> Tensor:
    """The vector (numel,) that has these coefficients."""
    at = len(coefficients) >> levels
    means = coefficients[:at]
    for _ in range(levels):
        differences = coefficients[at : 2 * at]
        means = torch.stack((means + differences, means - differences), dim=1).view(-1) * _HALF
        at *= 2
    return means[:numel]
