"""In-process links: the conformance kit, then what only they do: delays, cuts, partitions, contexts, determinism."""

from __future__ import annotations

import asyncio
import contextvars
import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from unittest import mock

import pytest

from p2pfl.errors import (
    ConfigError,
    LinkClosed,
    LinkRefused,
    LinkSilent,
    LinkTruncated,
    ListenFailed,
    PeerUnreachable,
    UntrustedPeer,
)
from p2pfl.link import memory
from p2pfl.link.base import Link
from p2pfl.link.memory import CONNECT_SECONDS, MemoryLink, MemoryNetwork
from p2pfl.wire.packet import Packet
from tests.link.kit import Check, Inbox, Pair, link_checks


async def linked(network: MemoryNetwork, a: str = "alice", b: str = "bob") -> tuple[MemoryLink, Link]:
    accepted: asyncio.Queue[Link] = asyncio.Queue()
    door = await network.transport(b).listen("", accepted.put_nowait)
    near = await network.transport(a).dial(b)
    far = await accepted.get()
    await door.close()
    return near, far


def connector(**options: object):
    @asynccontextmanager
    async def connect() -> AsyncIterator[Pair]:
        network = MemoryNetwork(**options)
        near, far = await linked(network)
        yield Pair(near, far, lambda: network.cut("alice", "bob"), by_reference=True)

    return connect


@link_checks
async def test_conformance(check: Check) -> None:
    await check(connector())


@link_checks
async def test_conformance_with_delays_that_shrink(check: Check) -> None:
    delays = itertools.cycle([0.003, 0.002, 0.001, 0.0])
    await check(connector(delay=lambda source, destination, size: next(delays)))


async def test_buffers_pass_by_reference_and_read_only() -> None:
    near, far = await linked(MemoryNetwork())
    inbox = Inbox()
    far.start(inbox)
    model = memoryview(bytearray(b"weights"))
    near.send(Packet(b"", (model,)))
    (buffer,) = (await inbox.received(1))[0].buffers
    assert buffer.obj is model.obj
    assert buffer.readonly


async def test_arrival_follows_the_delay_and_never_overtakes() -> None:
    loop = asyncio.get_running_loop()
    asked: list[tuple[str, str]] = []

    def delay(source: str, destination: str, size: int) -> float:
        asked.append((source, destination))
        return 0.02 if size > 1000 else 0.0

    near, far = await linked(MemoryNetwork(delay))
    times: list[tuple[int, float]] = []

    class Clocked(Inbox):
        def packet_received(self, packet: Packet) -> None:
            times.append((packet.size, loop.time()))
            super().packet_received(packet)

    inbox = Clocked()
    far.start(inbox)
    start = loop.time()
    for packet in (Packet(b"x"), Packet(b"", (memoryview(bytes(5000)),)), Packet(b"yy")):
        near.send(packet)
    await inbox.received(3)
    assert [size for size, _ in times] == [1, 5000, 2]
    assert times[0][1] < start + 0.02 <= times[1][1] <= times[2][1]
    assert set(asked) == {("alice", "bob")}


async def test_packets_due_at_one_time_keep_their_order() -> None:
    near, far = await linked(MemoryNetwork(lambda source, destination, size: 0.001))
    inbox = Inbox()
    far.start(inbox)
    loop = asyncio.get_running_loop()
    with mock.patch.object(loop, "time", return_value=loop.time()):  # all are due at just the same time
        for n in range(100):
            near.send(Packet(b"%d" % n))
    assert [int(p.head) for p in await inbox.received(100)] == list(range(100))


async def test_partition_is_silent_and_heals_without_loss() -> None:
    network = MemoryNetwork()
    near, far = await linked(network)
    one, other = Inbox(), Inbox()
    near.start(one)
    far.start(other)
    near.send(Packet(b"0"))
    await other.received(1)
    network.partition("bob", "alice")
    for n in range(1, 4):
        near.send(Packet(b"%d" % n))
    for _ in range(20):
        await asyncio.sleep(0)
    assert (len(other.packets), one.errors, other.errors) == (1, [], [])
    with pytest.raises(PeerUnreachable, match="does not answer"):
        await linked(network)
    network.heal("alice", "bob")
    near.send(Packet(b"4"))
    assert [p.head for p in await other.received(5)] == [b"0", b"1", b"2", b"3", b"4"]


async def test_abort_in_a_partition_is_told_to_one_end_only() -> None:
    network = MemoryNetwork()
    near, far = await linked(network)
    one, other = Inbox(), Inbox()
    near.start(one)
    far.start(other)
    network.partition("alice", "bob")
    silent = LinkSilent("nothing heard")
    near.abort(silent)
    assert await one.closed() is silent
    assert not other.errors


async def test_cut_loses_what_is_under_way() -> None:
    network = MemoryNetwork(lambda source, destination, size: 0.001)
    near, far = await linked(network)
    one, other = Inbox(), Inbox()
    near.start(one)
    far.start(other)
    near.send(Packet(b"lost"))
    network.cut("alice", "bob")
    assert isinstance(await one.closed(), LinkTruncated)
    assert isinstance(await other.closed(), LinkTruncated)
    assert not other.packets
    assert not network.links


async def test_withdrawn_packets_leave_the_others_their_times() -> None:
    near, far = await linked(MemoryNetwork(lambda source, destination, size: 0.001))
    inbox = Inbox()
    far.start(inbox)
    packets = [Packet(b"%d" % n) for n in range(3)]
    for packet in packets:
        near.send(packet)
    assert near.withdraw(packets[1])
    assert not near.withdraw(packets[1])
    assert [p.head for p in await inbox.received(2)] == [b"0", b"2"]
    assert near.statistics.packets_sent == 2
    assert near.statistics.bytes_sent == far.statistics.bytes_received


async def test_receivers_run_in_their_own_context() -> None:
    who = contextvars.ContextVar("who", default="nobody")
    seen: list[str] = []

    class Asking(Inbox):
        def packet_received(self, packet: Packet) -> None:
            seen.append(who.get())
            super().packet_received(packet)

    near, far = await linked(MemoryNetwork())
    inbox = Asking()
    who.set("the receiver")
    far.start(inbox)
    who.set("the sender")
    near.send(Packet(b""))
    await inbox.received(1)
    assert seen == ["the receiver"]


async def test_addresses() -> None:
    network = MemoryNetwork()
    doors: list[Link] = []
    bob = network.transport("bob", caps={"speaks": "v1"})
    door = await bob.listen("memory:", doors.append)
    hall = await bob.listen("hall", doors.append)
    assert (door.addresses, hall.addresses) == (("memory:bob",), ("memory:hall",))
    alice = network.transport("alice")
    for address in ("bob", "memory:bob", "hall", "memory:hall"):
        link = await alice.dial(address, expect="bob")
        assert (link.remote, link.remote_caps) == ("bob", {"speaks": "v1"})
    await asyncio.sleep(0)
    assert len(doors) == 4
    with pytest.raises(ListenFailed, match="in use"):
        await alice.listen("bob", doors.append)
    with pytest.raises(UntrustedPeer, match="carol was expected"):
        await alice.dial("bob", expect="carol")
    with pytest.raises(LinkRefused, match="itself"):
        await bob.dial("hall")
    with pytest.raises(PeerUnreachable, match="nobody listens at memory:dave"):
        await alice.dial("dave")
    for wrong in ("ws://host:1/", "https://x"):
        with pytest.raises(ConfigError, match="memory:<peer id>"):
            await alice.dial(wrong)
    await door.close()
    await door.close()
    with pytest.raises(PeerUnreachable):
        await alice.dial("bob")
    assert repr(network) == "<MemoryNetwork 1 listening, 4 links>"
    assert repr(link) == "<MemoryLink alice -> bob open>"
    assert repr(hall) == "<MemoryListener memory:hall>"
    assert repr(alice) == "<MemoryTransport of alice>"


async def test_channel_ids_differ_and_repeat_with_the_network() -> None:
    async def ids() -> list[bytes]:
        network = MemoryNetwork()
        return [(await linked(network, a, b))[0].channel_id for a, b in (("a", "b"), ("b", "a"), ("a", "b"))]

    once, again = await ids(), await ids()
    assert once == again
    assert len(set(once)) == 3


async def test_a_silent_end_does_not_hold_up_close(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "GOODBYE_SECONDS", 0.01)
    network = MemoryNetwork()
    near, far = await linked(network)
    inbox = Inbox()
    near.start(inbox)
    far.start(Inbox())
    network.partition("alice", "bob")
    await near.close()
    assert isinstance(await inbox.closed(), LinkClosed)


async def test_cancelling_close_ends_the_link() -> None:
    near, _ = await linked(MemoryNetwork())
    inbox = Inbox()
    near.start(inbox)
    closing = asyncio.create_task(near.close())
    await asyncio.sleep(0)
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing
    assert isinstance(await inbox.closed(), LinkClosed)


async def test_cut_breaks_every_link_of_two_peers_and_no_other() -> None:
    network, far = MemoryNetwork(), list[Link]()
    await network.transport("bob").listen("bob", far.append)
    await network.transport("carol").listen("carol", far.append)
    alice = network.transport("alice")
    inboxes = [Inbox() for _ in range(3)]
    for inbox, name in zip(inboxes, ("bob", "carol", "bob"), strict=True):
        (await alice.dial(name)).start(inbox)
    await asyncio.sleep(0)
    network.cut("bob", "alice")
    await asyncio.sleep(1)
    assert [len(inbox.errors) for inbox in inboxes] == [1, 0, 1]
    assert sorted(link.remote for link in network.links["alice"]) == ["carol"]


async def test_a_link_that_is_cut_after_one_end_has_gone_loses_what_is_under_way() -> None:
    near, far = await linked(MemoryNetwork(lambda source, destination, size: 0.001))
    inbox = Inbox()
    far.start(inbox)
    near.send(Packet(b"lost"))
    near.abort(LinkTruncated("crashed"))
    near.cut("a digger")
    assert str(await inbox.closed()) == "the link to alice was cut: a digger"
    assert not inbox.packets
    near.cut("again")


async def test_who_is_offline_has_no_links_and_gets_none_until_it_is_back() -> None:
    network = MemoryNetwork()
    near, far = await linked(network)
    one, other = Inbox(), Inbox()
    near.start(one)
    far.start(other)
    network.take_offline("bob")
    network.take_offline("bob")
    assert isinstance(await one.closed(), LinkTruncated)
    assert isinstance(await other.closed(), LinkTruncated)
    alice, bob = network.transport("alice"), network.transport("bob")
    await alice.listen("alice", lambda link: None)
    await bob.listen("bob", lambda link: None)
    begun = asyncio.get_running_loop().time()
    for dialler, name in ((alice, "bob"), (bob, "alice")):
        with pytest.raises(PeerUnreachable, match=f"memory:{name} does not answer: bob is offline"):
            await dialler.dial(name)
    assert asyncio.get_running_loop().time() == begun + 2 * CONNECT_SECONDS
    attempt = asyncio.create_task(alice.dial("bob"))
    await asyncio.sleep(1)
    network.bring_online("bob")
    network.bring_online("bob")
    with pytest.raises(PeerUnreachable):
        await attempt
    assert asyncio.get_running_loop().time() == begun + 2 * CONNECT_SECONDS + 1
    await alice.dial("bob")


async def test_who_is_offline_wakes_nobody() -> None:
    woken: list[str] = []

    async def wake(name: str) -> None:
        woken.append(name)

    network = MemoryNetwork(wake=wake)
    network.take_offline("alice")
    with pytest.raises(PeerUnreachable):
        await network.transport("alice").dial("bob")
    assert not woken


async def test_every_new_link_is_told_of() -> None:
    opened: list[Link] = []
    near, _ = await linked(MemoryNetwork(opened=opened.append))
    assert opened == [near]


async def both_started(network: MemoryNetwork) -> tuple[MemoryLink, MemoryLink, Inbox, Inbox]:
    near, _ = await linked(network)
    one, other = Inbox(), Inbox()
    near.start(one)
    near.peer.start(other)
    return near, near.peer, one, other


async def test_a_mute_direction_holds_up_what_goes_there_and_nothing_else() -> None:
    network = MemoryNetwork()
    near, far, one, other = await both_started(network)
    network.mute("alice", "bob")
    near.send(Packet(b"held up"))
    far.send(Packet(b"passes"))
    assert [packet.head for packet in await one.received(1)] == [b"passes"]
    assert not other.packets
    for a, b in (("alice", "bob"), ("bob", "alice")):
        with pytest.raises(PeerUnreachable, match="does not answer"):
            await linked(network, a, b)
    network.unmute("alice", "bob")
    assert [packet.head for packet in await other.received(1)] == [b"held up"]


async def test_of_several_partitions_the_last_that_ends_lets_through() -> None:
    network = MemoryNetwork()
    near, _, _, other = await both_started(network)
    network.partition("alice", "bob")
    network.mute("alice", "bob")
    network.heal("alice", "bob")
    near.send(Packet(b"later"))
    await asyncio.sleep(1)
    assert not other.packets
    network.unmute("alice", "bob")
    await other.received(1)
    assert not network.muted
    network.unmute("alice", "bob")  # once too often, as after a heal without a partition
    network.mute("alice", "bob")
    assert network.muted


async def test_a_lag_adds_up_and_goes_away() -> None:
    loop = asyncio.get_running_loop()
    network = MemoryNetwork()
    near, _, _, other = await both_started(network)
    network.lag("alice", "bob", 0.1)
    network.lag("alice", "bob", 0.2)
    start = loop.time()
    near.send(Packet(b""))
    await other.received(1)
    assert loop.time() == pytest.approx(start + 0.3)
    network.lag("alice", "bob", -0.1)
    network.lag("alice", "bob", -0.2)
    assert not network.lags


async def test_a_corrupted_packet_ends_its_link_and_no_event_comes_of_it() -> None:
    network = MemoryNetwork()
    near, _, one, other = await both_started(network)
    near.send(Packet(b"whole"))
    await other.received(1)
    network.corrupt("alice", "bob")
    near.send(Packet(b"changed"))
    near.send(Packet(b"behind it"))
    assert isinstance(await other.closed(), LinkTruncated), "nobody knows who has done it"
    assert isinstance(await one.closed(), LinkTruncated)
    assert [packet.head for packet in other.packets] == [b"whole"]


async def test_who_is_killed_hears_nothing_and_its_peer_gets_what_was_under_way_and_the_end() -> None:
    network = MemoryNetwork(lambda source, destination, size: 0.01)
    await network.transport("alice").listen("alice", lambda link: None)
    near, far, one, other = await both_started(network)
    near.send(Packet(b"the last word"))
    far.send(Packet(b"too late"))
    network.kill("alice")
    near.send(Packet(b"from beyond"))
    assert isinstance(await other.closed(), LinkTruncated)
    assert [packet.head for packet in other.packets] == [b"the last word"]
    assert not one.packets and not one.errors and not network.links and not network.doors


async def test_who_vanishes_leaves_a_link_that_is_open_at_the_other_end_only() -> None:
    network = MemoryNetwork()
    near, far, one, other = await both_started(network)
    network.kill("alice", silently=True)
    far.send(Packet(b"into the void"))
    await asyncio.sleep(100)
    assert not one.packets and not one.errors and not other.errors
    assert list(network.links) == ["bob"]
    far.abort(LinkSilent("nothing heard"))
    assert isinstance(await other.closed(), LinkSilent)
    assert near.queued == far.queued == 0


async def test_who_is_killed_before_its_link_has_begun_hears_nothing_of_it() -> None:
    network = MemoryNetwork()
    near, _ = await linked(network)
    inbox = Inbox()
    near.start(inbox)
    network.kill("alice")
    await asyncio.sleep(1)
    assert not inbox.errors


async def test_a_watcher_sees_every_packet_as_it_is_sent() -> None:
    seen: list[tuple[str, str, bytes, int]] = []
    network = MemoryNetwork(watch=lambda link, packet: seen.append((*link.path, packet.head, link.queued > 0)))
    near, far, _, _ = await both_started(network)
    near.send(Packet(b"hello"))
    far.send(Packet(b"hi"))
    assert seen == [("alice", "bob", b"hello", True), ("bob", "alice", b"hi", True)]


async def test_who_listens_under_its_peer_id_can_be_dialled_back() -> None:
    network = MemoryNetwork()
    near, far = await linked(network)
    with pytest.raises(PeerUnreachable):
        await network.transport("bob").dial_back(far, 7700)
    accepted: list[Link] = []
    await network.transport("alice").listen("", accepted.append)
    await network.transport("bob").dial_back(far, 7700)
    assert [link.remote for link in accepted] == ["bob"]
    assert near.suite == ""


async def test_everybody_is_admitted() -> None:
    assert MemoryNetwork().transport("a").admits("anybody")
