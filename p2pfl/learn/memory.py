"""Memory for large vectors. A fresh vector of 100 MB costs 25,000 page faults, more than the copy into it; huge pages
halve that where the kernel leaves them to be asked for, as Linux does by default.
"""

from __future__ import annotations

import math
import mmap

import torch
from torch import Tensor

__all__ = ["duplicate", "empty"]

_LARGE_BYTES = 32 * 2**20  # smaller ones are taken from memory that the process has used before


def empty(*shape: int) -> Tensor:
    """A new float32 tensor with no particular content."""
    size = 4 * math.prod(shape)
    if size < _LARGE_BYTES or not hasattr(mmap, "MADV_HUGEPAGE"):
        return torch.empty(shape)
    pages = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)  # goes when the tensor's storage goes
    pages.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(pages, dtype=torch.float32).view(shape)


def duplicate(vector: Tensor) -> Tensor:
    """A copy of a float32 vector."""
    return empty(*vector.shape).copy_(vector)
