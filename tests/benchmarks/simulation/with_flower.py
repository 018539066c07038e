"""Flower: its `FedAvg` strategy on its simulation engine, which runs clients in the actors of Ray.

UNTESTED: written from the documentation and the source of flwr 1.2x (`flwr.serverapp.strategy`, `run_simulation`).

Flower names its nodes by random numbers, so the server tells each node of a round whose examples it has. What nodes
read from the disk they keep, as a user's data sets would be kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import lru_cache
from pathlib import Path

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation
from torch.nn.functional import cross_entropy

from tests.benchmarks.simulation.workload import State, Work

client_app = ClientApp()
work_of = lru_cache(maxsize=1)(Work.read)


@client_app.train()
def train(message: Message, context: Context) -> Message:
    """One client in one round."""
    config = message.content["config"]
    work = work_of(Path(str(config["folder"])))
    module = work.module()
    module.load_state_dict(message.content["arrays"].to_torch_state_dict())
    optimizer = torch.optim.SGD(module.parameters(), lr=work.scenario.lr)
    for rows in work.plan[int(config["round"]), int(config["place"])]:
        optimizer.zero_grad()
        cross_entropy(module(work.x[rows]), work.y[rows]).backward()
        optimizer.step()
    metrics = MetricRecord({"num-examples": work.scenario.examples})
    found = RecordDict({"arrays": ArrayRecord(module.state_dict()), "metrics": metrics})
    return Message(content=found, reply_to=message)


def run(work: Work, done: Callable[[], None]) -> State:
    """As `hand.run`."""
    server_app, final = ServerApp(), dict[str, torch.Tensor]()

    @server_app.main()
    def serve(grid: Grid, context: Context) -> None:
        strategy = _Planned(work, done)
        result = strategy.start(grid, ArrayRecord(work.initial), num_rounds=work.scenario.rounds + 1)
        final.update(result.arrays.to_torch_state_dict())

    one_core = {"client_resources": {"num_cpus": 1, "num_gpus": 0}}
    run_simulation(server_app, client_app, num_supernodes=work.scenario.clients, backend_config=one_core)
    return final


class _Planned(FedAvg):
    """FedAvg that says with each message which client of the round it is for, and tells when a round is done."""

    def __init__(self, work: Work, done: Callable[[], None]) -> None:
        clients, cohort = work.scenario.clients, work.scenario.cohort
        super().__init__(
            fraction_train=cohort / clients,
            fraction_evaluate=0.0,
            min_train_nodes=cohort,
            min_available_nodes=clients,
        )
        self._work, self._done = work, done

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        drawn = super().configure_train(server_round, arrays, config, grid)
        for place, message in enumerate(drawn):
            told = ConfigRecord({"folder": str(self._work.folder), "round": server_round - 1, "place": place})
            yield Message(
                content=RecordDict({"arrays": arrays, "config": told}),
                dst_node_id=message.metadata.dst_node_id,
                message_type=message.metadata.message_type,
            )

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        found = super().aggregate_train(server_round, replies)
        self._done()
        return found
