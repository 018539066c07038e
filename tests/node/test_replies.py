"""One request to many: arrival order, leaving early, losses on the way, and nothing left open at either end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest

from p2pfl.errors import LinkClosed, LinkTruncated, MessageError, RemoteError
from p2pfl.link.memory import MemoryNetwork
from p2pfl.node.node import Node
from p2pfl.node.peer import Peer
from p2pfl.node.replies import Replies
from p2pfl.wire.message import Request
from tests.node.kit import QUIET, Gated, Ping, Pong, Stranger, make, steps, until


class Mystery(Request[Pong]):
    """Nobody handles it."""


class Timed:
    """Answers after `delay` seconds; a negative delay fails."""

    def __init__(self, delay: float) -> None:
        self.delay = delay
        self.begun = self.cancelled = 0

    @Ping.handler
    async def ping(self, ask: Ping, peer: Peer) -> Pong:
        self.begun += 1
        try:
            await asyncio.sleep(abs(self.delay))
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if self.delay < 0:
            raise ValueError("no")
        return Pong(ask.n)


class Star:
    """A hub that has dialled workers, of the ids "w0", "w1" and so on."""

    def __init__(self, network: MemoryNetwork, hub: Node, nodes: list[Node], roles: list[Timed]) -> None:
        self.network, self.hub, self.nodes, self.roles = network, hub, nodes, roles

    @property
    def peers(self) -> list[Peer]:
        return [self.hub.peer(node.id) for node in self.nodes]

    @property
    def idle(self) -> bool:
        ends = [self.hub.peer(node.id) for node in self.nodes] + [node.peer("hub") for node in self.nodes]
        return all(connection.session.idle for peer in ends for connection in peer.connections)


@pytest.fixture
async def star() -> AsyncIterator[Star]:
    network = MemoryNetwork()
    roles = [Timed(delay) for delay in (3, 1, 2, 5, 4)]
    async with AsyncExitStack() as stack:
        nodes = [
            await stack.enter_async_context(make(network, f"w{i}", role, seat=i + 1, settings=QUIET))
            for i, role in enumerate(roles)
        ]
        hub = await stack.enter_async_context(make(network, "hub", peers=[node.id for node in nodes], settings=QUIET))
        await until(lambda: len(hub.peers) == len(nodes))
        await steps()
        yield Star(network, hub, nodes, roles)


async def test_replies_come_as_they_arrive(star: Star) -> None:
    start, loop = asyncio.get_running_loop().time(), asyncio.get_running_loop()
    seen = []
    async with star.hub.ask_all(star.peers, Ping(7)) as replies:
        async for peer, reply in replies:
            assert reply == Pong(7)
            seen.append((peer.id, round(loop.time() - start)))
    assert seen == [("w1", 1), ("w2", 2), ("w0", 3), ("w4", 4), ("w3", 5)]
    assert not replies.failed
    assert not replies.waiting


async def test_replies_that_came_meanwhile_are_kept_in_order(star: Star) -> None:
    async with star.hub.ask_all(star.peers, Ping(7)) as replies:
        await asyncio.sleep(10)
        assert [peer.id async for peer, _ in replies] == ["w1", "w2", "w0", "w4", "w3"]


async def test_break_cancels_the_rest_at_both_ends(star: Star) -> None:
    async with star.hub.ask_all(star.peers, Ping(7)) as replies:
        async for _ in replies:
            if len(replies.waiting) == 3:
                break
    assert {peer.id for peer in replies.waiting} == {"w0", "w3", "w4"}
    await steps()
    assert [role.cancelled for role in star.roles] == [1, 0, 0, 1, 1]
    assert star.idle


async def test_an_exception_in_the_block_passes_and_cancels(star: Star) -> None:
    with pytest.raises(KeyError):
        async with star.hub.ask_all(star.peers, Ping(7)) as replies:
            async for _ in replies:
                raise KeyError
    await steps()
    assert sum(role.cancelled for role in star.roles) == 4
    assert star.idle


async def test_a_deadline(star: Star) -> None:
    seen = []
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(2.5), star.hub.ask_all(star.peers, Ping(7)) as replies:
            async for peer, _ in replies:
                seen.append(peer.id)
    assert seen == ["w1", "w2"]
    await steps()
    assert star.idle


async def test_a_block_that_takes_no_replies(star: Star) -> None:
    async with star.hub.ask_all(star.peers, Ping(7)):
        pass
    await steps()
    assert [role.begun for role in star.roles] == [role.cancelled for role in star.roles]
    assert star.idle


async def test_after_the_block_there_is_no_more(star: Star) -> None:
    async with star.hub.ask_all(star.peers, Ping(7)) as replies:
        pass
    assert [reply async for reply in replies] == []


async def test_nobody_is_asked() -> None:
    async with make(MemoryNetwork(), "hub") as hub, hub.ask_all([], Ping(1)) as replies:
        assert [reply async for reply in replies] == []


async def test_failures_are_kept_and_end_the_loop(star: Star) -> None:
    star.roles[0].delay = -1
    peers = [*star.peers, star.hub.peer("stranger")]
    async with star.hub.ask_all(peers, Ping(7)) as replies:
        await asyncio.sleep(1.5)
        star.network.cut("hub", "w3")
        seen = [peer.id async for peer, _ in replies]
    assert seen == ["w1", "w2", "w4"]
    errors = {peer.id: type(error) for peer, error in replies.failed.items()}
    assert errors == {"w0": RemoteError, "w3": LinkTruncated, "stranger": LinkClosed}
    await steps()
    assert star.roles[3].cancelled == 1


async def test_all_fail(star: Star) -> None:
    for role in star.roles:
        role.delay = -role.delay
    async with star.hub.ask_all(star.peers, Ping(7)) as replies:
        assert [reply async for reply in replies] == []
    assert len(replies.failed) == 5


async def test_a_peer_that_stops_in_between_still_answers(star: Star) -> None:
    async with star.hub.ask_all(star.peers, Ping(7)) as replies, asyncio.TaskGroup() as group:
        group.create_task(star.nodes[1].stop())
        assert [peer.id async for peer, _ in replies] == ["w1", "w2", "w0", "w4", "w3"]


async def test_a_malformed_reply_is_a_failure() -> None:
    network = MemoryNetwork()
    async with make(network, "hub") as hub:
        stranger = await Stranger.dial(network, "s", "hub")
        await until(lambda: hub.peer("s").connected)
        async with hub.ask_all(hub.peers, Ping(1)) as replies:
            await until(lambda: stranger.heads("ask"))
            stranger.send("reply", stranger.heads("ask")[0][1], "Pong", {"n": "x"})
            assert [reply async for reply in replies] == []
        assert [type(error) for error in replies.failed.values()] == [RemoteError]


async def test_asks_beyond_the_window_wait_and_then_go() -> None:
    network, far = MemoryNetwork(), Gated()
    async with make(network, "w", far) as worker, make(network, "hub", peers=["w"]) as hub:
        await until(lambda: hub.peer("w").connected)
        async with AsyncExitStack() as stack:
            blocks = [await stack.enter_async_context(hub.ask_all(hub.peers, Ping(n))) for n in range(70)]
            await steps()
            assert hub.peer("w").connection().session.asks_left == 0
            far.gate.set()
            assert [[reply.n async for _, reply in block] for block in blocks] == [[n + 1] for n in range(70)]
        assert worker.peer("hub").connection().session.idle


@pytest.mark.parametrize("cut", [False, True])
async def test_asks_that_wait_for_room_end_with_the_block_and_with_the_link(cut: bool) -> None:
    network, far = MemoryNetwork(), Gated()
    async with make(network, "w", far), make(network, "hub", peers=["w"]) as hub:
        await until(lambda: hub.peer("w").connected)
        async with AsyncExitStack() as stack:
            for n in range(64):
                await stack.enter_async_context(hub.ask_all(hub.peers, Ping(n)))
            async with hub.ask_all(hub.peers, Ping(64)) as late:
                await steps()
                assert len(late.waiting) == 1
                if cut:
                    network.cut("hub", "w")
                    assert [reply async for reply in late] == []
                    assert [type(error) for error in late.failed.values()] == [LinkClosed]


async def test_a_message_that_cannot_be_sent_asks_nobody(star: Star) -> None:
    with pytest.raises(MessageError):
        async with star.hub.ask_all(star.peers, Ping(1 << 70)):
            pass
    await steps()
    assert star.idle
    assert sum(role.begun for role in star.roles) == 0


@pytest.mark.parametrize("turns", range(12))
async def test_cancellation_at_any_moment_leaves_nothing_open(star: Star, turns: int) -> None:
    async def collect() -> None:
        async with star.hub.ask_all(star.peers, Ping(7)) as replies:
            async for _ in replies:
                await asyncio.sleep(0.3)

    for delay in (0.0, 1.0, 2.9):
        task = asyncio.create_task(collect())
        await asyncio.sleep(delay)
        await steps(turns)
        task.cancel()
        await asyncio.wait((task,))
        await steps()
        assert star.idle


async def test_who_is_cut_off_is_asked_again_when_it_is_back(star: Star) -> None:
    async with star.hub.ask_all(star.peers, Ping(7), rejoin_seconds=30) as replies:
        await asyncio.sleep(2.5)
        star.network.cut("hub", "w3")
        seen = [peer.id async for peer, _ in replies]
    assert seen == ["w1", "w2", "w0", "w4", "w3"]
    assert [role.begun for role in star.roles] == [1, 1, 1, 2, 1]
    assert not replies.failed
    assert star.peers[3].lost_at is not None


async def test_who_stays_away_is_waited_for_so_long(star: Star) -> None:
    loop = asyncio.get_running_loop()
    start = loop.time()
    async with star.hub.ask_all(star.peers, Ping(7), rejoin_seconds=30) as replies:
        await asyncio.sleep(1.5)
        star.network.take_offline("w3")
        seen = [peer.id async for peer, _ in replies]
    assert loop.time() - start == pytest.approx(31.5)
    assert seen == ["w1", "w2", "w0", "w4"]
    assert isinstance(replies.failed[star.peers[3]], LinkTruncated)


async def test_who_says_goodbye_is_not_waited_for(star: Star) -> None:
    loop = asyncio.get_running_loop()
    async with star.hub.ask_all([star.peers[3]], Ping(7), rejoin_seconds=30) as replies:
        start = loop.time()
        stopping = asyncio.create_task(star.nodes[3].stop())
        assert [peer async for peer, _ in replies] == []
        await stopping
    assert loop.time() - start < 6
    assert star.peers[3] in replies.failed
    assert star.peers[3].lost_at is None


async def test_who_is_lost_over_and_over_is_not_waited_for_without_end(star: Star) -> None:
    star.roles[3].delay = 1000

    async def flap() -> None:
        while True:
            await asyncio.sleep(5)
            star.network.cut("hub", "w3")

    flapping = asyncio.create_task(flap())
    async with asyncio.timeout(100), star.hub.ask_all([star.peers[3]], Ping(7), rejoin_seconds=30) as replies:
        assert [peer async for peer, _ in replies] == []
    flapping.cancel()
    assert star.peers[3] in replies.failed


async def test_a_role_that_comes_later_is_asked_then(star: Star) -> None:
    newcomer = make(star.network, "new", seat=9, settings=QUIET, peers=["hub"])
    newcomer.dispatch.expecting = True
    async with newcomer:
        await until(lambda: star.hub.peer("new").connected)
        async with star.hub.ask_all([star.hub.peer("new")], Ping(3), rejoin_seconds=30) as replies:
            await asyncio.sleep(1)
            newcomer.add(Timed(1))
            await newcomer.members.announce(seat=10)
            assert [reply async for _, reply in replies] == [Pong(3)]
        async with star.hub.ask_all([star.hub.peer("w0")], Mystery(), rejoin_seconds=3) as strange:
            assert [peer async for peer, _ in strange] == []
        assert type(strange.failed[star.hub.peer("w0")]) is RemoteError


async def test_leaving_the_block_ends_the_waiting_for_those_who_are_away(star: Star) -> None:
    async with star.hub.ask_all(star.peers, Ping(7), rejoin_seconds=30) as replies:
        star.network.take_offline("w3")
        async for _ in replies:
            break
    assert star.peers[3] in replies.waiting
    star.network.bring_online("w3")
    await asyncio.sleep(60)
    assert star.hub.peer("w3").connected
    assert star.roles[3].begun == 0


async def test_each_peer_has_a_request_of_its_own(star: Star) -> None:
    asks = {peer: Ping(10 * index) for index, peer in enumerate(star.peers)}
    async with Replies(star.hub, asks) as replies:
        found = {peer: reply.n async for peer, reply in replies}
    assert found == {peer: 10 * index for index, peer in enumerate(star.peers)}
    async with Replies[Pong](star.hub, {}) as replies:
        assert [reply async for reply in replies] == []
    assert star.idle
