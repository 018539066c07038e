"""All benchmarks, one after the other: `python -m tests.benchmarks [--json FILE]`.

Ratios within one run are what counts: the machine is what it is. Run it on an idle one.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

import orjson

SCENARIOS = ("footprint", "noop", "link", "gossip")


def main() -> None:
    parser = argparse.ArgumentParser("python -m tests.benchmarks", description=__doc__)
    parser.add_argument("scenarios", nargs="*", default=SCENARIOS, help=f"of {', '.join(SCENARIOS)}; default all")
    parser.add_argument("--json", type=Path, help="write what was printed there, too")
    options = parser.parse_args()
    found = {}
    for name in options.scenarios:
        print(f"-- {name}", flush=True)  # each in a process of its own: memory and imports of one are not the other's
        run = subprocess.run(
            [sys.executable, "-m", f"tests.benchmarks.{name}"], check=True, text=True, capture_output=True
        )
        print(run.stdout, flush=True)
        found[name] = run.stdout.splitlines()
    if options.json is not None:
        options.json.write_bytes(orjson.dumps(found, option=orjson.OPT_INDENT_2))


if __name__ == "__main__":
    main()
