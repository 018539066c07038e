"""Federated averaging in one machine: `python -m tests.benchmarks.simulation [SCENARIO ...] [--help]`.

All subjects do the same work: same data, initial weights, clients of each round, order of batches, plain SGD. Proof are
equal ||w - w0|| and equal accuracy; where they are not equal the run says so and exits with 1. Each subject runs in a
process of its own, on one core, and all take turns in every repetition. Ratios are to the hand loop of the same
repetition, figures are medians over repetitions. On a machine with other work, compare CPU time only.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import sys
import tempfile
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path

import msgspec

from p2pfl.app.computes import COMPUTES
from tests.benchmarks.simulation.drawing import draw
from tests.benchmarks.simulation.report import BASELINE, Report
from tests.benchmarks.simulation.runs import SubjectFailed, run_subject
from tests.benchmarks.simulation.subject import SUBJECTS
from tests.benchmarks.simulation.workload import SCENARIOS

PARALLEL = ("fem", "big")  # where worker processes can pay off


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code: 1 if anybody failed, or did other work than the hand loop."""
    options = _parser().parse_args(arguments)
    reports = [_measure(name, options) for name in options.scenarios or SCENARIOS]
    if options.json is not None:
        options.json.write_bytes(msgspec.json.format(msgspec.json.encode([report.plain() for report in reports])))
    return int(any(report.problems() for report in reports))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m tests.benchmarks.simulation",
        description=__doc__,
        epilog="\n".join(f"{name:13} {scenario.about}" for name, scenario in SCENARIOS.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("scenarios", nargs="*", metavar="SCENARIO", type=_scenario, help="of those below; default all")
    add(
        "--subjects", nargs="+", choices=SUBJECTS, default=list(SUBJECTS), help="default all; the hand loop always runs"
    )
    add("--compute", action="append", default=[], metavar="NAME", help="measure this compute of p2pfl as well")
    add(
        "--processes",
        type=int,
        metavar="N",
        help=f"p2pfl with worker processes on N cores, in {' and '.join(PARALLEL)}",
    )
    add("--repeat", type=int, default=5, help="repetitions; default 5")
    add("--rounds", type=int, help="rounds that are measured, one more comes before them; default by scenario")
    add("--json", type=Path, metavar="FILE", help="write every single measurement there")
    peers = "interpreter of a peer that has an environment of its own, with torch, safetensors and msgspec"
    add("--python", action="append", type=_interpreter, default=[], metavar="SUBJECT=PATH", help=peers)
    return parser


def _scenario(given: str) -> str:  # `choices` refuses an empty list in Python 3.11
    if given not in SCENARIOS:
        raise argparse.ArgumentTypeError(f"{given!r} is none of {', '.join(SCENARIOS)}")
    return given


def _interpreter(given: str) -> tuple[str, str]:
    subject, _, path = given.partition("=")
    if subject not in SUBJECTS or not path:
        raise argparse.ArgumentTypeError(f"{given!r} is not SUBJECT=PATH with one of {', '.join(SUBJECTS)}")
    return subject, path


def _measure(name: str, options: argparse.Namespace) -> Report:
    """Let everybody take turns, and print the table."""
    scenario = SCENARIOS[name]
    if options.rounds:
        scenario = dataclasses.replace(scenario, rounds=options.rounds)
    pythons = dict(options.python)
    subjects, skipped = _choose(name, options, pythons)
    report = Report(name, scenario, skipped)
    with tempfile.TemporaryDirectory(prefix="p2pfl-bench-") as folder:
        draw(scenario, Path(folder))
        for repetition, subject in product(range(1, options.repeat + 1), subjects):
            if subject in report.failed:
                continue
            print(f"{name}, {repetition} of {options.repeat}: {subject}", file=sys.stderr, flush=True)
            python = pythons.get(subject, sys.executable)
            try:
                report.add(subject, run_subject(subject, Path(folder), python, subjects[subject]))
            except SubjectFailed as failed:
                print(failed, file=sys.stderr, flush=True)
                report.failed[subject] = (str(failed).splitlines() or ["it said nothing"])[-1]
    print(report.text(), flush=True)
    return report


def _choose(
    scenario: str, options: argparse.Namespace, pythons: Mapping[str, str]
) -> tuple[dict[str, int], dict[str, str]]:
    """Who can be measured in this scenario, the hand loop first, with how many cores; and why others cannot."""
    subjects, skipped = {BASELINE: 1}, {}
    for name in options.subjects:
        subject = SUBJECTS[name]
        if subject.package and name not in pythons and importlib.util.find_spec(subject.package) is None:
            skipped[name] = f"the package {subject.package} is missing: {subject.install}"
        elif not subject.scenarios or scenario in subject.scenarios:
            subjects[name] = 1
    computes = dict.fromkeys(options.compute, 1)
    if options.processes and scenario in PARALLEL:
        computes["processes"] = options.processes
    for compute, cores in computes.items():
        if compute in COMPUTES:
            subjects[f"p2pfl {compute}"] = cores
        else:
            skipped[f"p2pfl {compute}"] = f"p2pfl has no compute of this name; it has {', '.join(COMPUTES)}"
    return subjects, skipped


if __name__ == "__main__":
    sys.exit(main())
