"""Kill and go on: `python -m tests.benchmarks.soak [--course fedavg dpsgd] [--clients 8] [--seconds 60] [--every 3]`.

A course on processes of its own, of which one after the other is killed by surprise and started again by the same
command. The table says how the course came out of that, and how it does without: it must end at all nodes; under FedAvg
each round must be made of one update of every client, and its model be that of the undisturbed course to the last bit.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.chaos.cluster import HUB, Cluster, cluster, free_port
from tests.chaos.record import Committed, Undisturbed, committed, undisturbed
from tests.end_to_end.process import Running

COURSE = """
seed = 7
[course]
name = "{name}"
rounds = {rounds}
{rules}
[topology]
n = {n}
[partition]
scheme = "dirichlet"
alpha = 1.0
[train]
batch_size = 10
lr = 0.05
"""
RULES = {"fedavg": "rejoin_seconds = 120\nexclude_after = 0\nevaluate_every = 20", "dpsgd": "evaluate_every = 20"}


@dataclass(frozen=True)
class Ordeal:
    """What a course has to go through."""

    name: str  # of the course
    clients: int = 8
    seconds: float = 60.0  # in which processes are killed
    every: float = 3.0  # seconds between two
    rounds: int = 2000
    seed: int = 0

    @property
    def course(self) -> str:
        """The course file."""
        return COURSE.format(name=self.name, rounds=self.rounds, rules=RULES[self.name], n=self.clients + 1)


@dataclass
class Outcome:
    """What became of it."""

    kills: int = 0
    seconds: float = 0.0
    unfinished: list[str] = field(default_factory=list)  # nodes that did not come to the end of the course
    models: set[str] = field(default_factory=set)  # that the nodes ended with, by their hashes
    rounds: dict[int, Committed] = field(default_factory=dict)  # in the hub's ledger
    accuracies: list[float] = field(default_factory=list)  # of the nodes that evaluate

    @property
    def accuracy(self) -> float:
        return sum(self.accuracies) / len(self.accuracies)


async def endure(ordeal: Ordeal, folder: Path) -> Outcome:
    """Play the course under fire, and to its end."""
    outcome, loop = Outcome(), asyncio.get_running_loop()
    async with cluster(folder, ordeal.course, "--patience-seconds", "60") as nodes:
        await (await nodes.start_hub()).row("node")
        for client in range(ordeal.clients):
            listen = () if ordeal.name == "fedavg" else ("--listen", f":{free_port()}")
            await nodes.start(f"client-{client}", *listen)
        await nodes.hub.row("round")
        start = loop.time()
        await _shoot(ordeal, nodes, outcome)
        for name, running in nodes.nodes.items():
            await running.end()
            if not (reports := _reports(nodes, name)):
                outcome.unfinished.append(name)
            for report in reports:
                outcome.models.add(report["model_hash"])
                outcome.accuracies += [report["metrics"]["accuracy"]] if "accuracy" in report["metrics"] else []
        outcome.seconds = loop.time() - start
        outcome.rounds = committed(nodes.home(HUB))
    return outcome


async def _shoot(ordeal: Ordeal, nodes: Cluster, outcome: Outcome) -> None:
    """Kill somebody now and then, and start it again, as long as the time lasts.

    In the second half of the course there is peace: in gossip nobody waits for the last ones at the end.
    """
    rng, loop = random.Random(ordeal.seed), asyncio.get_running_loop()
    until = loop.time() + ordeal.seconds
    while loop.time() < until and all(2 * _round(running) < ordeal.rounds for running in nodes.nodes.values()):
        name = rng.choice(sorted(nodes.nodes))
        await nodes.kill(name)
        await nodes.restart(name)
        outcome.kills += 1
        await asyncio.sleep(ordeal.every)


def _round(running: Running) -> int:
    """The last round that a node has told of since it was started."""
    return max((row["round"] for row in running.rows if row["kind"] == "round"), default=0)


def _reports(nodes: Cluster, name: str) -> list[dict[str, Any]]:
    """What a node has found at the end of its run: at most one report."""
    return [json.loads(path.read_text()) for path in nodes.home(name).glob("runs/*/report.json")]


def problems(ordeal: Ordeal, outcome: Outcome, quiet: Undisturbed) -> list[str]:
    """What must not be, in words."""
    found = [f"{name} did not come to the end" for name in outcome.unfinished]
    if ordeal.name == "fedavg":
        seats = tuple(range(1, ordeal.clients + 1))
        if sorted(outcome.rounds) != list(range(1, ordeal.rounds + 1)):
            found.append(f"the rounds {sorted(outcome.rounds)} were committed")
        for round, entry in outcome.rounds.items():
            if entry.seats != seats:
                found.append(f"round {round} is made of the updates of seats {entry.seats}")
            if entry.model != quiet.models[round - 1]:
                found.append(f"round {round} came to another model than without kills")
        if outcome.models != {quiet.models[-1]}:
            found.append("not all nodes have the last model")
    if abs(outcome.accuracy - quiet.accuracy) > 0.01:
        found.append(f"the accuracy is {outcome.accuracy:.4f}, without kills {quiet.accuracy:.4f}")
    return found


def main(arguments: list[str] | None = None) -> int:
    """The exit code: 1 if anything went wrong."""
    parser = argparse.ArgumentParser("python -m tests.benchmarks.soak", description=__doc__)
    parser.add_argument("--course", nargs="+", choices=tuple(RULES), default=tuple(RULES))
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--every", type=float, default=3.0)
    parser.add_argument("--rounds", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0, help="draws who is killed")
    options = parser.parse_args(arguments)
    failed = False
    print(f"{'course':8} {'nodes':>5} {'kills':>5} {'rounds':>6} {'seconds':>7} {'accuracy':>8} {'quiet':>8}")
    for name in options.course:
        ordeal = Ordeal(name, options.clients, options.seconds, options.every, options.rounds, seed=options.seed)
        with tempfile.TemporaryDirectory(prefix="p2pfl-soak-") as folder:
            outcome = asyncio.run(endure(ordeal, Path(folder)))
        quiet = undisturbed(ordeal.course, ordeal.rounds)
        print(
            f"{name:8} {ordeal.clients + 1:5} {outcome.kills:5} {len(outcome.rounds):6} {outcome.seconds:7.0f} "
            f"{outcome.accuracy:8.4f} {quiet.accuracy:8.4f}",
            flush=True,
        )
        for problem in problems(ordeal, outcome, quiet):
            failed = True
            print(f"  WRONG: {problem}", flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
