"""How long it takes: `python -m tests.benchmarks.recovery [closed silent rejoin] [--runs 3]`.

Four processes elect their coordinator. `closed`: it is killed, and the system closes its links. `silent`: it is
stopped, and its links stay open. Seconds until another has noticed, and until the next round is done, under another.
`rejoin`: a client is killed and started again. Seconds, with the start of Python, until a round has all clients again.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from statistics import median

from tests.chaos.cluster import HUB, Cluster, cluster, free_port

COURSE = """
seed = 7
[course]
name = "fedavg"
rounds = 100_000
coordinator = "elect"
exclude_after = 0
evaluate_every = 1000
[topology]
n = 4
"""
CLIENTS = ("a", "b", "c")

Found = dict[str, float]  # seconds


async def lose(nodes: Cluster, number: signal.Signals) -> Found:
    """Send this signal to the coordinator."""
    since, gone = {name: len(nodes.nodes[name].rows) for name in CLIENTS}, await _gone(nodes, HUB)
    nodes.hub.send_signal(number)
    return {
        "noticed": await _first(nodes, lambda name: nodes.nodes[name].row("event", gone, since=since[name])),
        "next round": await _first(nodes, lambda name: nodes.nodes[name].row("round", since=since[name])),
    }


async def _first(nodes: Cluster, wanted: Callable[[str], Awaitable[object]]) -> float:
    """Seconds until the first of the clients has it."""
    found = asyncio.Event()

    async def wait(name: str) -> None:
        await wanted(name)
        found.set()

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(wait(name)) for name in CLIENTS]
        await found.wait()
        seconds = asyncio.get_running_loop().time()
        for task in tasks:
            task.cancel()
    return seconds


async def _gone(nodes: Cluster, name: str) -> str:
    """What others say when its link has ended."""
    peer: str = (await nodes.nodes[name].row("node"))["id"]
    return f"{peer[:10]} is gone"


async def rejoin(nodes: Cluster) -> Found:
    """Kill a client, and start it again after a while."""
    gone = await _gone(nodes, "a")
    await nodes.kill("a")
    await nodes.hub.row("event", gone)
    await asyncio.sleep(2)
    since = len(nodes.hub.rows)
    started = asyncio.get_running_loop().time()
    await nodes.restart("a")
    await nodes.hub.row("round", since=since, participants=len(CLIENTS))
    return {"in a round": asyncio.get_running_loop().time() - started}


async def story(name: str, folder: Path) -> Found:
    """One of them, from the beginning."""
    async with cluster(folder, COURSE) as nodes:
        await (await nodes.start_hub()).row("node")
        for client in CLIENTS:
            await nodes.start(client, "--listen", f":{free_port()}")
        await nodes.hub.row("round", participants=len(CLIENTS))
        await asyncio.sleep(2)
        if name == "rejoin":
            return await rejoin(nodes)
        start = asyncio.get_running_loop().time()
        found = await lose(nodes, signal.SIGKILL if name == "closed" else signal.SIGSTOP)
        return {what: at - start for what, at in found.items()}


def main(arguments: list[str] | None = None) -> int:
    """The exit code: 0."""
    stories = ("closed", "silent", "rejoin")
    parser = argparse.ArgumentParser("python -m tests.benchmarks.recovery", description=__doc__)
    parser.add_argument("stories", nargs="*", help=f"of {', '.join(stories)}; default all")
    parser.add_argument("--runs", type=int, default=3, help="of each; the table has medians and the longest")
    options = parser.parse_args(arguments)
    print(f"{'':8} {'':12} {'median, s':>9} {'longest':>7}")
    for name in options.stories or stories:
        found: dict[str, list[float]] = {}
        for _ in range(options.runs):
            with tempfile.TemporaryDirectory(prefix="p2pfl-recovery-") as folder:
                for what, seconds in asyncio.run(story(name, Path(folder))).items():
                    found.setdefault(what, []).append(seconds)
        for what, times in found.items():
            print(f"{name:8} {what:12} {median(times):9.2f} {max(times):7.2f}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
