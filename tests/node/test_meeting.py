"""Coming together by seats: who is met, who is enough, and what is said while they are missing."""

from __future__ import annotations

import asyncio
import doctest
from contextlib import AsyncExitStack
from typing import Any

import pytest

from p2pfl.link.memory import MemoryNetwork
from p2pfl.node import meeting
from p2pfl.node.events import Waiting
from p2pfl.node.meeting import missing_seats
from p2pfl.node.membership import Member
from tests.node.kit import Log, make, until


def test_docstrings() -> None:
    assert doctest.testmod(meeting).failed == 0


async def test_nodes_that_know_one_address_meet_by_seat() -> None:
    network = MemoryNetwork(delay=lambda *_: 0.02)
    async with AsyncExitStack() as stack:
        nodes = [
            await stack.enter_async_context(make(network, f"n{i}", peers=["n0"] if i else [], seat=i)) for i in range(8)
        ]
        met = await nodes[5].meet([6, 4, 5 - 3])
        assert [peer.seat for peer in met] == [2, 4, 6]
        assert nodes[5].at(6) is met[2]
        assert nodes[5].at(7) is None
        assert nodes[5].at(99) is None
        assert [peer.seat for peer in nodes[5].peers] == [0, 2, 4, 6]


async def test_enough_are_enough() -> None:
    network = MemoryNetwork()
    async with make(network, "hub", seat=0) as hub, asyncio.TaskGroup() as group:
        meeting = group.create_task(hub.meet([1, 2, 3], at_least=2))
        for seat in (3, 1):
            await asyncio.sleep(1)
            assert not meeting.done()
            group.create_task(_stay(network, f"n{seat}", seat, 10))
        assert [peer.seat for peer in await meeting] == [1, 3]
        assert await hub.meet([], at_least=5) == []


async def _stay(network: MemoryNetwork, name: str, seat: int, seconds: float, **options: Any) -> None:
    async with make(network, name, peers=["hub"], seat=seat, **options):
        await asyncio.sleep(seconds)


async def test_two_that_do_not_listen_wait_and_say_so() -> None:
    network = MemoryNetwork()
    async with (
        make(network, "hub") as hub,
        make(network, "x", peers=["hub"], listen=(), seat=1) as x,
        make(network, "y", peers=["hub"], listen=(), seat=2),
    ):
        await until(lambda: len(hub.peers) == 2)
        assert [peer.id for peer in await hub.meet([1, 2])] == ["x", "y"]  # who listens meets both
        log = Log(x)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(12):
                await x.meet([2])
        assert [event.what for event in log.of(Waiting)] == [
            "links to 1 more of the seats 2; neither this node nor 2 listens: "
            "one of each two must, give it an address to listen at"
        ] * 2


async def test_of_two_in_one_seat_the_first_keeps_it() -> None:
    network = MemoryNetwork()
    async with make(network, "hub") as hub, make(network, "first", peers=["hub"], seat=1):
        await until(lambda: hub.at(1))
        async with make(network, "second", peers=["hub"], seat=1):
            await asyncio.sleep(1)
            assert [peer.id for peer in hub.peers] == ["first", "second"]
            assert [peer.id for peer in await hub.meet([1])] == ["first"]


async def test_the_words_for_seats_that_are_missing() -> None:
    network = MemoryNetwork()
    async with make(network, "a", seat=0) as listening, make(network, "b", listen=(), seat=1) as silent:
        records = [Member("x", addresses=("x",), seat=2, version=1), Member("y", seat=3, version=1)]
        for node in (listening, silent):
            node.members.learn(records)
        assert missing_seats(listening, [2], 1) == "links to 1 more of the seats 2"
        assert (
            missing_seats(listening, [2, 3, 4, 5], 3)
            == "links to 3 more of the seats 2-5; nobody is known to sit in 4-5; 3 must dial this node"
        )
        assert missing_seats(silent, [2, 3], 2) == (
            "links to 2 more of the seats 2-3; neither this node nor 3 listens: "
            "one of each two must, give it an address to listen at"
        )


async def test_linked_waits_for_so_many() -> None:
    network = MemoryNetwork()
    async with make(network, "hub") as hub, asyncio.TaskGroup() as group:
        log = Log(hub)
        waiting = group.create_task(hub.linked(2))
        for name in ("x", "y"):
            await asyncio.sleep(6)
            assert not waiting.done()
            group.create_task(_stay(network, name, 1, 10))
        assert [peer.id for peer in await waiting] == ["x", "y"]
        assert [event.what for event in log.of(Waiting)] == ["2 more peers", "1 more peers"]
        assert await hub.linked(0) == hub.peers
