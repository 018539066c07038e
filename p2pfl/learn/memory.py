"""Memory for large vectors. A fresh vector of 100 MB costs 25,000 page faults, more than the copy into it. Huge pages
halve that where the kernel leaves them to be asked for, as Linux does by default; and memory that was used before, by a
vector that is gone, costs nothing.
"""

from __future__ import annotations

import math
import mmap
import sys
import threading

import torch
from torch import Tensor

__all__ = ["duplicate", "empty"]

_LARGE_BYTES = 32 * 2**20  # smaller ones are taken from memory that the process has used before
_KEPT = 3  # pieces of memory that are kept for another vector
_UNUSED = 3  # references to pages that no tensor lies in: of the list, of the loop's variable, of the question itself

_used: list[mmap.mmap] = []
_lock = threading.Lock()


def empty(*shape: int) -> Tensor:
    """A new float32 tensor with no particular content."""
    size = 4 * math.prod(shape)
    if size < _LARGE_BYTES or not hasattr(mmap, "MADV_HUGEPAGE"):
        return torch.empty(shape)
    with _lock:
        return torch.frombuffer(_pages(size), dtype=torch.float32).view(shape)


def _pages(size: int) -> mmap.mmap:
    """Memory that no tensor lies in: the tensor that is made of it next holds on to it, which is how that is known."""
    for pages in _used:
        if len(pages) == size and sys.getrefcount(pages) == _UNUSED:
            return pages
    pages = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    pages.madvise(mmap.MADV_HUGEPAGE)
    _used.append(pages)
    del _used[:-_KEPT]  # what a tensor still lies in goes with it
    return pages


def duplicate(vector: Tensor) -> Tensor:
    """A copy of a float32 vector."""
    return empty(*vector.shape).copy_(vector)
