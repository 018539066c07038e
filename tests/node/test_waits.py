"""What is waited for is told periodically, in words that say what to do."""

from __future__ import annotations

import asyncio

import pytest

from p2pfl.link.memory import MemoryNetwork
from p2pfl.node.events import Waiting
from p2pfl.node.settings import NodeSettings
from tests.node.kit import QUIET, Gated, Log, Ping, linked, make, steps


async def test_what_changes_between_looking_and_waiting_is_not_missed() -> None:
    async with make(MemoryNetwork(), "a") as node:
        looked = node.changes
        node.stir()
        await node.change(looked)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(100):
                await node.change(node.changes)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(100):
                await node.change()


async def test_a_declared_wait_is_told_again_and_again() -> None:
    async with make(MemoryNetwork(), "a") as node:
        log = Log(node)
        with node.waiting("rain") as reword:
            await asyncio.sleep(11)
            reword("snow")
            await asyncio.sleep(5)
        assert [(event.what, round(event.seconds)) for event in log.of(Waiting)] == [
            ("rain", 5),
            ("rain", 10),
            ("snow", 15),
        ]
        await asyncio.sleep(100)
        assert len(log.of(Waiting)) == 3
        assert node.waits() == []


async def test_a_short_wait_is_not_worth_a_word() -> None:
    async with make(MemoryNetwork(), "a") as node:
        log = Log(node)
        for _ in range(20):
            with node.waiting("a moment"):
                await asyncio.sleep(3)
        assert not log.of(Waiting)


async def test_asks_are_told_by_request_with_some_of_the_names() -> None:
    far = Gated()
    async with linked(far=(far,)) as (a, _):
        log, start = Log(a), asyncio.get_running_loop().time()
        asking = asyncio.create_task(a.peer("b").ask(Ping(1)))
        await steps()
        assert a.waits() == [("answers to Ping from b", start)]
        async with a.ask_all(a.peers, Ping(2)):
            await asyncio.sleep(6)
        assert [event.what for event in log.of(Waiting)] == ["answers to Ping from b, b"]
        far.gate.set()
        await asking
        await asyncio.sleep(20)
        assert len(log.of(Waiting)) == 1


async def test_many_names_are_cut() -> None:
    network = MemoryNetwork()
    async with make(network, "hub") as hub, asyncio.TaskGroup() as group:
        stop = asyncio.Event()

        async def serve(name: str) -> None:
            async with make(network, name, Gated(), peers=["hub"]):
                await stop.wait()

        for i in range(8):
            group.create_task(serve(f"n{i}"))
        await asyncio.sleep(1)
        async with hub.ask_all(hub.peers, Ping(1)):
            assert [what for what, _ in hub.waits()] == ["answers to Ping from n0, n1, n2, n3, n4 and 3 more"]
        stop.set()


async def test_nothing_is_told_and_no_timer_runs_when_reports_are_endless() -> None:
    async with make(MemoryNetwork(), "a", settings=QUIET) as node:
        log = Log(node)
        with node.waiting("rain"):
            await asyncio.sleep(1e6)
            assert [what for what, _ in node.waits()] == ["rain"]
        assert not log.of(Waiting)


async def test_a_stopped_node_is_silent() -> None:
    node = make(MemoryNetwork(), "a", settings=NodeSettings(report_seconds=1))
    log = Log(node)
    async with node:
        pass
    with node.waiting("nothing any more"):
        await asyncio.sleep(10)
    assert not log.of(Waiting)
