"""Memory that a process shares with those it forks, as tensors."""

from __future__ import annotations

import mmap
import os
import weakref
from collections import defaultdict

import torch
from torch import Tensor

__all__ = ["Arena"]

_SMALLEST = 64  # bytes of a cache line


class Arena:
    """A tensor's place is used again once the tensor, and whatever else looks into it, is gone.

    Places are powers of two, so that any is as good as another of its size. What has never been used takes up no
    memory, nor does the file have a name: all is gone with the last process that has it.
    """

    def __init__(self) -> None:
        file = os.memfd_create("p2pfl")
        try:
            os.ftruncate(file, 2 * os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
            self._bytes = memoryview(mmap.mmap(file, 0))
        finally:
            os.close(file)
        self._start = torch.frombuffer(self._bytes, dtype=torch.uint8).data_ptr()
        self._used = 0
        self._free: defaultdict[int, list[int]] = defaultdict(list)  # places by their size

    def empty(self, numel: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """A new vector with no particular content. Raises MemoryError if nothing is left."""
        if numel == 0:
            return torch.empty(0, dtype=dtype)
        size = max(_SMALLEST, 1 << (numel * dtype.itemsize - 1).bit_length())
        free = self._free[size]
        if not free:
            if self._used + size > len(self._bytes):
                raise MemoryError("the memory that is shared with other processes is used up")
            free.append(self._used)
            self._used += size
        at = free.pop()
        place = self._bytes[at : at + size]
        # Of the place and not of the tensor, because it is the place that views and arrays of the tensor keep alive.
        weakref.finalize(place, free.append, at).atexit = False
        return torch.frombuffer(place, dtype=dtype, count=numel)

    def copy(self, vector: Tensor) -> Tensor:
        """The same numbers, here; the vector itself if it lies here."""
        if vector.is_contiguous() and 0 <= self.offset(vector) < self._used:
            return vector
        return self.empty(vector.numel(), vector.dtype).copy_(vector)

    def offset(self, vector: Tensor) -> int:
        """Where a vector of this arena lies, in bytes: what another process finds it by. Any number if it is empty."""
        return vector.data_ptr() - self._start

    def view(self, offset: int, numel: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """What another process has put there, not copied."""
        if numel == 0:
            return torch.empty(0, dtype=dtype)
        return torch.frombuffer(self._bytes, dtype=dtype, count=numel, offset=offset)
