"""Gossip without end: what one peer makes up is bounded where it is kept, and slows nobody down. See DESIGN.md."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

import pytest

from p2pfl.link.memory import MemoryNetwork
from p2pfl.node.membership import MOST_RECORDS
from p2pfl.node.node import Node
from tests.node.kit import QUIET, Echo, Ping, Stranger, make, until

_TABLE = 500


@pytest.fixture(autouse=True)
def small_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("p2pfl.node.membership._MOST_MEMBERS", _TABLE)


async def storm(stranger: Stranger, rosters: int) -> None:
    """Make up members, as fast as credit allows."""
    for number in range(rosters):
        while number - sum(head[1] for head in stranger.heads("credit")) >= 32:
            assert not stranger.inbox.errors
            await asyncio.sleep(0.01)
        members = [{"id": f"x{number}-{each}", "version": 1} for each in range(MOST_RECORDS)]
        stranger.send("tell", number + 1, "Roster", {"members": members})


async def test_a_storm_of_records_fills_no_memory_and_keeps_nobody_waiting() -> None:
    network = MemoryNetwork(delay=lambda *_: 0.01)
    async with AsyncExitStack() as stack:
        nodes: list[Node] = []
        for name in "abcd":
            known = [node.id for node in nodes]
            nodes.append(await stack.enter_async_context(make(network, name, Echo(), peers=known, settings=QUIET)))
        await until(lambda: all(len(node.peers) == 3 for node in nodes))
        stranger = await Stranger.dial(network, "s", "a")
        raging = asyncio.create_task(storm(stranger, 400))
        loop = asyncio.get_running_loop()
        while not raging.done():
            before = loop.time()
            assert (await nodes[1].peer("a").ask(Ping(1))).n == 2
            assert loop.time() - before < 0.1
            await asyncio.sleep(0.05)
        await raging
        await asyncio.sleep(10)
        assert all(len(node.members) <= _TABLE for node in nodes)
        assert all({"a", "b", "c", "d"} <= {member.id for member in node.members} for node in nodes), "nobody is ousted"
        sent = [node.statistics().messages_sent for node in nodes]
        await asyncio.sleep(100)
        assert [node.statistics().messages_sent for node in nodes] == sent, "and then it is quiet"
