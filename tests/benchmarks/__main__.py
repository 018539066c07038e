"""All benchmarks, one after the other: `python -m tests.benchmarks [SCENARIO ...] [--json FILE]`.

Ratios within one run are what counts: the machine is what it is. Run it on an idle one. Each has options of its own,
as in `python -m tests.benchmarks.simulation --help`.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import orjson

SCENARIOS = ("footprint", "noop", "link", "gossip", "masking", "simulation")
MEASURES = {"simulation"}  # these write JSON of their own, with every single measurement


def main() -> int:
    """The exit code: 1 if a benchmark failed."""
    parser = argparse.ArgumentParser("python -m tests.benchmarks", description=__doc__)
    parser.add_argument("scenarios", nargs="*", default=SCENARIOS, help=f"of {', '.join(SCENARIOS)}; default all")
    parser.add_argument("--json", type=Path, help="write what was printed there, too, and what was measured")
    options = parser.parse_args()
    found, failed = {}, False
    for name in options.scenarios:
        print(f"-- {name}", flush=True)
        found[name], fine = run(name)
        failed |= not fine
    if options.json is not None:
        options.json.write_bytes(orjson.dumps(found, option=orjson.OPT_INDENT_2))
    return int(failed)


def run(name: str) -> tuple[Any, bool]:
    """What a benchmark found, and whether it came through. It has a process of its own, for its memory and imports."""
    with tempfile.TemporaryDirectory(prefix="p2pfl-bench-") as folder:
        measured = Path(folder) / "measured.json"
        options = ["--json", str(measured)] if name in MEASURES else []
        command = [sys.executable, "-m", f"tests.benchmarks.{name}", *options]
        done = subprocess.run(command, check=False, text=True, stdout=subprocess.PIPE)
        print(done.stdout, flush=True)
        found = orjson.loads(measured.read_bytes()) if measured.exists() else done.stdout.splitlines()
    if done.returncode:
        print(f"-- {name} FAILED", flush=True)
    return found, not done.returncode


if __name__ == "__main__":
    sys.exit(main())
