"""Five processes learn together, and a simulation in one process ends with the very same model.

One coordinator and four clients, each `python -m p2pfl.node` with an identity and a shard of the digits of its own,
train over encrypted WebSockets on this machine. Then the same course runs once more, simulated in this process.
The last bits of both models must be equal, and the accuracy at least 0.93. Ctrl-C ends all of them politely.
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from p2pfl.app.build import prepare
from p2pfl.app.config import load_config
from p2pfl.app.run import model_hash
from p2pfl.app.simulate import simulate

COURSE = Path(__file__).with_name("digits.toml")
CLIENTS = 4
ACCURACY = 0.93

Row = dict[str, Any]  # one line of --json


async def main(home: Path) -> list[Row]:
    """Run the course in five processes; the reports that they end with, the coordinator's first."""
    course = ("--course", str(COURSE), "--topology.n", str(CLIENTS + 1))
    async with node(home / "coordinator", *course, "--listen", ":0") as coordinator:
        rows = read(coordinator)
        address = (await anext(rows))["addresses"][0]
        print(f"coordinator: process {coordinator.pid} listens at {address}")
        async with asyncio.TaskGroup() as group:
            lead = group.create_task(follow(rows, "coordinator"))
            clients = [group.create_task(client(home, number, address)) for number in range(1, CLIENTS + 1)]
    return [task.result() for task in (lead, *clients)]


async def client(home: Path, number: int, address: str) -> Row:
    async with node(home / f"client {number}", "--peers", address) as process:
        print(f"client {number}: process {process.pid} dials")
        return await follow(read(process), f"client {number}")


@asynccontextmanager
async def node(home: Path, *options: str) -> AsyncIterator[Process]:
    """A process that is told to say goodbye if it still runs in the end. Its errors appear on our own stderr."""
    command = [sys.executable, "-m", "p2pfl.node", *options, "--json"]
    command += ["--identity", str(home / "identity.key"), "--runs", str(home / "runs")]
    # In a session of its own: Ctrl-C reaches only this process, which then ends the others one by one.
    process = await asyncio.create_subprocess_exec(*command, stdout=PIPE, start_new_session=True)
    try:
        yield process
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGINT)
        try:
            async with asyncio.timeout(10):
                await process.communicate()
        except TimeoutError:
            process.kill()
            await process.wait()


async def read(process: Process) -> AsyncIterator[Row]:
    assert process.stdout is not None
    async for line in process.stdout:
        yield json.loads(line)
    if await process.wait():
        raise SystemExit(f"process {process.pid} failed with exit code {process.returncode}")


async def follow(rows: AsyncIterator[Row], name: str) -> Row:
    """Show what a process tells, to its end."""
    report: Row = {}
    async for row in rows:
        match row["kind"]:
            case "round":
                accuracy = row["metrics"]["accuracy"]
                print(f"round {row['round']:3}  accuracy {accuracy:.4f}  {'█' * round(40 * accuracy)}")
            case "event":
                print(f"{name}: {row['text']}")
            case "report":
                report = row
    return report


def compare(reports: list[Row]) -> int:
    """Simulate the same course, and say whether all models are one."""
    print(f"\nthe same course, simulated in this process on virtual time ({COURSE.name}, {CLIENTS + 1} seats) ...")
    torch.set_num_threads(1)
    config = load_config(COURSE)
    outcome = simulate(prepare(replace(config, topology=replace(config.topology, n=CLIENTS + 1))))
    deployed, simulated = {report["model_hash"] for report in reports}, model_hash(outcome.params)
    accuracy = reports[0]["metrics"]["accuracy"]
    print(f"{len(reports)} processes  {', '.join(sorted(deployed))}")
    print(f"simulation   {simulated}")
    print(f"the models are {'EQUAL' if deployed == {simulated} else 'NOT EQUAL'}, test accuracy {accuracy:.4f}")
    return 0 if deployed == {simulated} and accuracy >= ACCURACY else 1


if __name__ == "__main__":
    with TemporaryDirectory(prefix="p2pfl-demo-") as folder:
        try:
            sys.exit(compare(asyncio.run(main(Path(folder)))))
        except KeyboardInterrupt:
            print("\ninterrupted; all processes have said goodbye")
            sys.exit(130)
