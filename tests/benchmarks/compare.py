"""Whether algorithms deliver what their papers promise: `python -m tests.benchmarks.compare [drift ring ...]`.

The course files of a folder in examples/compare/ are simulated over seeds, and the first round, or the first virtual
second, is told at which the test accuracy reached a target. The files of a folder differ in the algorithm, and in the
learning rates that were found best for it on other seeds (11, 12, 13). The tables are Markdown, as in the README there.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

import torch

from p2pfl.app.build import prepare
from p2pfl.app.config import load_config
from p2pfl.app.simulate import simulate
from p2pfl.sim.report import Round

FOLDER = Path(__file__).parents[2] / "examples/compare"


@dataclass(frozen=True, slots=True)
class Study:
    """Course files that are compared. The first is the one that the others are measured by."""

    courses: tuple[str, ...]
    targets: tuple[float, ...]
    unit: str = "rounds"


STUDIES = {
    "drift": Study(("fedavg", "scaffold", "feddyn", "fedopt", "fednova"), (0.9, 0.93)),
    "unequal": Study(("fedavg", "fednova"), (0.9, 0.93)),
    "ring": Study(("dpsgd", "d2", "gradtrack"), (0.8, 0.9)),
    "tree": Study(("dpsgd", "relaysgd"), (0.8, 0.85)),
    "stragglers": Study(("fedavg", "deadline", "timeup", "fedbuff"), (0.9, 0.93), "virtual seconds"),
}


def played(study: str, course: str, seed: int, rounds: int = 0) -> list[Round]:
    """The rounds of a course with another seed; `rounds`: at most so many, in place of those that its file has."""
    config = load_config(FOLDER / study / f"{course}.toml")
    if rounds:
        config = replace(config, course=replace(config.course, rounds=rounds))
    return simulate(prepare(replace(config, seed=seed))).rounds


def cost(rounds: Sequence[Round], target: float, unit: str) -> float:
    """What it took to reach an accuracy; infinity: it was not reached.

    >>> cost([Round(1, 3.0, 0, 1, {"accuracy": 0.6}), Round(2, 6.0, 0, 1, {"accuracy": 0.85})], 0.7, "virtual seconds")
    6.0
    """
    first = next((done for done in rounds if done.metrics["accuracy"] >= target), None)
    if first is None:
        return math.inf
    return float(first.round) if unit == "rounds" else first.virtual_seconds


def row(course: str, found: Sequence[float], least: float) -> str:
    """A line of a table: what each seed took, the median, and that as a share of the first course's."""
    middle = median(found)
    share = "" if math.isinf(least) or math.isinf(middle) else f"{middle / least:.2f}"
    return f"| {course} | {' | '.join(map(_shown, [*found, middle]))} | {share} |"


def _shown(value: float) -> str:
    return "never" if math.isinf(value) else f"{value:.4g}" if value.is_integer() else f"{value:.1f}"


def compare(name: str, seeds: Sequence[int]) -> None:
    """Print the tables of a study, one for each target."""
    study = STUDIES[name]
    runs = {course: [played(name, course, seed) for seed in seeds] for course in study.courses}
    for target in study.targets:
        heads = " | ".join(f"seed {seed}" for seed in seeds)
        print(f"\n| {name}: {study.unit} to {target:.0%} | {heads} | median | share |")
        print(f"|---|{'---:|' * (len(seeds) + 2)}")
        found = {course: [cost(rounds, target, study.unit) for rounds in runs[course]] for course in study.courses}
        for course, costs in found.items():
            print(row(course, costs, median(found[study.courses[0]])), flush=True)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser("python -m tests.benchmarks.compare", description=__doc__)
    parser.add_argument("studies", nargs="*", default=list(STUDIES), help=f"of {', '.join(STUDIES)}; default all")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4, 5, 6, 7, 8])
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    for name in options.studies:
        compare(name, options.seeds)


if __name__ == "__main__":
    main()
