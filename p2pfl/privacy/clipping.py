"""How much one node's update may count for: the bound that noise is measured against, fixed or adaptive.

The adaptive bound: G. Andrew, O. Thakkar, B. McMahan, S. Ramaswamy: "Differentially Private Learning with Adaptive
Clipping", NeurIPS 2021, https://arxiv.org/abs/1905.03871.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["clipped", "is_within", "next_bound", "update_multiplier"]

_ROUNDING = 1 - 2.0**-22  # so that it holds after every number was rounded to float32, too


def _norm(vector: Tensor) -> float:
    return float(torch.linalg.vector_norm(vector, dtype=torch.float64))


def is_within(vector: Tensor, bound: float) -> bool:
    """Whether `clipped` leaves a vector as it is. One that is not finite is not within any bound."""
    return _norm(vector) <= bound * _ROUNDING


def clipped(vector: Tensor, bound: float) -> Tensor:
    """A whole update, all tensors in one, scaled down to the L2 norm `bound` if it is longer: float64, new memory.

    One with NaN or infinite numbers becomes zeros: whatever happens in training, nobody counts for more.

    >>> clipped(torch.tensor([3.0, 4.0]), 1.0).float()
    tensor([0.6000, 0.8000])
    """
    norm = _norm(vector)
    if not math.isfinite(norm):
        return torch.zeros_like(vector, dtype=torch.float64)
    whole = vector.double()
    return whole.clone() if norm <= bound * _ROUNDING else whole * (bound * _ROUNDING / norm)


def next_bound(bound: float, within: float, quantile: float, rate: float = 0.2) -> float:
    """The bound of the next round, when a share of the updates was `within` this one.

    >>> round(next_bound(0.1, 0.9, 0.5), 10)
    0.0923116346
    """
    return bound * math.exp(-rate * (within - quantile))


def update_multiplier(multiplier: float, count_sigma: float) -> float:
    """The noise multiplier for the updates, so that with a noisy count both together cost what `multiplier` says.

    `count_sigma`: of the noise in the sum over clients of 1/2 (within the bound) or -1/2. Raises ValueError where the
    count alone costs more.

    >>> round(update_multiplier(1.0, 5.0), 12)
    1.005037815259
    """
    left = multiplier**-2 - (2 * count_sigma) ** -2
    if left <= 0:
        raise ValueError(f"a count with noise of {count_sigma} costs more than a noise multiplier of {multiplier}")
    return 1 / math.sqrt(left)
