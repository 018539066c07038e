"""What a process and all that it has started take of the machine, as Linux tells it."""

from __future__ import annotations

import os
import time
from collections import defaultdict
from pathlib import Path

__all__ = ["children", "cpu_seconds", "peak_bytes", "proportional_bytes"]

PROC = Path("/proc")
_TICK = os.sysconf("SC_CLK_TCK")


def children(pid: int) -> list[int]:
    """Its children, theirs, and so on."""
    of: defaultdict[int, list[int]] = defaultdict(list)
    for entry in PROC.iterdir():
        if entry.name.isdigit() and (fields := _stat(int(entry.name))):
            of[int(fields[1])].append(int(entry.name))
    found, open_ = [], [pid]
    while open_:
        below = of[open_.pop()]
        found += below
        open_ += below
    return found


def cpu_seconds() -> float:
    """Of this process to the microsecond; of those below it, living and waited for, to 10 ms."""
    ticks = sum(sum(map(int, _stat(pid)[11:15])) for pid in children(os.getpid()))
    waited = os.times()
    return time.process_time() + ticks / _TICK + waited.children_user + waited.children_system


def peak_bytes() -> int:
    """The most memory that this process ever had, by itself. Not ru_maxrss: that remembers who started it."""
    return _kilobytes(PROC / "self/status", "VmHWM:") * 1024


def proportional_bytes(pid: int) -> int:
    """What a process and those below it have now, pages that several share counted once."""
    return 1024 * sum(_kilobytes(PROC / str(each) / "smaps_rollup", "Pss:") for each in (pid, *children(pid)))


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat from the state on; empty counts for a process that is gone."""
    try:
        return (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ["X", "0", *["0"] * 20]


def _kilobytes(path: Path, name: str) -> int:
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith(name)), 0)
