"""What the nodes of a course have committed, held against a simulation of the same course without any fault."""

from __future__ import annotations

import sqlite3
import statistics
import tomllib
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import torch

from p2pfl.app.build import prepare
from p2pfl.app.config import from_mapping
from p2pfl.compute.inline import Inline
from p2pfl.courses.course import HoldsModel
from p2pfl.learn.params import model_hash
from p2pfl.node.events import Event, RoundEnded
from p2pfl.sim.loop import run_virtual
from p2pfl.sim.world import World

__all__ = ["Committed", "Undisturbed", "committed", "undisturbed"]


@dataclass(frozen=True)
class Committed:
    """A round in the ledger. `seats` are those of its contributions, each as often as it contributed."""

    model: str
    seats: tuple[int, ...]


def committed(home: Path) -> dict[int, Committed]:
    """The rounds of a node's only run, from 1."""
    [path] = home.glob("runs/*/journal.sqlite")
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as database:
        models = dict(database.execute("select round, aggregate_hash from rounds order by round"))
        contributions = database.execute("select round, seat from contributions order by round, seat").fetchall()
    return {
        round: Committed(model, tuple(seat for where, seat in contributions if where == round))
        for round, model in models.items()
    }


@dataclass(frozen=True)
class Undisturbed:
    """What becomes of a course if nothing goes wrong."""

    models: tuple[str, ...]  # of seat 0, behind each round, by their hashes
    accuracy: float  # at last, on average over the nodes that evaluate


def undisturbed(course: str, rounds: int) -> Undisturbed:
    """So many rounds of a course file."""
    torch.set_num_threads(1)  # as nodes on hosts do
    parsed = tomllib.loads(course)
    setup = prepare(from_mapping(parsed | {"course": parsed["course"] | {"rounds": rounds}}))
    config = setup.config
    world = World(setup.topology.n, setup.roles, Inline(), config.network, config.devices, config.seed)
    models: list[str] = []
    accuracies: dict[int, float] = {}

    def watch(seconds: float, seat: int, event: Event) -> None:
        if not isinstance(event, RoundEnded):
            return
        if "accuracy" in event.metrics:
            accuracies[seat] = event.metrics["accuracy"]
        if seat == 0:
            [role] = [role for role in world.seats[0].roles if isinstance(role, HoldsModel)]
            models.append(model_hash(role.params))

    run_virtual(world.run(watch))
    return Undisturbed(tuple(models), statistics.mean(accuracies.values()))
