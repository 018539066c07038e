"""What it costs to be there: `python -m tests.benchmarks.footprint`.

Seconds of `import p2pfl` in a fresh interpreter (target 0.4), and the memory of an idle listening node (target 60 MB);
an interpreter that imports nothing is the baseline.
"""

from __future__ import annotations

import statistics
import subprocess
import sys

IMPORT = "import time; t = time.perf_counter(); import p2pfl; p2pfl.Node; print(time.perf_counter() - t)"
BARE = 'print([int(l.split()[1]) for l in open("/proc/self/status") if l.startswith("VmRSS")][0] / 1024)'
IDLE = f"""
import asyncio
from p2pfl import Node

async def main():
    async with Node(listen="127.0.0.1:0"):
        await asyncio.sleep(0.3)
        {BARE}

asyncio.run(main())
"""


def measure(program: str, times: int = 5) -> float:
    """The median of what a program prints."""
    runs = (subprocess.run([sys.executable, "-c", program], check=True, capture_output=True) for _ in range(times))
    return statistics.median(float(run.stdout) for run in runs)


def main(arguments: list[str] | None = None) -> list[tuple[str, str]]:
    return [
        ("import p2pfl and its Node, s (target 0.4)", f"{measure(IMPORT):.3f}"),
        ("bare interpreter, MB", f"{measure(BARE):.1f}"),
        ("idle listening node, MB (target 60)", f"{measure(IDLE):.1f}"),
    ]


if __name__ == "__main__":
    for label, value in main():
        print(f"{label:48} {value:>10}")
