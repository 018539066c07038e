"""A tree of servers against a single one: the same eight clients, and what the root has to carry.

Hierarchical averaging (Liu et al., ICC 2020, https://arxiv.org/abs/1905.06641) from `hierarchical.toml`, and FedAvg
on a star with as many client rounds, both on virtual time. The clients play the very same role in both.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from p2pfl import Event, RoundEnded
from p2pfl.app.build import prepare
from p2pfl.app.config import Config, TopologySpec, load_config
from p2pfl.compute.inline import Inline
from p2pfl.courses.fedavg import FedAvgSettings
from p2pfl.sim.loop import run_virtual
from p2pfl.sim.world import World

ROOT = 0


def run(title: str, config: Config[Any]) -> None:
    setup = prepare(config)
    world = World(setup.topology.n, setup.roles, Inline(), config.network, config.devices, config.seed)
    rounds: list[tuple[float, RoundEnded]] = []

    def observe(seconds: float, seat: int, event: Event) -> None:
        if isinstance(event, RoundEnded) and seat == ROOT:
            rounds.append((seconds, event))

    run_virtual(world.run(observe))
    seconds, last = rounds[-1]
    root = world.seats[ROOT].node.statistics()
    print(f"{title}: {setup.topology!r}")
    print(f"  accuracy {last.metrics['accuracy']:.4f} after {last.round} rounds in {seconds:.2f} virtual seconds")
    print(f"  the root sent and received {(root.bytes_sent + root.bytes_received) / 1e6:.2f} MB")


def main() -> None:
    torch.set_num_threads(1)
    tree = load_config(Path(__file__).with_name("hierarchical.toml"))
    run("hierarchical", tree)
    client_rounds = tree.course.rounds * tree.course.edge_rounds
    star = TopologySpec(family="star", n=9)
    run("flat", replace(tree, course=FedAvgSettings(rounds=client_rounds), topology=star))


if __name__ == "__main__":
    main()
