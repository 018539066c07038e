"""Memory for what is large. A fresh piece of 100 MB costs 25,000 page faults, more than to write into it. Huge pages
halve that where the kernel leaves them to be asked for, as Linux does by default; and memory that was used before, by
something that is gone, costs nothing.
"""

from __future__ import annotations

import mmap
import threading

__all__ = ["LARGE_BYTES", "allocate"]

LARGE_BYTES = 32 * 2**20  # smaller pieces are taken from memory that the process has used before
_KEPT = 3  # pieces of memory that are kept for somebody else

_used: list[mmap.mmap] = []
_lock = threading.Lock()


def allocate(size: int) -> memoryview:
    """Bytes to write into. What they hold before is no matter of anybody's: hand them out when all are written."""
    if size < LARGE_BYTES or not hasattr(mmap, "MADV_HUGEPAGE"):
        return memoryview(bytearray(size))
    with _lock:  # until the view holds on to its pages, which is how it is known that they are in use
        return memoryview(_pages(size))


def _pages(size: int) -> mmap.mmap:
    for pages in _used:
        if len(pages) == size and _unused(pages):
            return pages
    pages = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    pages.madvise(mmap.MADV_HUGEPAGE)
    _used.append(pages)
    del _used[:-_KEPT]  # whoever looks into one that goes keeps it alive
    return pages


def _unused(pages: mmap.mmap) -> bool:
    """Whether no view of them is left: Python refuses to resize what somebody looks into."""
    try:
        pages.resize(len(pages))
    except BufferError:
        return False
    return True
