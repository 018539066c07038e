"""Where a course is played: in a simulation, over links in memory on an ordinary loop, over sockets between processes.

Each gives the hashes of the models that the seats ended with; None for a seat that was lost.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
import socket
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Self

import orjson

from p2pfl.app.build import Setup
from p2pfl.app.cli import main
from p2pfl.app.config import to_mapping
from p2pfl.compute.inline import Inline
from p2pfl.courses.course import HoldsModel, Resumes, RoleState
from p2pfl.learn.params import model_hash
from p2pfl.link.memory import MemoryNetwork
from p2pfl.node.events import Event, RoundEnded
from p2pfl.node.node import Node
from p2pfl.sim.loop import run_virtual
from p2pfl.sim.register import Register
from p2pfl.sim.world import World

__all__ = ["Hashes", "Hosted", "in_memory", "on_hosts", "simulated"]

Hashes = list[str | None]


def _hash(roles: Sequence[object]) -> str | None:
    (held,) = (model_hash(role.params) for role in roles if isinstance(role, HoldsModel))
    return held


# -- a simulation ------------------------------------------------------------------------------------------------------


def simulated(setup: Setup, lost: int | None = None) -> Hashes:
    """In a simulation; the seat `lost` is killed for good after the first round."""
    n = setup.topology.n
    world = World(
        n, setup.roles, Inline(), setup.config.network, setup.config.devices, setup.config.seed,
        coordinators=sorted(set(range(n)).difference(setup.shards)), mortal=lost is not None,
    )  # fmt: skip

    def observe(seconds: float, seat: int, event: Event) -> None:
        if lost is not None and isinstance(event, RoundEnded) and world.alive(lost):
            world.kill(lost, for_good=True)

    run_virtual(world.run(observe))
    return [None if seat == lost else _hash(world.seats[seat].roles) for seat in range(n)]


# -- links in memory ---------------------------------------------------------------------------------------------------


def in_memory(setup: Setup, lost: int | None = None, pause: int | None = None) -> Hashes:
    """Over links in memory; the seat `lost` stops after the first round.

    `pause`: before this round, from 0, all stop, and others go on from their states.
    """
    states: dict[int, list[RoleState]] = {}
    if pause is not None:
        states = asyncio.run(_played(setup, None, pause, {}))[1]
    return asyncio.run(_played(setup, lost, None, states))[0]


async def _played(
    setup: Setup, lost: int | None, pause: int | None, states: dict[int, list[RoleState]]
) -> tuple[Hashes, dict[int, list[RoleState]]]:
    network, register = MemoryNetwork(), Register(setup.topology.n)
    compute, nodes, roles = Inline(), [], []
    for seat in range(setup.topology.n):
        played = setup.roles(seat, compute, pause)
        if seat in states:
            for role, state in zip(_resuming(played), states[seat], strict=True):
                role.resume(state)
        members = register.membership(seat)
        transport = network.transport(members.own.id)
        nodes.append(Node(*played, transport=transport, listen=members.own.id, members=members))
        roles.append(played)

    async def live(node: Node) -> None:
        async with node:
            await node.run()

    async with asyncio.TaskGroup() as group:
        lives = [group.create_task(live(node)) for node in nodes]
        if lost is not None:
            with nodes[0].events() as events:
                async for event in events:
                    if isinstance(event, RoundEnded):
                        lives[lost].cancel()
                        break
    found: Hashes = [None if seat == lost else _hash(played) for seat, played in enumerate(roles)]
    return found, {seat: [role.state() for role in _resuming(played)] for seat, played in enumerate(roles)}


def _resuming(roles: Sequence[object]) -> list[Resumes]:
    return [role for role in roles if isinstance(role, Resumes)]


# -- processes ---------------------------------------------------------------------------------------------------------

_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(["p2pfl.app.host"])  # a second of imports, once


def _play(arguments: list[str], told: Connection) -> None:
    """A process: `python -m p2pfl.node`, with what it tells in JSON going into a pipe."""
    sys.stdout = os.fdopen(os.dup(told.fileno()), "w")
    sys.exit(main(["node", *arguments, "--json"]))


class Hosted:
    """A node in a process of its own."""

    def __init__(self, home: Path, *arguments: str) -> None:
        home.mkdir(exist_ok=True)
        self._command = [
            *arguments, "--identity", str(home / "identity.key"), "--runs", str(home), "--run", "run",
            "--compute", "inline",
        ]  # fmt: skip
        self._begin()

    def _begin(self) -> None:
        self._told, telling = _FORKS.Pipe(duplex=False)
        self._process = _FORKS.Process(target=_play, args=(self._command, telling))
        self._process.start()
        telling.close()
        self._rows = self._read()

    def _read(self) -> Iterator[dict[str, Any]]:
        with os.fdopen(os.dup(self._told.fileno())) as lines:
            for line in lines:
                yield json.loads(line)

    def until(self, kind: str) -> dict[str, Any]:
        """The next row of that kind."""
        return next(row for row in self._rows if row["kind"] == kind)

    def kill(self) -> None:
        self._process.kill()
        self._process.join()
        self._told.close()

    def again(self) -> None:
        """Kill it, and start it by the same command."""
        self.kill()
        self._begin()

    def end(self) -> str:
        """Let it come to its end; the hash of its model."""
        report = self.until("report")
        self._process.join()
        assert self._process.exitcode == 0
        return str(report["model_hash"])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.kill()


def on_hosts(setup: Setup, home: Path, lost: int | None = None, again: int | None = None) -> Hashes:
    """Between processes; after the first round the seat `lost` is killed, or the seat `again` killed and restarted."""
    course = home / "course.json"
    course.write_bytes(orjson.dumps(to_mapping(setup.config)))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    listening = [] if setup.topology.union.family == "star" else ["--listen", ":0"]
    with ExitStack() as kept:
        hub = kept.enter_context(Hosted(home / "0", "--course", str(course), "--listen", address))
        hub.until("node")
        nodes = [hub]
        for seat in range(1, setup.topology.n):
            arguments = ("--peers", address, "--seat", str(seat), *listening)
            nodes.append(kept.enter_context(Hosted(home / str(seat), *arguments)))
        if lost is not None or again is not None:
            hub.until("round")
        if lost is not None and 0 in setup.shards and not setup.course.rotates:
            nodes[lost].until("round")  # at the beginning, all have to be there: only then can it be lost
        if again is not None:
            nodes[again].again()
        if lost is not None:
            nodes[lost].kill()
        return [None if seat == lost else node.end() for seat, node in enumerate(nodes)]
