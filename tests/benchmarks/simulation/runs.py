"""Starting a subject in a process of its own, and watching what memory it takes."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import msgspec

from tests.benchmarks.simulation.processes import children, proportional_bytes
from tests.benchmarks.simulation.subject import Measured

__all__ = ["SubjectFailed", "run_subject"]

ROOT = Path(__file__).parents[3]
_WATCH_SECONDS = 0.25

# One thread, in the words of every library; where the workers of a peer find these modules; nobody calls home.
_ENVIRONMENT = {
    "PYTHONPATH": str(ROOT),
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1",
    "JAX_PLATFORMS": "cpu",
    "FLWR_TELEMETRY_ENABLED": "0",
}


class SubjectFailed(Exception):
    """The process of a subject did not come to its end."""


def run_subject(name: str, folder: Path, python: str = sys.executable, cores: int = 1) -> Measured:
    """Measure a subject on so many cores. Raises SubjectFailed with all that it wrote."""
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        process = subprocess.Popen(
            [python, "-m", "tests.benchmarks.simulation.subject", name, str(folder), str(cores)],
            stdout=out, stderr=err, cwd=ROOT, env=os.environ | _ENVIRONMENT,
        )  # fmt: skip
        peak = _watch(process)
        out.seek(0)
        err.seek(0)
        if process.returncode:
            raise SubjectFailed(err.read())
        found = msgspec.json.decode(out.read().splitlines()[-1], type=Measured)
    return dataclasses.replace(found, peak_mb=max(found.peak_mb, peak / 1e6))


def _watch(process: subprocess.Popen[bytes]) -> int:
    """Wait for its end. The most memory seen of it and its children together; 0 if it has none.

    A process by itself knows its own peak exactly, so it is not looked at: that would hold it up.
    """
    peak = 0
    while True:
        try:
            process.wait(_WATCH_SECONDS)
        except subprocess.TimeoutExpired:
            if children(process.pid):
                peak = max(peak, proportional_bytes(process.pid))
        else:
            return peak
