"""What a simulated message costs: `python -m tests.benchmarks.gossip [--nodes 1000] [--hidden 256 128]`.

D-PSGD on a random 8-regular graph, an MLP (by default of 50,826 parameters), one step of SGD a round. The time of local
training is taken off; what remains is divided by the messages. Targets: 60 us of CPU a message, 1.5 GB. The baseline of
the same run is the mixing alone, in a plain loop over vectors in memory, which no design can do without.
"""

from __future__ import annotations

import argparse
import random
import resource
import statistics
import time
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, TypeVar

import torch

from p2pfl.app.build import prepare
from p2pfl.app.config import from_mapping
from p2pfl.compute.inline import Inline
from p2pfl.compute.job import Job
from p2pfl.node.events import Event, RoundEnded
from p2pfl.sim.loop import run_virtual
from p2pfl.sim.world import World

ResultT = TypeVar("ResultT")
DEGREE = 8


class Timed(Inline):
    """Inline, with the CPU seconds that jobs took."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds = 0.0

    async def run_all(self, jobs: Sequence[Job[ResultT]]) -> list[ResultT | Exception]:
        started = time.process_time()
        try:
            return await super().run_all(jobs)
        finally:
            self.seconds += time.process_time() - started


def simulated(nodes: int, rounds: int, hidden: list[int]) -> tuple[int, list[float]]:
    """Parameters of the model, and CPU microseconds a message of each round but the first, training excluded."""
    course: dict[str, Any] = {
        "seed": 1,
        "course": {"name": "dpsgd", "rounds": rounds, "evaluators": 0},
        "model": {"name": "mlp", "hidden": hidden},
        "partition": {"scheme": "bootstrap", "examples_per_client": 10},
        "train": {"steps": 1, "batch_size": 10},
        "topology": {"family": "regular", "n": nodes, "parameters": {"degree": DEGREE, "seed": 1}},
    }
    setup = prepare(from_mapping(course))
    compute = Timed()
    world = World(nodes, setup.roles, compute, setup.config.network, setup.config.devices, 1)
    marks: list[tuple[float, float, int]] = []
    ended = 0

    def observe(_: float, __: int, event: Event) -> None:
        nonlocal ended
        if isinstance(event, RoundEnded):
            ended += 1
            if ended % nodes == 0:
                marks.append((time.process_time(), compute.seconds, world.wire.packets))

    run_virtual(world.run(observe))
    return setup.model.layout.numel, [1e6 * ((b[0] - a[0]) - (b[1] - a[1])) / (b[2] - a[2]) for a, b in pairwise(marks)]


def mixing(nodes: int, numel: int) -> float:
    """CPU microseconds a message of the mixing alone."""
    vectors = [torch.randn(numel) for _ in range(nodes)]
    rng = random.Random(1)
    started = time.process_time()
    mixed = []
    for vector in vectors:
        total = vector * (1 / (DEGREE + 1))
        for other in rng.sample(vectors, DEGREE):
            total.add_(other, alpha=1 / (DEGREE + 1))
        mixed.append(total)
    return 1e6 * (time.process_time() - started) / (nodes * DEGREE)


def main(arguments: list[str] | None = None) -> list[tuple[str, str]]:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nodes", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--hidden", type=int, nargs="+", default=[256, 128])
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    numel, ours = simulated(options.nodes, options.rounds, options.hidden)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    bare = statistics.median(mixing(options.nodes, numel) for _ in range(3))
    return [
        ("parameters", f"{numel}"),
        ("mixing alone, us a message", f"{bare:.1f}"),
        (
            "p2pfl, us a message, median (target 60)",
            f"{statistics.median(ours[:-1]):.1f}",
        ),  # the last round trains no more
        (
            f"peak memory with {options.nodes} nodes, MB (target {8000 if options.nodes > 1000 else 1500})",
            f"{memory:.0f}",
        ),
    ]


if __name__ == "__main__":
    for label, value in main():
        print(f"{label:48} {value:>10}")
