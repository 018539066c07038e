"""The table of peers: who is known, who is linked, and what is kept of those that were forgotten."""

from __future__ import annotations

import asyncio

from p2pfl.link.memory import MemoryNetwork
from tests.node.kit import QUIET, Echo, Note, Ping, Pong, Stranger, linked, make, steps


async def test_a_peer_is_one_object_and_knows_its_seat() -> None:
    async with linked(far=(Echo(),)) as (a, _):
        peer = a.peer("b")
        assert a.peer("b") is peer
        assert a.peers == [peer]
        assert not a.peer("stranger").connected


async def test_who_is_dismissed_is_forgotten_but_for_the_counts() -> None:
    async with linked(far=(Echo(),)) as (a, b):
        peer = a.peer("b")
        assert await peer.ask(Ping(1)) == Pong(2)
        before = a.statistics()
        await a.dismiss([peer])
        await steps()
        assert not peer.connected
        assert not b.peer("a").connected
        assert a.peer("b") is not peer
        after = a.statistics()
        assert after.peers == 0
        assert (after.messages_sent, after.messages_received) == (before.messages_sent, before.messages_received)
        assert after.bytes_sent == before.bytes_sent > 0


async def test_what_was_told_before_the_dismissal_arrives() -> None:
    far = Echo()
    async with linked(far=(far,)) as (a, _):
        for n in range(20):
            await a.peer("b").tell(Note(n))
        await a.dismiss([a.peer("b")])
        await steps()
        assert far.notes == list(range(20))


async def test_who_has_misbehaved_is_not_forgotten_before_that_is() -> None:
    network = MemoryNetwork()
    async with make(network, "a", settings=QUIET) as node:
        stranger = await Stranger.dial(network, "s", "a")
        stranger.send("tell", 1, "Nonsense")
        await steps()
        peer = node.peer("s")
        await node.dismiss([peer])
        assert node.peer("s") is peer  # one strike counts for ten minutes
        for _ in range(2):
            peer.strike("another")
        await asyncio.sleep(599)
        await node.dismiss([peer])
        assert node.peer("s") is peer
        await asyncio.sleep(1 + 86_400)
        await node.dismiss([peer])
        assert node.peer("s") is not peer


async def test_repr() -> None:
    async with linked() as (a, _):
        assert repr(a._peers) == "<Peers: 1 known, 1 linked>"
