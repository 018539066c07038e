"""Nodes that are killed, and disks that fail: whatever happens, each round is made of one update of every client.

The oracle is a simulation of the same course without any fault: every committed model is equal to its, to the last bit.
The hub runs on uvloop, its clients on the loop of asyncio. Each test mends what another has left.
"""

from __future__ import annotations

import asyncio
import resource
from collections.abc import AsyncIterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
import pytest_asyncio

from tests.chaos.cluster import HUB, Cluster, cluster
from tests.chaos.record import committed, undisturbed
from tests.end_to_end.process import Running, limited

pytestmark = [pytest.mark.sockets, pytest.mark.asyncio(loop_scope="module")]

COURSE = """
seed = 7
[course]
name = "fedavg"
rounds = 100000
rejoin_seconds = 60
exclude_after = 0
[topology]
n = 4
[train]
batch_size = 64
"""
CLIENTS = "abc"
PATIENCE_SECONDS = 4


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def nodes(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Cluster]:
    """A hub and three clients. The last one gives up soon."""
    async with cluster(tmp_path_factory.mktemp("durable"), COURSE, latency=0.05) as nodes:
        await (await nodes.start_hub()).row("node")
        async with asyncio.TaskGroup() as group:
            for name in CLIENTS:
                patience = ("--patience-seconds", str(PATIENCE_SECONDS)) if name == "c" else ()
                group.create_task(nodes.start(name, "--loop", "asyncio", *patience))
        await nodes.hub.row("round")
        yield nodes
    for running in nodes.nodes.values():
        for words in ("never retrieved", "never awaited", "was destroyed", "ResourceWarning"):
            assert words not in running.stderr


async def rounds_more(nodes: Cluster, count: int) -> None:
    """Wait for so many rounds; then look at all that were committed."""
    hub = nodes.hub
    for _ in range(count):
        await hub.row("round", since=len(hub.rows))
    await asyncio.to_thread(check, nodes.home(HUB))


def check(home: Path) -> None:
    """I1: nobody is missing and nobody counts twice. I2, I10: the models are those of a run without faults."""
    found = committed(home)
    models = undisturbed(COURSE, max(found)).models
    for round, entry in found.items():
        assert entry.seats == (1, 2, 3), f"round {round}"
        assert entry.model == models[round - 1], f"round {round}"


async def told(running: Running, words: str) -> None:
    """Wait until it tells so, from now on."""
    await running.row("event", words, since=len(running.rows))


async def test_a_client_that_dies_counts_once(nodes: Cluster) -> None:
    """F1 and F3: one is killed in the middle of an update, another as soon as its update is part of a round."""
    await nodes.whole()
    nodes.proxies["b"].up.cut_after = 5_000
    await told(nodes.hub, "is gone: the connection ended without a goodbye")
    await nodes.kill("b")
    await nodes.restart("b")
    await told(nodes.hub, "is committed")
    await nodes.kill("a")
    await nodes.whole()
    await rounds_more(nodes, 3)


async def test_an_update_or_its_receipt_that_is_lost_counts_once(nodes: Cluster) -> None:
    """F3: one client is heard and does not hear, another hears and is not heard; both are asked again."""
    await nodes.whole()
    nodes.proxies["a"].down.vanished = True
    nodes.proxies["b"].up.vanished = True
    async with asyncio.TaskGroup() as group:
        group.create_task(told(nodes.nodes["a"], "is gone: nothing was heard"))
        group.create_task(told(nodes.hub, "is gone: nothing was heard"))
    await nodes.whole()
    await rounds_more(nodes, 3)


async def test_a_hub_that_was_killed_goes_on_behind_the_last_round_that_it_committed(nodes: Cluster) -> None:
    """F4 and F6: the same command goes on as the same node. Who does not want to wait has given up by then, with 75."""
    await nodes.whole()
    who = (await nodes.hub.row("node"))["id"]
    await told(nodes.hub, "is committed")
    await nodes.kill(HUB)
    last = max(committed(nodes.home(HUB)))
    assert await nodes.nodes["c"].end() == 75
    hub = await nodes.restart(HUB)
    assert (await hub.row("node"))["id"] == who
    assert (await hub.row("resumed"))["round"] == last
    await nodes.restart("c")
    assert (await hub.row("round"))["round"] == last + 1
    await rounds_more(nodes, 3)


def full_disk(running: Running) -> AbstractContextManager[None]:
    """No file can be written to."""
    return limited(running, resource.RLIMIT_FSIZE, 0)


async def test_rounds_go_on_while_the_disk_is_full(nodes: Cluster) -> None:
    """F22: at the hub, then at a client. Everybody is told; the last good state is intact; then all is as before."""
    await nodes.whole()
    hub = nodes.hub
    with full_disk(hub):
        await told(hub, "would not survive a crash")
        before = committed(nodes.home(HUB))
        await rounds_more(nodes, 3)
        assert committed(nodes.home(HUB)) == before
    await told(hub, "is committed")
    client = nodes.nodes["a"]
    with full_disk(client):
        await told(client, "would not survive a crash")
        await rounds_more(nodes, 3)
    await rounds_more(nodes, 3)


async def test_what_is_damaged_is_passed_over(nodes: Cluster) -> None:
    """F23: one bit of the last state, half of an update that was kept, and the tables."""
    await nodes.whole()
    for name in (HUB, "a"):
        await nodes.kill(name)
    [folder] = (nodes.home(HUB) / "runs").iterdir()
    *_, older, newest = sorted(folder.glob("round-*"))
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes(content)
    (folder / "journal.sqlite").write_bytes(b"rubbish" * 1000)
    [kept] = nodes.home("a").glob("runs/*/kept-*")
    kept.write_bytes(kept.read_bytes()[:1000])
    hub = await nodes.restart(HUB)
    assert (await hub.row("resumed"))["round"] == int(older.stem.removeprefix("round-"))
    await hub.row("damage", newest.name)
    await hub.row("damage", "was damaged")
    await nodes.whole()
    await rounds_more(nodes, 3)
