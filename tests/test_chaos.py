"""Faults of networks and hosts, on nodes that are processes behind proxies. Each test mends what another has left.

The letters F are those of the fault table in DESIGN.md. Upper bounds of times are promises of the product, not speeds.
"""

from __future__ import annotations

import asyncio
import resource
import signal
import socket
from collections.abc import AsyncIterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
import pytest_asyncio

from p2pfl import Node
from tests.chaos.cluster import Cluster, cluster, cpu_seconds, resident_bytes
from tests.end_to_end.process import Running, launch, limited

pytestmark = [pytest.mark.sockets, pytest.mark.asyncio(loop_scope="module")]

COURSE = """
seed = 7
[course]
name = "fedavg"
rounds = 100000
deadline_seconds = 2
rejoin_seconds = 0 # a round goes on without who is cut off
exclude_after = 0
[topology]
n = 5
[model]
hidden = [512] # an update of 150 kB
[train]
batch_size = 64
"""
HALF_AN_UPDATE = 70_000  # bytes
SILENCE_SECONDS = 5 + 3  # until a silent peer is found out, and a margin for a busy machine
STOP_SECONDS = 5 + 3


@pytest_asyncio.fixture(loop_scope="module", scope="module", params=["uvloop", "asyncio"])
async def nodes(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Cluster]:
    """A hub and four clients, on one kind of loop. They come to know no address but those of their proxies."""
    options = ("--loop", request.param, "--fresh")
    async with cluster(tmp_path_factory.mktemp("chaos"), COURSE, *options, latency=0.025) as nodes:
        await (await nodes.start_hub()).row("node")
        async with asyncio.TaskGroup() as group:
            for name in "abcd":
                group.create_task(nodes.start(name))
        yield nodes
    for running in nodes.nodes.values():
        for words in ("never retrieved", "never awaited", "was destroyed", "ResourceWarning"):
            assert words not in running.stderr


async def quorum(hub: Running, count: int, since: int) -> int:
    """Wait for a round with so many; how many rows there were then."""
    await hub.row("round", since=since, participants=count)
    return len(hub.rows)


async def test_an_update_that_breaks_off_does_not_count(nodes: Cluster) -> None:
    """F2: the round ends at once without it, and the client is back in a moment."""
    await nodes.whole()
    since = len(nodes.hub.rows)
    nodes.proxies["a"].up.cut_after = HALF_AN_UPDATE
    await nodes.hub.row("event", "goes on without a: the connection ended without a goodbye", since=since)
    since = await quorum(nodes.hub, 3, since)
    await quorum(nodes.hub, 4, since)


async def test_a_changed_bit_ends_the_link_and_nothing_else(nodes: Cluster) -> None:
    """F16, in the middle of an update."""
    await nodes.whole()
    since = len(nodes.hub.rows)
    nodes.proxies["b"].up.flip_after = HALF_AN_UPDATE
    await nodes.hub.row("event", "is gone: bytes were changed, dropped or repeated: they do not decrypt", since=since)
    since = await quorum(nodes.hub, 3, since)
    await quorum(nodes.hub, 4, since)


async def test_peers_that_vanish_or_do_not_read_are_found_out(nodes: Cluster) -> None:
    """F11, F13 and F10: of one, the hub hears no more; the other does not hear the hub. Rounds go on without them."""
    await nodes.whole()
    hub, since, memory = nodes.hub, len(nodes.hub.rows), resident_bytes(nodes.hub.pid)
    nodes.proxies["a"].vanish()
    deaf = nodes.nodes["b"]
    deaf_since = len(deaf.rows)
    nodes.proxies["b"].down.stalled = True
    async with asyncio.timeout(SILENCE_SECONDS):
        await hub.row("event", "goes on without a: nothing came before the deadline", since=since)
        await hub.row("event", "is gone: nothing was heard for 5", since=since)
        await deaf.row("event", "is gone: nothing was heard for 5", since=deaf_since)
    await quorum(hub, 2, len(hub.rows))
    assert resident_bytes(hub.pid) - memory < 20e6


async def test_who_is_slow_misses_deadlines_and_holds_nobody_up(nodes: Cluster) -> None:
    """F12: 10 kB/s are 15 s for a model."""
    await nodes.whole()
    hub, slow, since = nodes.hub, nodes.proxies["c"], len(nodes.hub.rows)
    slow.up.rate = slow.down.rate = 10_000.0
    row = await hub.row("event", "goes on without c: nothing came before the deadline", since=since)
    since = hub.rows.index(row)
    for _ in range(3):
        since = await quorum(hub, 3, since)


async def test_a_network_that_is_merely_bad_changes_nothing(nodes: Cluster) -> None:
    """Latency, jitter and segments of odd sizes."""
    await nodes.whole()
    for proxy in nodes.proxies.values():
        for toxics in (proxy.up, proxy.down):
            toxics.latency, toxics.jitter, toxics.slice = 0.05, 0.05, 7001
    hub, since = nodes.hub, len(nodes.hub.rows)
    for _ in range(5):
        row = await hub.row("round", since=since)
        assert row["participants"] == 4
        since = hub.rows.index(row) + 1


def no_more_files(running: Running) -> AbstractContextManager[None]:
    """It can open nothing."""
    return limited(running, resource.RLIMIT_NOFILE, 3)


async def test_without_file_descriptors_rounds_go_on_and_newcomers_wait(nodes: Cluster) -> None:
    """F24: who is linked does not notice; who is not gets in when there are descriptors again."""
    await nodes.whole()
    hub, since, proxy = nodes.hub, len(nodes.hub.rows), nodes.proxies["d"]
    with no_more_files(hub):
        tries = proxy.accepted
        proxy.reset()
        await hub.row("event", "is gone: the connection ended without a goodbye", since=since)
        while proxy.accepted == tries:  # noqa: ASYNC110 - another process dials
            await asyncio.sleep(0.05)
        for _ in range(3):
            since = await quorum(hub, 3, since)


async def test_without_file_descriptors_nothing_spins(nodes: Cluster) -> None:
    """F24: the loop that accepts pauses for a second, and says so in a few lines. Rounds take what they took before."""
    await nodes.whole()
    hub, proxy = nodes.hub, nodes.proxies["d"]
    usual = await cpu_per_round(hub, rounds=15)
    said = len(hub.stderr)
    with no_more_files(hub):
        proxy.reset()
        await cpu_per_round(hub, rounds=15)  # asyncio needs some seconds to get going
        assert await cpu_per_round(hub, rounds=15) < 3 * usual
    assert len(hub.stderr) - said < 20_000


async def cpu_per_round(hub: Running, rounds: int) -> float:
    computed = cpu_seconds(hub.pid)
    for _ in range(rounds):
        await hub.row("round", since=len(hub.rows))
    return (cpu_seconds(hub.pid) - computed) / rounds


async def test_who_answers_in_the_place_of_another_is_told_apart(nodes: Cluster) -> None:
    """F28: an impostor at a known address; the words name both ids."""
    await nodes.whole()
    client, proxy = nodes.nodes["c"], nodes.proxies["c"]
    async with Node(listen="127.0.0.1:0", name="impostor") as impostor:
        port = int(impostor.addresses[0].rpartition(":")[2].partition("/")[0])
        expected, there, since = (await nodes.hub.row("node"))["id"], proxy.target, len(client.rows)
        proxy.target = ("127.0.0.1", port)
        proxy.reset()
        words = f"{impostor.id[:10]} answers where {expected[:10]} was expected"
        row = await client.row("event", words, since=since)
        assert row["text"].startswith(f"no link to {proxy.address}: ")
        proxy.target = there


async def test_addresses_that_lead_nowhere_are_named_and_tried_ever_less(nodes: Cluster, tmp_path: Path) -> None:
    """F28: a name that nobody knows, a port where nobody listens."""
    with socket.socket() as closed:  # bound and not listening: nobody else gets the port
        closed.bind(("127.0.0.1", 0))
        refusing = f"127.0.0.1:{closed.getsockname()[1]}"
        options = ("--peers", "nowhere.invalid:7700", refusing, "--identity", str(tmp_path / "key"))
        lost = await launch(*options)
        for address, reason in (
            ("nowhere.invalid:7700", "the host name is not known"),
            (refusing, "Connection refused"),
        ):
            since = 0
            for _ in range(3):
                row = await lost.row("event", f"no link to {address}: ", since=since)
                assert reason in row["text"]
                since = lost.rows.index(row) + 1
        async with asyncio.timeout(STOP_SECONDS):
            lost.send_signal(signal.SIGTERM)
            assert await lost.end() == 0


async def test_who_is_killed_is_missed_at_once_and_welcome_again(nodes: Cluster) -> None:
    """F1: the system closes its sockets, so nobody has to wait for silence."""
    await nodes.whole()
    hub, since = nodes.hub, len(nodes.hub.rows)
    async with asyncio.timeout(SILENCE_SECONDS / 2):
        await nodes.kill("d")
        await hub.row("event", "is gone: the connection ended without a goodbye", since=since)
        since = await quorum(hub, 3, since)


async def test_signals_end_a_node_within_seconds_even_if_nobody_answers(nodes: Cluster) -> None:
    """F30: the first lets it say goodbye, a second one does not wait for that."""
    await nodes.whole()
    hub, since = nodes.hub, len(nodes.hub.rows)
    polite, patient, hasty = (nodes.nodes[name] for name in "abd")
    async with asyncio.timeout(STOP_SECONDS):
        polite.send_signal(signal.SIGTERM)
        assert await polite.end() == 0
        await hub.row("event", "is gone: it said goodbye", since=since)
    hub.send_signal(signal.SIGSTOP)  # nobody says goodbye to the others: they would wait for that
    try:
        async with asyncio.timeout(STOP_SECONDS):
            patient.send_signal(signal.SIGTERM)
            while hasty.alive:
                hasty.send_signal(signal.SIGINT)
                await asyncio.sleep(0.2)
            assert [await hasty.end(), await patient.end()] == [130, 0]
    finally:
        hub.send_signal(signal.SIGCONT)
