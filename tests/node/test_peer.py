"""A peer over all its links: duplicates, restarts, goodbyes, and what is counted."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest

from p2pfl.errors import LinkClosed, LinkError, LinkRefused, LinkTruncated, MessageError
from p2pfl.link.base import Link
from p2pfl.link.memory import MemoryNetwork
from p2pfl.node.events import PeerJoined, PeerLost, PeerMisbehaved, PeerRefused
from p2pfl.node.node import Node
from p2pfl.node.peer import tell_all
from p2pfl.sim.loop import run_virtual
from p2pfl.wire.codec import encode
from tests.node.kit import QUIET, SETTLED, Echo, Gated, Log, Note, Ping, Stranger, linked, make, steps, until


def open_links(network: MemoryNetwork) -> int:
    return sum(map(len, network.links.values())) // 2


async def test_ask_and_tell() -> None:
    near, far = Echo(), Echo()
    async with linked((near,), (far,)) as (a, b):
        assert (await a.peer("b").ask(Ping(1))).n == 2
        assert (await b.peer("a").ask(Ping(2))).n == 3
        await a.peer("b").tell(Note(1))
        await b.peer("a").tell(Note(2))
        await steps()
        assert (near.notes, far.notes) == ([2], [1])


async def test_what_cannot_be_sent_is_said_at_once() -> None:
    async with linked(far=(Echo(),)) as (a, _):
        with pytest.raises(MessageError, match=r"Ping.n"):
            await a.peer("b").ask(Ping(1 << 70))
        with pytest.raises(MessageError, match=r"Note.n"):
            await a.peer("b").tell(Note(1 << 70))
        assert a.peer("b").connection().session.idle


async def test_a_peer_that_is_not_linked() -> None:
    async with make(MemoryNetwork(), "a") as node:
        peer = node.peer("nobody")
        assert not peer.connected
        assert node.peer("nobody") is peer
        await peer.gone()
        for sending in (peer.ask(Ping(1)), peer.tell(Note(1))):
            with pytest.raises(LinkClosed, match="nobody is not linked"):
                await sending
        assert await tell_all([peer], encode(Note(1))) == [peer]


async def test_asks_of_a_link_that_is_cut_are_told_why() -> None:
    network, far = MemoryNetwork(), Gated()
    async with linked(far=(far,), network=network) as (a, _):
        asking = asyncio.create_task(a.peer("b").ask(Ping(1)))
        await steps()
        network.cut("a", "b")
        with pytest.raises(LinkTruncated, match="was cut"):
            await asking
        assert not a.peer("b").connected
        with pytest.raises(LinkClosed, match="b is not linked: the link to b was cut"):
            await a.peer("b").ask(Ping(1))
        await steps()
        assert far.cancelled == [1]


async def test_a_peer_that_stops_is_asked_no_more_and_still_answers() -> None:
    far = Gated()
    async with linked(far=(far,)) as (a, b):
        log = Log(a)
        asking = asyncio.create_task(a.peer("b").ask(Ping(1)))
        await steps()
        stopping = asyncio.create_task(b.stop())
        await steps()
        assert not a.peer("b").connected
        assert [event.reason for event in log.of(PeerLost)] == ["it said goodbye: the node stops"]
        async with asyncio.timeout(0.1):
            await a.peer("b").gone()
        with pytest.raises(LinkClosed, match="said goodbye"):
            await a.peer("b").ask(Ping(2))
        far.gate.set()
        assert (await asking).n == 2
        await stopping
        assert len(log.of(PeerLost)) == 1


async def test_a_closed_link_is_noticed_at_once() -> None:
    async with linked() as (a, b):
        log, start = Log(a), asyncio.get_running_loop().time()
        await b.stop()
        assert log.times(PeerLost) == [start]


async def test_statistics_go_on_over_links() -> None:
    network = MemoryNetwork()
    async with linked(far=(Echo(),), network=network, settings=QUIET) as (a, b):
        before = a.peer("b").statistics()
        await a.peer("b").ask(Ping(1))
        after = a.peer("b").statistics()
        assert after.messages_sent - before.messages_sent == 1
        assert after.messages_received - before.messages_received == 1
        assert after.bytes_sent - before.bytes_sent > 20
        assert after.bytes_received - before.bytes_received > 20
        assert after.rtt_seconds is None
        mirror = b.peer("a").statistics()
        assert (mirror.messages_received, mirror.bytes_received) == (after.messages_sent, after.bytes_sent)
        network.cut("a", "b")
        await steps()
        assert a.peer("b").statistics() == after
        await until(lambda: a.peer("b").connected)
        await a.peer("b").ask(Ping(1))
        assert a.peer("b").statistics().messages_sent > after.messages_sent


async def test_repr_is_one_line() -> None:
    async with linked() as (a, b):
        assert repr(a.peer("b")) == "<Peer b linked>"
        await b.members.announce(seat=3)
        await steps()
        assert repr(a.peer("b")) == "<Peer b seat 3 linked>"
    assert repr(a.peer("b")) == "<Peer b seat 3 not linked>"
    assert repr(a.peer("0123456789abcdef")) == "<Peer 0123456789 not linked>"


async def test_a_name_is_said_with_the_id() -> None:
    network = MemoryNetwork()
    hub = Node(transport=network.transport("0123456789abcdef"), listen="hub", name="Hub")
    async with hub, make(network, "a", peers=["hub"]) as a:
        await until(lambda: a.peers and a.peers[0].name == "Hub")
        assert a.peers[0].label == "Hub (0123456789)"


async def test_who_is_behind_keeps_nobody_else_waiting() -> None:
    network = MemoryNetwork()
    slow, quick = Gated(), Echo()
    async with (
        make(network, "slow", slow),
        make(network, "quick", quick),
        make(network, "a", peers=["slow", "quick"]) as a,
    ):
        await until(lambda: len(a.peers) == 2)
        telling = asyncio.create_task(_tell_often(a, 40))
        await steps(200)
        assert not telling.done()
        assert 25 < len(quick.notes) < 40  # so many as the window of the slow one took, and one more
        assert len(slow.begun) == 8
        network.cut("a", "slow")
        await telling
        await steps()
        assert quick.notes == list(range(40))


async def _tell_often(node: Node, count: int) -> None:
    for n in range(count):
        await node.tell_all([node.peer("slow"), node.peer("quick")], Note(n))


async def test_who_has_said_goodbye_is_heard_until_its_link_closes() -> None:
    network = MemoryNetwork(delay=lambda *_: 0.1)
    async with make(network, "b", Gated()) as b, make(network, "a", peers=["b"]) as a:
        await until(lambda: bool(a.peers))
        peer = a.peer("b")
        await peer.tell(Note(1))  # keeps b's handler, and so its link, for a while
        await asyncio.sleep(0.3)
        stopping = asyncio.create_task(b.stop())
        await asyncio.sleep(0.3)
        assert not peer.connected
        assert peer.audible
        await stopping
        await asyncio.sleep(0.3)
        assert not peer.audible


# -- bans --------------------------------------------------------------------------------------------------------------


async def test_who_is_banned_has_no_link_and_gets_none_for_a_day() -> None:
    network = MemoryNetwork()
    async with linked((Echo(),), (Echo(),), network=network) as (a, b):
        log, peer = Log(a), a.peer("b")
        a.accept(await _dialled(network, a, b))  # all of its links end
        await steps()
        peer.ban("it lies")
        await steps()
        assert not peer.audible and not b.peer("a").audible and open_links(network) == 0
        assert [(event.peer, event.reason) for event in log.of(PeerMisbehaved)] == [("b", "it lies")]
        assert [event.reason for event in log.of(PeerLost)] == ["it lies"]
        assert a.statistics().violations == 1, "that its links end so is no further one"
        assert peer.lost_at is None, "nobody waits for it"
        assert peer.quarantine_seconds == a.settings.quarantine_most_seconds
        with pytest.raises(LinkRefused, match="no link for another 86400 s"):
            peer.check_quarantine()
        b._dialler.want_address("a")
        await asyncio.sleep(86_000)
        assert not peer.connected and log.of(PeerRefused)
        assert not log.of(PeerJoined)
        await asyncio.sleep(1_000)
        assert peer.connected


async def test_a_ban_does_not_outlive_the_process() -> None:
    network = MemoryNetwork()
    async with make(network, "b", Echo()):
        async with make(network, "a", Echo(), peers=["b"]) as a:
            await until(lambda: a.peer("b").connected)
            a.peer("b").ban("it lies")
            await asyncio.sleep(SETTLED)
            assert not a.peer("b").connected
        async with make(network, "a", Echo(), peers=["b"]) as a:
            await until(lambda: a.peer("b").connected)


async def test_a_peer_can_be_banned_that_is_not_linked() -> None:
    network = MemoryNetwork()
    async with make(network, "a", Echo()) as a:
        a.peer("b").ban("it lies elsewhere")
        async with make(network, "b", Echo(), peers=["a"]):
            await asyncio.sleep(SETTLED)
            assert not a.peer("b").connected


# -- duplicates --------------------------------------------------------------------------------------------------------


async def meet_head_on(seed: int) -> None:
    """Two nodes dial each other, maybe at once, and ask each other all the time meanwhile; some asks take long."""
    rng = random.Random(seed)
    network = MemoryNetwork(delay=lambda *_: rng.choice((0.0, rng.random() * rng.choice((0.01, 1.0)))))

    class Worker(Echo):
        @Ping.handler
        async def ping(self, ask: Ping, peer: Any) -> Any:
            await asyncio.sleep(rng.choice((0.0, rng.random(), rng.random() * 30)))
            return await super().ping(ask, peer)

    roles = Worker(), Worker()
    async with make(network, "a", roles[0], settings=QUIET) as a, make(network, "b", roles[1], settings=QUIET) as b:
        logs = Log(a), Log(b)
        pairs = (a, "b"), (b, "a")
        asks: list[asyncio.Task[Any]] = []
        tells = 0

        async def dial(node: Node, address: str, after: float) -> None:
            await asyncio.sleep(after)
            node._dialler.want_address(address)

        async def chat(node: Node, other: str) -> None:
            nonlocal tells
            for n in range(8):
                await asyncio.sleep(rng.random() * 0.5)
                if node.peer(other).connected:
                    asks.append(asyncio.create_task(node.peer(other).ask(Ping(n))))
                    await node.peer(other).tell(Note(n))
                    tells += 1

        async with asyncio.TaskGroup() as group:
            group.create_task(dial(a, "b", rng.random() * rng.choice((0, 0.1))))
            group.create_task(dial(b, "a", rng.random() * rng.choice((0, 0.1))))
            for node, other in pairs:
                group.create_task(chat(node, other))
        for ask in asks:
            await ask
        await asyncio.sleep(SETTLED)
        assert asks
        assert open_links(network) == 1
        assert len(roles[0].notes) + len(roles[1].notes) == tells
        for node, other in pairs:
            assert len(node.peer(other).connections) == 1
            assert node.peer(other).connected
        for log in logs:
            assert len(log.of(PeerJoined)) == 1
            assert not log.of(PeerLost)
        assert a.peer("b").connection().link.channel_id == b.peer("a").connection().link.channel_id


def test_a_thousand_times_two_nodes_dial_each_other_at_once() -> None:
    async def main() -> None:
        for seed in range(1000):
            try:
                await meet_head_on(seed)
            except BaseException as error:
                error.add_note(f"seed {seed}")
                raise

    run_virtual(main())


async def test_of_two_links_that_are_dialled_at_once_the_smaller_id_keeps_its_own() -> None:
    network = MemoryNetwork()
    async with make(network, "a", Gated(), peers=["b"]) as a, make(network, "b", Gated(), peers=["a"]) as b:
        await until(lambda: len(a.peer("b").connections) == 2 and len(b.peer("a").connections) == 2)
        await steps()
        assert a.peer("b").connection().link.initiator
        assert not b.peer("a").connection().link.initiator
        await asyncio.sleep(7)
        assert open_links(network) == 1


async def test_a_retired_link_stays_until_its_asks_are_answered() -> None:
    network = MemoryNetwork()
    far = Gated()
    async with make(network, "a", far) as a, make(network, "b", peers=["a"]) as b:
        await until(lambda: b.peer("a").connected)
        asking = asyncio.create_task(b.peer("a").ask(Ping(1)))
        await steps()
        assert far.running == 1
        a.accept(await _dialled(network, a, b))
        await steps()
        assert len(b.peer("a").connections) == 2
        await asyncio.sleep(100)
        assert len(b.peer("a").connections) == 2
        far.gate.set()
        assert (await asking).n == 2
        await asyncio.sleep(7)
        assert len(b.peer("a").connections) == 1


async def _dialled(network: MemoryNetwork, near: Node, far: Node) -> Link:
    """A link between two nodes, of which the far one has taken its end."""
    door = await network.transport(far.id).listen(f"side door of {far.id}", far.accept)
    link = await near.transport.dial(f"side door of {far.id}")
    await door.close()
    return link


async def test_who_waits_for_room_on_a_retired_link_goes_over_to_the_other() -> None:
    network = MemoryNetwork()
    far = Gated()
    async with make(network, "a", far) as a, make(network, "b", peers=["a"]) as b:
        await until(lambda: b.peer("a").connected)
        asks = [asyncio.create_task(b.peer("a").ask(Ping(n))) for n in range(70)]
        await steps()
        assert far.begun == list(range(8))
        a.accept(await _dialled(network, a, b))
        await steps()
        assert far.begun == [*range(8), *range(64, 70)]
        far.gate.set()
        assert [(await ask).n for ask in asks] == list(range(1, 71))


async def test_two_addresses_of_one_peer_end_in_one_link() -> None:
    network = MemoryNetwork()
    async with make(network, "hub", Echo(), listen=["x", "y"]) as hub, make(network, "a", peers=["x", "y"]) as a:
        log = Log(a)
        await asyncio.sleep(SETTLED)
        assert open_links(network) == 1
        assert len(log.of(PeerJoined)) == 1
        assert not log.of(PeerLost)
        assert (await a.peer("hub").ask(Ping(1))).n == 2
        network.cut("a", "hub")
        await asyncio.sleep(SETTLED)
        assert open_links(network) == 1
        assert hub.peer("a").connected


@pytest.mark.parametrize("swapped", [False, True])
async def test_links_that_become_known_in_different_orders(swapped: bool) -> None:
    """Each end retires the one that the other keeps; then both settle on one, and no ask is lost."""
    network = MemoryNetwork()
    near, far = Gated(), Gated()
    async with make(network, "a", near) as a, make(network, "b", far) as b:
        logs = Log(a), Log(b)
        ends: list[Link] = []
        door = await network.transport("b").listen("side", ends.append)
        links = [await a.transport.dial("side") for _ in range(2)]
        await steps(2)
        for link in links:
            a.accept(link)
        for link in reversed(ends) if swapped else ends:
            b.accept(link)
        asks = [asyncio.create_task(peer.ask(Ping(1))) for peer in (a.peer("b"), b.peer("a"))]
        await steps()
        near.gate.set()
        far.gate.set()
        assert [(await ask).n for ask in asks] == [2, 2]
        await asyncio.sleep(7)
        assert open_links(network) == 1
        assert a.peer("b").connection().link.channel_id == b.peer("a").connection().link.channel_id
        assert [len(log.of(PeerJoined)) for log in logs] == [1, 1]
        assert not any(log.of(PeerLost) for log in logs)
        await door.close()


async def test_a_duplicate_takes_the_place_of_a_link_that_is_cut() -> None:
    network = MemoryNetwork()
    async with make(network, "a", Echo(), settings=QUIET) as a, make(network, "b", Echo(), settings=QUIET) as b:
        logs = Log(a), Log(b)
        b.accept(await _dialled(network, b, a))
        await steps()
        a.accept(await _dialled(network, a, b))
        await steps()
        a.peer("b").connection().link.abort(LinkTruncated("the better one breaks"))
        await steps()
        assert (await a.peer("b").ask(Ping(1))).n == 2
        assert (await b.peer("a").ask(Ping(1))).n == 2
        await asyncio.sleep(SETTLED)
        assert open_links(network) == 1
        assert not any(log.of(PeerLost) for log in logs)


async def test_a_peer_cannot_have_links_without_end() -> None:
    network = MemoryNetwork()
    async with make(network, "a", Gated()) as node:
        strangers = []
        for _ in range(20):
            strangers.append(await Stranger.dial(network, "s", "a"))
            strangers[-1].send("ask", 1, "Ping", {"n": 1})
            await steps()
        assert len(node.peer("s").connections) <= 4
        assert open_links(network) <= 4
        await asyncio.sleep(SETTLED)
        assert len(node.peer("s").connections) <= 1


# -- restarts ----------------------------------------------------------------------------------------------------------


async def test_the_same_peer_can_come_back() -> None:
    network = MemoryNetwork()
    async with make(network, "a", peers=["b"]) as a:
        log = Log(a)
        for _ in range(3):
            async with make(network, "b", Echo()):
                await until(lambda: a.peer("b").connected)
                assert (await a.peer("b").ask(Ping(1))).n == 2
        assert [type(event) for _, event in log.events if isinstance(event, (PeerJoined, PeerLost))] == [
            PeerJoined,
            PeerLost,
        ] * 3


async def test_a_peer_that_comes_back_before_its_end_was_noticed_is_used_at_once() -> None:
    network = MemoryNetwork()
    async with make(network, "hub", Echo()) as hub:
        log = Log(hub)
        before = await Stranger.dial(network, "s", "hub")
        await until(lambda: hub.peer("s").connected)
        asking = asyncio.create_task(hub.peer("s").ask(Ping(1)))
        await until(lambda: before.heads("ask"))

        after = await Stranger.dial(network, "s", "hub")  # the first one's process is dead, and nobody has told
        await steps()
        again = asyncio.create_task(hub.peer("s").ask(Ping(2)))
        await until(lambda: after.heads("ask"))
        after.send("reply", after.heads("ask")[0][1], "Pong", {"n": 3})
        assert (await again).n == 3
        with pytest.raises(LinkError):
            async with asyncio.timeout(10):
                await asking
        assert len(log.of(PeerJoined)) == 1
        assert not log.of(PeerLost)


async def test_a_stopping_peer_that_comes_back_on_a_new_link() -> None:
    """Its old link still answers what was asked, for a while, while the new one is in use."""
    network = MemoryNetwork()
    async with make(network, "hub") as hub:
        log = Log(hub)
        before = await Stranger.dial(network, "s", "hub")
        await until(lambda: hub.peer("s").connected)
        asking = asyncio.create_task(hub.peer("s").ask(Ping(1)))
        await until(lambda: before.heads("ask"))
        before.send("bye", 0, "", {"reason": "restart"})
        await steps()
        assert not hub.peer("s").connected
        await Stranger.dial(network, "s", "hub")
        await steps()
        assert hub.peer("s").connected
        before.send("reply", before.heads("ask")[0][1], "Pong", {"n": 2})
        assert (await asking).n == 2
        await before.link.close()
        await steps()
        assert hub.peer("s").connected
        assert [type(event) for _, event in log.events if isinstance(event, (PeerJoined, PeerLost))] == [
            PeerJoined,
            PeerLost,
            PeerJoined,
        ]
