"""What an algorithm costs beside its gradients: `python -m tests.benchmarks.rules [--hidden 64] [--repeat 5]`.

CPU time of a simulated course in the tier that p2pfl chooses, as a ratio to that of fedavg, or of dpsgd for gossip,
with as many gradient steps on batches as large. Courses take turns, ratios are within a turn, and medians are shown.
Target: 2.0. A step of the head alone, as fedrep takes, counts as one.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping
from statistics import median
from typing import Any

import torch

from p2pfl.app.build import prepare
from p2pfl.app.config import from_mapping
from p2pfl.app.simulate import simulate

PASSES = 4  # over its examples, that each client makes in a round
TARGET = 2.0

# Of each course, its settings, and the passes that [train] asks for, so that it makes PASSES of them.
COORDINATED: Mapping[str, tuple[dict[str, Any], int]] = {
    "fedavg": ({}, PASSES),
    "fedprox": ({}, PASSES),
    "scaffold": ({}, PASSES),
    "feddyn": ({}, PASSES),
    "fednova": ({}, PASSES),
    "fedopt": ({}, PASSES),
    "ditto": ({}, PASSES // 2),  # as many again for the client's own model
    "pfedme": ({"inner_steps": PASSES}, 1),
    "fedrep": ({"head_epochs": PASSES - 1}, 1),
}
GOSSIP: Mapping[str, tuple[dict[str, Any], int]] = {
    name: ({}, PASSES)
    for name in ("dpsgd", "d2", "gradtrack", "qgm", "dfedavgm", "gossip-diloco", "relaysgd", "pushsum", "epidemic")
}


def tables(name: str, clients: int, hidden: int, rounds: int) -> dict[str, Any]:
    """A course in which nothing is evaluated, as a course file has it."""
    coordinated = name in COORDINATED
    settings, epochs = (COORDINATED if coordinated else GOSSIP)[name]
    unmeasured = {"evaluate": "none"} if coordinated else {"evaluators": 0}
    topology = {"n": clients + 1} if coordinated else {"n": clients, "family": "chain"}
    return {
        "course": {"name": name, "rounds": rounds, **unmeasured, **settings},
        "topology": {"n": clients} if name == "epidemic" else topology,  # which has a graph of its own
        "partition": {"scheme": "bootstrap", "examples_per_client": 80},
        "model": {"hidden": [hidden]},
        "train": {"epochs": epochs, "batch_size": 10, "lr": 0.05},
    }


def seconds(course: dict[str, Any]) -> float:
    """CPU seconds that it takes, from the first message to the last."""
    setup = prepare(from_mapping(course))
    started = time.process_time()
    simulate(setup)
    return time.process_time() - started


def ratios(courses: Mapping[str, dict[str, Any]], repeat: int) -> dict[str, float]:
    """The median over some turns of the time of each course, as a ratio to that of the first."""
    seconds(next(iter(courses.values())))  # what is done once in a process
    turns = [{name: seconds(course) for name, course in courses.items()} for _ in range(repeat)]
    first = next(iter(courses))
    return {name: median(turn[name] / turn[first] for turn in turns) for name in courses}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser("python -m tests.benchmarks.rules", description=__doc__)
    parser.add_argument("--clients", type=int, default=30)
    parser.add_argument("--hidden", type=int, default=64, help="width of the hidden layer")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--repeat", type=int, default=5)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    for group in (COORDINATED, GOSSIP):
        courses = {name: tables(name, options.clients, options.hidden, options.rounds) for name in group}
        print(f"{'course':14} {'CPU':>6}")
        for name, ratio in ratios(courses, options.repeat).items():
            print(f"{name:14} {ratio:6.2f}{'' if ratio <= TARGET else '  over the target'}", flush=True)


if __name__ == "__main__":
    main()
