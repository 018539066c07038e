"""One subject at work, in a process of its own: `python -m tests.benchmarks.simulation.subject NAME FOLDER CORES`.

It prints one line of JSON last. Time counts from when torch is imported, since that costs the same for everybody.
"""

from __future__ import annotations

import importlib
import os
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

import msgspec
import torch

from tests.benchmarks.simulation.processes import cpu_seconds, peak_bytes
from tests.benchmarks.simulation.workload import Work

__all__ = ["SUBJECTS", "Measured", "Subject", "measured"]


@dataclass(frozen=True)
class Subject:
    """Who does the work: a module beside this one, and what it needs."""

    module: str
    package: str = ""
    """To be importable; empty: nothing but p2pfl."""
    install: str = ""
    scenarios: tuple[str, ...] = ()
    """Empty: all."""


SUBJECTS: Mapping[str, Subject] = {
    "hand loop": Subject("hand"),
    "hand-batched": Subject("batched", scenarios=("digits", "digits-10", "digits-1000", "digits-10000", "digits-wide")),
    "p2pfl": Subject("ours"),
    "fedjax": Subject("with_fedjax", "fedjax", "pip install fedjax"),
    "pfl": Subject("with_pfl", "pfl", "pip install pfl"),
    "flower": Subject("with_flower", "flwr", "pip install 'flwr[simulation]'"),
}


@dataclass(frozen=True)
class Measured:
    """What one run of one subject took. A round is the mean over all but the first."""

    cpu_ms: float
    wall_ms: float
    first_round_seconds: float
    peak_mb: float
    distance: float  # ||w - w0||
    accuracy: float


@dataclass
class _Marks:
    """When each round was done; on the first and the last, also what had been computed until then."""

    rounds: int
    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    def __call__(self) -> None:
        self.wall.append(time.perf_counter())
        if len(self.wall) in (1, self.rounds):
            self.cpu.append(cpu_seconds())


def measured(name: str, folder: Path) -> Measured:
    """Let a subject (`p2pfl COMPUTE` for one of our computes) do the work that lies in `folder`."""
    started = time.perf_counter()
    known = name if name in SUBJECTS else name.split()[0]
    run = importlib.import_module(f"tests.benchmarks.simulation.{SUBJECTS[known].module}").run
    if known != name:
        run = partial(run, compute=name.removeprefix(known).strip())
    work = Work.read(folder)
    total = work.scenario.rounds + 1
    marks = _Marks(total)
    final = run(work, marks)
    peak = peak_bytes()
    if len(marks.wall) != total:
        raise RuntimeError(f"{name} has done {len(marks.wall)} rounds of {total}")
    return Measured(
        cpu_ms=1000 * (marks.cpu[-1] - marks.cpu[0]) / work.scenario.rounds,
        wall_ms=1000 * (marks.wall[-1] - marks.wall[0]) / work.scenario.rounds,
        first_round_seconds=marks.wall[0] - started,
        peak_mb=peak / 1e6,
        distance=work.distance(final),
        accuracy=work.accuracy(final),
    )


def main(name: str, folder: str, cores: str) -> None:
    """Measure on so many cores: some libraries take a thread for each that they see, whatever they are told."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-int(cores) :])
    torch.set_num_threads(1)
    print(msgspec.json.encode(asdict(measured(name, Path(folder)))).decode())


if __name__ == "__main__":
    main(*sys.argv[1:])
