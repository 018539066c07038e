"""The end of a node: in peace, in a hurry, against resistance, and by cancellation at any moment."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any

import pytest

from p2pfl.errors import LinkClosed, LinkError, RemoteError
from p2pfl.link.memory import MemoryNetwork
from p2pfl.node.events import PeerJoined, PeerLost, PeerRefused
from p2pfl.node.peer import Peer
from tests.node.kit import QUIET, Busy, Echo, Gated, Log, Note, Ping, linked, make, steps, until


def elapsed(start: float) -> float:
    return asyncio.get_running_loop().time() - start


async def test_stopping_lets_handlers_end() -> None:
    far = Gated()
    async with linked(far=(far,)) as (a, b):
        start = asyncio.get_running_loop().time()
        asks = [asyncio.create_task(a.peer("b").ask(Ping(n))) for n in range(20)]
        await steps()
        asyncio.get_running_loop().call_later(2, far.gate.set)
        await b.stop()
        assert elapsed(start) == 2
        assert [(await ask).n for ask in asks] == list(range(1, 21))  # those that queued, too


async def test_a_handler_that_does_not_end_is_ended() -> None:
    far = Gated()
    async with linked(far=(far,)) as (a, b):
        asking = asyncio.create_task(a.peer("b").ask(Ping(1)))
        await steps()
        start = asyncio.get_running_loop().time()
        await b.stop()
        assert elapsed(start) == pytest.approx(3)
        assert far.cancelled == [1]
        with pytest.raises((RemoteError, LinkClosed)):
            await asking


async def test_a_handler_that_refuses_to_end_does_not_hold_the_node() -> None:
    over = asyncio.Event()

    class Stubborn:
        @Note.handler
        async def note(self, note: Note, peer: Peer) -> None:
            while not over.is_set():
                with suppress(asyncio.CancelledError):
                    await over.wait()

    async with linked(far=(Stubborn(),)) as (a, b):
        await a.peer("b").tell(Note(1))
        await steps()
        start = asyncio.get_running_loop().time()
        await b.stop()
        assert elapsed(start) <= 5.1
        over.set()


async def test_a_handler_of_a_lost_link_is_waited_for() -> None:
    ended = []

    class Tidy:
        @Note.handler
        async def note(self, note: Note, peer: Peer) -> None:
            await asyncio.sleep(1)
            ended.append(note.n)

    network = MemoryNetwork()
    async with linked(far=(Tidy(),), network=network) as (a, b):
        for n in range(12):  # more than are handled at once
            await a.peer("b").tell(Note(n))
        await steps()
        network.cut("a", "b")
        await steps()
        await b.stop()
        assert sorted(ended) == list(range(12))  # what was told counts, though who told it has gone


async def test_a_handler_of_a_lost_link_that_does_not_end_is_ended() -> None:
    ended = []

    class Waits:
        @Note.handler
        async def note(self, note: Note, peer: Peer) -> None:
            try:
                await asyncio.Event().wait()
            finally:
                ended.append(note.n)

    network = MemoryNetwork()
    async with linked(far=(Waits(),), network=network) as (a, b):
        await a.peer("b").tell(Note(1))
        await steps()
        network.cut("a", "b")
        await steps()
        assert not ended
        await b.stop()
        assert ended == [1]


async def test_a_peer_that_cannot_be_reached_does_not_hold_the_node() -> None:
    network = MemoryNetwork()
    async with linked(network=network, settings=QUIET) as (_, b):
        network.partition("a", "b")
        start = asyncio.get_running_loop().time()
        await b.stop()
        assert elapsed(start) <= 2.1
        assert not b.peers
        network.heal("a", "b")


async def test_stop_twice_and_at_once() -> None:
    far = Gated()
    async with linked(far=(far,)) as (a, b):
        await a.peer("b").tell(Note(1))
        await steps()
        start = asyncio.get_running_loop().time()
        async with asyncio.TaskGroup() as group:
            for _ in range(3):
                group.create_task(b.stop())
        assert elapsed(start) == pytest.approx(3)
        await b.stop()
        assert elapsed(start) == pytest.approx(3)


async def test_a_node_that_was_never_entered_needs_no_stop() -> None:
    await make(MemoryNetwork(), "a").stop()


async def test_who_waits_for_a_stop_can_leave_it_to_itself() -> None:
    far = Gated()
    async with linked(far=(far,)) as (a, b):
        asking = asyncio.create_task(a.peer("b").ask(Ping(1)))
        await steps()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1):
                await b.stop()
        far.gate.set()
        assert (await asking).n == 2


async def test_whoever_is_in_a_hurry_leaves_the_context_at_once() -> None:
    far = Gated()
    network = MemoryNetwork()
    async with make(network, "a", peers=["b"]) as a:
        log = Log(a)

        async def live() -> None:
            async with make(network, "b", far):
                await until(lambda: far.running == 1)

        living = asyncio.create_task(live())
        await until(lambda: a.peer("b").connected)
        await a.peer("b").tell(Note(1))
        await asyncio.sleep(1)
        assert not living.done()
        start = asyncio.get_running_loop().time()
        living.cancel()
        await asyncio.wait((living,))
        assert elapsed(start) == 0
        await steps()
        assert far.cancelled == [1]
        assert len(log.of(PeerLost)) == 1


async def test_the_body_may_raise() -> None:
    network = MemoryNetwork()
    async with make(network, "b") as b:
        with pytest.raises(KeyError):
            async with make(network, "a", peers=["b"]) as a:
                await until(lambda: a.peer("b").connected)
                raise KeyError
        await steps()
        assert not b.peers
        assert "memory:a" not in network.doors


async def test_a_stopped_node_takes_no_links() -> None:
    network = MemoryNetwork()
    node = make(network, "a")
    async with node, make(network, "b") as b:
        await node.stop()
        node.accept(await node.transport.dial("b"))
        await asyncio.sleep(1)
        assert not node.peers
        assert not b.peers


async def test_those_who_are_turned_away_are_told_of() -> None:
    async with make(MemoryNetwork(), "a") as node:
        log = Log(node)
        refused: Any = node.transport
        refused.refused("1.2.3.4", LinkError("garbage"))
        assert log.of(PeerRefused) == [PeerRefused("1.2.3.4", "garbage")]


async def test_events_end_with_the_node_and_the_last_is_the_last_loss() -> None:
    async with linked() as (_, b):
        log = Log(b)
        await b.stop()
        assert log.finished
        assert [type(event) for _, event in log.events] == [PeerLost]


# -- cancellation at any moment ----------------------------------------------------------------------------------------


async def play(network: MemoryNetwork, finished: list[str]) -> None:
    """Three nodes in one task group, each as on a host."""

    async def live(name: str, seat: int) -> None:
        peers = [other for other in ("n0", "n1", "n2") if other != name]
        async with make(network, name, Busy(), peers=peers, seat=seat) as node:
            await node.run()
        finished.append(name)

    async with asyncio.TaskGroup() as group:
        for seat in range(3):
            group.create_task(live(f"n{seat}", seat))


async def after_turns(work: Coroutine[Any, Any, None], turns: int, *, again: bool = False) -> bool:
    """Cancel the work after so many turns of the loop, maybe twice; whether it had ended by then."""
    loop: Any = asyncio.get_running_loop()
    task = asyncio.create_task(work)
    turned, turn, early = 0, loop._run_once, False

    def counted() -> None:
        nonlocal turned, early
        turned += 1
        if turned == turns:
            early = task.done()
            task.cancel()
        elif again and turned == turns + 3:
            task.cancel()
        turn()

    loop._run_once = counted
    try:
        await asyncio.wait((task,))
    finally:
        del loop._run_once
    if not task.cancelled():
        task.result()
    return early or turned < turns


@pytest.mark.parametrize("again", [False, True])
async def test_cancellation_at_every_turn_of_the_loop_leaves_nothing(again: bool) -> None:
    before = asyncio.all_tasks()
    for turns in range(1, 2000):
        delays = itertools.cycle((0.001, 0.0, 0.003, 0.002, 0.0))
        network, finished = MemoryNetwork(delay=lambda *_, delays=delays: next(delays)), list[str]()
        early = await after_turns(play(network, finished), turns, again=again)
        await steps(5)
        left = asyncio.all_tasks() - before
        assert not left, f"after {turns} turns {left}"
        assert not network.doors, f"after {turns} turns"
        await asyncio.sleep(1)
        assert not network.links, f"after {turns} turns"
        if early:
            break
    assert len(finished) == 3
    assert turns > 100


async def test_a_whole_life_among_others_joins_and_loses_each_once() -> None:
    network = MemoryNetwork()
    async with make(network, "hub") as hub:
        log = Log(hub)
        for i in range(5):
            async with make(network, f"n{i}", Echo(), peers=["hub"]):
                await until(lambda i=i: hub.peer(f"n{i}").connected)
        await asyncio.sleep(100)
        assert [event.peer for event in log.of(PeerJoined)] == [event.peer for event in log.of(PeerLost)]
        assert len(log.of(PeerJoined)) == 5
