"""One id at two places: a copied key, or a host that is back before its end was noticed. See DESIGN.md."""

from __future__ import annotations

import asyncio
from itertools import pairwise

from p2pfl.link.memory import MemoryNetwork
from p2pfl.node.events import PeerJoined, PeerLost
from p2pfl.node.node import Node
from tests.node.kit import Echo, Log, Ping, make, until


async def test_of_two_that_live_under_one_id_the_one_that_has_proven_it_last_is_used() -> None:
    """To the others they are one peer. Each comes back when it is replaced, ever more seldom."""
    network = MemoryNetwork(delay=lambda *_: 0.01)
    async with make(network, "hub", Echo()) as hub:
        log = Log(hub)
        async with Node(Echo(), transport=network.transport("x"), name="first", peers=["hub"]) as first:
            await until(lambda: hub.peer("x").connected)
            async with Node(Echo(), transport=network.transport("x"), name="second", peers=["hub"]) as second:
                logs = [Log(node) for node in (first, second)]
                await until(lambda: hub.peer("x").name == "second")
                assert await hub.peer("x").ask(Ping(1))
                await asyncio.sleep(600)
                assert [peer.id for peer in hub.peers] == ["x"]
                assert len(hub.peer("x").connections) <= 2
                assert await hub.peer("x").ask(Ping(2))
                assert not hub.statistics().violations
        assert len(log.of(PeerJoined)) == 1, "it has been there all the time"
        for each in logs:
            pauses = [late - early for early, late in pairwise(each.times(PeerLost))]
            assert 2 < len(pauses) < 30 and max(pauses[-3:]) > 2 * min(pauses)
        await until(lambda: not hub.peer("x").connected)


async def test_who_is_back_at_another_address_is_the_same_peer() -> None:
    network = MemoryNetwork()
    async with make(network, "hub") as hub, make(network, "other", Echo(), peers=["hub"], seat=1) as other:
        async with make(network, "x", Echo(), listen="here", peers=["hub"], seat=2):
            await until(lambda: other.at(2) is None and other.members.at(2) is not None)
            peer = (await other.meet([2]))[0]
            assert await peer.ask(Ping(1))
        await until(lambda: not peer.connected)
        async with make(network, "x", Echo(), listen="there", peers=["hub"], seat=2):
            assert await other.meet([2]) == [peer]
            assert await peer.ask(Ping(2))
            known = hub.members.get("x")
            assert known is not None and known.addresses == ("memory:there",)
