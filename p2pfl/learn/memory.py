"""Memory for large vectors: see p2pfl.wire.memory, which the buffers of large messages come from, too."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from p2pfl.wire.memory import LARGE_BYTES, allocate

__all__ = ["duplicate", "empty"]


def empty(*shape: int) -> Tensor:
    """A new float32 tensor with no particular content."""
    size = 4 * math.prod(shape)
    if size < LARGE_BYTES:
        return torch.empty(shape)
    return torch.frombuffer(allocate(size), dtype=torch.float32).view(shape)


def duplicate(vector: Tensor) -> Tensor:
    """A copy of a float32 vector."""
    return empty(*vector.shape).copy_(vector)
