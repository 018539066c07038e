"""How records spread: everybody learns of everybody, floods end, and no handler ever waits for it."""

from __future__ import annotations

import asyncio
import random
from contextlib import AsyncExitStack

import pytest

from p2pfl.link.memory import MemoryNetwork
from p2pfl.node.membership import MOST_RECORDS
from p2pfl.node.node import Node
from tests.node.kit import QUIET, Echo, Gated, Note, Stranger, linked, make, steps, until


async def test_a_node_that_was_given_one_address_learns_twenty_others() -> None:
    network = MemoryNetwork(delay=lambda *_: 0.05)
    async with AsyncExitStack() as stack:
        others = [
            await stack.enter_async_context(make(network, f"n{i}", peers=[f"n{i // 2}"] if i else [], seat=i))
            for i in range(21)
        ]
        await asyncio.sleep(5)
        late = await stack.enter_async_context(make(network, "late", peers=["n13"]))
        await asyncio.sleep(1)
        assert {member.id for member in late.members} == {"late", *(node.id for node in others)}
        assert all(member.addresses == (f"memory:{member.id}",) for member in late.members)
        assert [peer.id for peer in late.peers] == ["n13"]  # to know somebody is not to link to them
        assert all(node.members.get("late") is not None for node in others)


@pytest.mark.parametrize("seed", range(5))
async def test_in_any_graph_all_tables_become_equal_and_then_it_is_quiet(seed: int) -> None:
    rng = random.Random(seed)
    network = MemoryNetwork(delay=lambda *_: rng.random())
    async with AsyncExitStack() as stack:
        nodes: list[Node] = []
        for i in range(12):
            known = rng.sample([node.id for node in nodes], min(len(nodes), rng.randint(1, 4)))
            nodes.append(await stack.enter_async_context(make(network, f"n{i}", peers=known, settings=QUIET)))
        for seat, node in enumerate(nodes):
            await asyncio.sleep(rng.random())
            await node.members.announce(seat=seat)
        await asyncio.sleep(100)
        tables = [{member.id: member for member in node.members} for node in nodes]
        assert all(table == tables[0] for table in tables)
        assert sorted(member.seat for member in tables[0].values() if member.seat is not None) == list(range(12))
        before = [node.statistics() for node in nodes]
        await asyncio.sleep(1000)
        assert [node.statistics() for node in nodes] == before


async def test_more_records_than_a_message_takes() -> None:
    network = MemoryNetwork()
    async with AsyncExitStack() as stack:
        hub = await stack.enter_async_context(make(network, "hub", settings=QUIET))
        for i in range(2 * MOST_RECORDS + 5):
            await stack.enter_async_context(make(network, f"n{i}", peers=["hub"], settings=QUIET))
        late = await stack.enter_async_context(make(network, "late", peers=["hub"], settings=QUIET))
        await until(lambda: len(late.members) == 2 * MOST_RECORDS + 7)
        assert len(hub.members) == len(late.members)


async def test_a_peer_that_is_behind_is_told_the_newest_record_once() -> None:
    far = Gated()
    async with linked(far=(far,)) as (a, b):
        for n in range(a.peer("b").connection().session.tells_left):
            await a.peer("b").tell(Note(n))
        for seat in range(100):
            await a.members.announce(seat=seat)
        sent = a.peer("b").statistics().messages_sent
        await steps()
        assert b.peer("a").seat is None
        far.gate.set()
        await steps(100)
        assert b.peer("a").seat == 99
        assert a.peer("b").statistics().messages_sent - sent <= 2


async def test_a_peer_that_takes_nothing_does_not_keep_its_teller_from_others() -> None:
    network = MemoryNetwork()
    async with make(network, "hub") as hub, make(network, "a", Echo(), peers=["hub"]) as a:
        stranger = await Stranger.dial(network, "deaf", "hub")  # it never gives credit
        await until(lambda: hub.peer("deaf").connected and a.peer("hub").connected)
        for seat in range(200):
            await a.members.announce(seat=seat)
            await steps(5)
        assert hub.peer("a").seat == 199
        assert len(stranger.heads("tell")) == 32


async def test_rings_of_nodes_that_wait_for_each_other_do_not_lock() -> None:
    """With handlers that wait for room this one stands still: every window is full of records for the next node."""
    network = MemoryNetwork()
    async with AsyncExitStack() as stack:
        ring = [
            await stack.enter_async_context(make(network, f"n{i}", peers=[f"n{(i + 1) % 3}"], settings=QUIET))
            for i in range(3)
        ]
        strangers = [await Stranger.dial(network, f"s{i}", f"n{i}") for i in range(3)]
        await steps()
        for i, stranger in enumerate(strangers):
            for number in range(32):
                member = {"id": f"x{i}-{number}", "version": 1}
                stranger.send("tell", number + 1, "Roster", {"members": [member]})
        await asyncio.sleep(10)
        assert [len(node.members) for node in ring] == [3 + 3 * 32] * 3


async def test_lies_about_a_node_are_set_right() -> None:
    network = MemoryNetwork()
    async with make(network, "hub") as hub, make(network, "a", peers=["hub"], seat=1) as a:
        await until(lambda: hub.peer("a").connected)
        await steps()
        stranger = await Stranger.dial(network, "liar", "hub")
        member = {"id": "a", "name": "a", "addresses": ["memory:liar"], "seat": 0, "version": 1 << 61}
        stranger.send("tell", 1, "Roster", {"members": [member]})
        await steps(50)
        for node in (hub, a):
            known = node.members.get("a")
            assert known is not None
            assert (known.addresses, known.seat) == (("memory:a",), 1)


async def test_a_record_that_cannot_be_is_a_strike() -> None:
    network = MemoryNetwork()
    async with make(network, "hub") as hub:
        stranger = await Stranger.dial(network, "s", "hub")
        stranger.send("tell", 1, "Roster", {"members": [{"id": "x" * 1000}]})
        await steps()
        assert hub.statistics().violations == 1
        assert hub.members.get("x" * 1000) is None
