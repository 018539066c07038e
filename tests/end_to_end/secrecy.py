"""A coordinator and eleven clients over real sockets, a process each; three kill themselves in the first round.

All are forked from one, so that torch is imported once. Prints what became of it, as JSON.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import Coroutine
from random import Random
from typing import Any, TypeVar

import torch
import uvloop

from p2pfl.courses import rounds
from p2pfl.courses.fedavg import FEDAVG, FedAvgSettings, SecretServer
from p2pfl.courses.secagg import (
    CONSISTENT,
    AggregationFailed,
    SecAggSpec,
)  # fmt: skip
from p2pfl.crypto.identity import Identity
from p2pfl.link.trust import Open
from p2pfl.link.websocket import WebSocketTransport
from p2pfl.node.events import RoundEnded
from p2pfl.node.node import Node
from p2pfl.topology.families import build
from tests.courses.kit import Played
from tests.courses.staged import Staged

CLIENTS, KILLED, ROUNDS = 11, 3, 2
MOST_EXAMPLES = 50
STAGES = ("enlist", "share", "mask", "reveal")


class Doomed(Staged):
    """Its process ends in the middle of a stage of the first round, with no time to say anything."""

    stage = ""

    def answers(self, stage: str, round: int) -> None:
        """Of a vector that is masked, and of seeds, it is written down by now that they are given."""
        if stage == self.stage:
            os.kill(os.getpid(), signal.SIGKILL)


def course() -> Played:
    spec = SecAggSpec(bits=20, most_examples=MOST_EXAMPLES)
    settings = FedAvgSettings(rounds=ROUNDS, privacy=CONSISTENT, rejoin_seconds=0.0, secagg=spec, evaluate="none")
    return Played(FEDAVG, settings, build("star", CLIENTS + 1))


async def client(played: Played, seat: int, address: str, doom: str) -> None:
    (role,) = played._roles(seat, played.compute)
    role.__class__, role.stage = Doomed, doom
    transport = WebSocketTransport(Identity.generate(), trust=Open())
    async with Node(role, transport=transport, peers=[address], seat=seat) as node:
        await node.run()


LOOPS = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}
ResultT = TypeVar("ResultT")


def fork(played: Played, seat: int, doom: str) -> tuple[int, int]:
    """A client's process, which reads from a pipe where the coordinator listens."""
    reading, writing = os.pipe()
    if child := os.fork():
        os.close(reading)
        return child, writing
    os.close(writing)
    with os.fdopen(reading) as pipe:
        address = pipe.readline().strip()
    run(client(played, seat, address, doom))
    os._exit(0)


def run(work: Coroutine[Any, Any, ResultT]) -> ResultT:
    """On the loop that the command line names."""
    with asyncio.Runner(loop_factory=LOOPS[sys.argv[2]]) as runner:
        return runner.run(work)


async def coordinate(played: Played, pipes: list[int]) -> dict[str, object]:
    (role,) = played._roles(0, played.compute)
    assert isinstance(role, SecretServer)
    transport = WebSocketTransport(Identity.generate(), trust=Open())
    async with Node(role, transport=transport, listen=["127.0.0.1:0"], seat=0) as node:
        with node.events() as events:
            for pipe in pipes:
                os.write(pipe, f"{node.addresses[0]}\n".encode())
                os.close(pipe)
            async with asyncio.timeout(60):
                await node.run()
        told = [event async for event in events]
    return {
        "participants": [event.participants for event in told if isinstance(event, RoundEnded)],
        "failed": [event.reason for event in told if isinstance(event, AggregationFailed)],
        "params": role.params.tolist(),
    }


def main(seed: int) -> None:
    torch.set_num_threads(1)
    rounds._LINGER_SECONDS = 0.5  # in which those who are dead would be waited for
    rng, played = Random(seed), course()
    dooms = {seat: rng.choice(STAGES) for seat in rng.sample(range(1, CLIENTS + 1), KILLED)}
    forked = [fork(played, seat, dooms.get(seat, "")) for seat in range(1, CLIENTS + 1)]
    found = run(coordinate(played, [pipe for _, pipe in forked]))
    ends = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child, _ in forked]
    print(json.dumps({"dooms": dooms, "ends": ends, **found}))


if __name__ == "__main__":
    main(int(sys.argv[1]))
