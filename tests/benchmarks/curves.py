"""Whether the fast tiers learn as the plain one does: `python -m tests.benchmarks.curves [digits fashion-mnist ...]`.

The same courses with the same seeds, once with `train.tier = "plain"` and once as p2pfl chooses; accuracies are
compared at every evaluation. Target: nowhere apart by more than 0.5 percentage points. Data whose package is missing is
skipped, with a line that says how to get it.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import torch

from p2pfl.app.build import prepare
from p2pfl.app.config import from_mapping
from p2pfl.app.simulate import simulate
from p2pfl.errors import MissingPackage

COURSES: dict[str, dict[str, Any]] = {
    "digits": {
        "course": {"rounds": 30},
        "data": {"source": "digits"},
        "partition": {"scheme": "dirichlet", "alpha": 0.3},
        "model": {"hidden": [32]},
        "train": {"lr": 0.3, "batch_size": 10, "epochs": 2},
        "topology": {"n": 9},
    },
    "fashion-mnist": {
        "course": {"rounds": 10},
        "data": {"source": "fashion-mnist", "subsample": 0.1},
        "partition": {"scheme": "dirichlet", "alpha": 0.5},
        "model": {"hidden": [128]},
        "train": {"lr": 0.05, "batch_size": 20, "momentum": 0.5},
        "topology": {"n": 21},
    },
    "fashion-mnist, cnn": {
        "course": {"rounds": 5},
        "data": {"source": "fashion-mnist", "subsample": 0.05},
        "model": {"name": "cnn"},
        "train": {"lr": 0.05, "batch_size": 20},
        "topology": {"n": 11},
    },
    "shakespeare": {
        "course": {"rounds": 5, "fraction": 0.5},
        "data": {"source": "shakespeare", "subsample": 0.002},
        "model": {"name": "char-lstm", "hidden": [64, 64]},
        "train": {"lr": 1.0, "batch_size": 20},
        "topology": {"n": 11},
    },
}


def accuracies(course: dict[str, Any], tier: str) -> tuple[list[float], float]:
    """Accuracy after each round, and CPU seconds."""
    tables = {**course, "seed": 1, "course": {"name": "fedavg", **course["course"]}}
    tables["train"] = {**course["train"], "tier": tier}
    setup = prepare(from_mapping(tables))
    started = time.process_time()
    outcome = simulate(setup)
    return [done.metrics["accuracy"] for done in outcome.rounds], time.process_time() - started


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser("python -m tests.benchmarks.curves", description=__doc__)
    parser.add_argument("courses", nargs="*", default=list(COURSES), help=f"of {', '.join(COURSES)}; default all")
    parser.add_argument(
        "--fashion-mnist", default="fashion-mnist", help="its folder, if it is not where Debian puts it"
    )
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    print(
        f"{'course':20} {'rounds':>6} {'plain':>8} {'chosen':>8} {'most apart':>11} {'CPU s plain':>12} {'chosen':>8}"
    )
    for name in options.courses:
        try:
            course = dict(COURSES[name])
            if course["data"]["source"] == "fashion-mnist":
                course["data"] = {**course["data"], "source": options.fashion_mnist}
            (plain, slow), (chosen, fast) = (accuracies(course, tier) for tier in ("plain", "auto"))
        except MissingPackage as error:
            print(f"{name:20} skipped: {error}")
            continue
        apart = max(abs(a - b) for a, b in zip(plain, chosen, strict=True))
        shown = f"{plain[-1]:8.4f} {chosen[-1]:8.4f} {100 * apart:8.2f} pp"
        print(f"{name:20} {len(plain):6} {shown} {slow:12.1f} {fast:8.1f}", flush=True)


if __name__ == "__main__":
    main()
