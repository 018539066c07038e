"""How much memory there is to share out."""

from __future__ import annotations

import os
from contextlib import suppress
from functools import cache
from pathlib import Path

__all__ = ["ram_bytes"]

_ASSUMED = 8 << 30  # where the system does not say: Windows
_CONTAINER = Path("/sys/fs/cgroup/memory.max")


@cache
def ram_bytes() -> int:
    """Bytes of this host's memory, or of what the container that we run in may use of it."""
    size = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else _ASSUMED
    with suppress(OSError, ValueError):  # no container, or one without a bound, which is written "max"
        size = min(size, int(_CONTAINER.read_text()))
    return size
