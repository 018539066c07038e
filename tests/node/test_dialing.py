"""Back-off within its bounds, and links that are kept up: to addresses, to peers, after losses and refusals."""

from __future__ import annotations

import asyncio
import itertools
import random
from typing import Any

import pytest

from p2pfl.errors import LinkRefused
from p2pfl.link.memory import MemoryLink, MemoryNetwork, MemoryTransport
from p2pfl.node.dialing import Backoff
from p2pfl.node.events import PeerJoined, PeerLost, PeerUnreached
from p2pfl.node.membership import Member
from p2pfl.node.node import Node
from tests.node.kit import QUIET, SETTLED, Gated, Log, Ping, linked, make, steps, until


class Fixed(random.Random):
    """Draws the same share of every interval."""

    def __init__(self, share: float) -> None:
        super().__init__(0)
        self.share = share

    def uniform(self, a: float, b: float) -> float:
        return a + (b - a) * self.share


def test_bounds_double_up_to_the_most() -> None:
    backoff = Backoff(0.5, 30, Fixed(1))
    assert [backoff.next() for _ in range(9)] == [0.5, 1, 2, 4, 8, 16, 30, 30, 30]
    backoff.reset()
    assert backoff.next() == 0.5


def test_pauses_fill_the_whole_interval() -> None:
    assert Backoff(0.5, 30, Fixed(0)).next() == 0
    pauses = [Backoff(1, 1, random.Random(seed)).next() for seed in range(1000)]
    assert all(0 <= pause <= 1 for pause in pauses)
    assert sum(pauses) / len(pauses) == pytest.approx(0.5, abs=0.03)


async def test_an_address_of_our_own_is_told_of_once_and_left_alone() -> None:
    network = MemoryNetwork()
    async with make(network, "a", peers=["a"]) as node:
        log = Log(node)
        await asyncio.sleep(1000)
        [event] = log.of(PeerUnreached)
        assert str(event) == "no link to a: memory:a is this node itself (not tried again)"


async def test_an_address_where_nobody_answers_is_tried_ever_more_seldom() -> None:
    network = MemoryNetwork()
    async with make(network, "a", peers=["b"]) as node:
        log = Log(node)
        await asyncio.sleep(1000)
        events, times = log.of(PeerUnreached), log.times(PeerUnreached)
        assert all((event.address, "nobody listens" in event.reason) == ("b", True) for event in events)
        bounds = [0.5, 1, 2, 4, 8, 16] + [30] * len(events)
        assert all(0 <= event.retry_seconds <= bound for event, bound in zip(events, bounds, strict=False))
        pauses = [late - early for early, late in itertools.pairwise(times)]
        assert pauses == pytest.approx([event.retry_seconds for event in events[:-1]])
        assert 1000 / 30 < len(events) < 130
        async with make(network, "b"):
            await asyncio.sleep(31)
            assert node.peer("b").connected


async def test_a_lost_peer_is_dialled_again_soon() -> None:
    network = MemoryNetwork()
    async with linked(network=network) as (a, _):
        log = Log(a)
        for _ in range(5):
            await asyncio.sleep(100)
            network.cut("a", "b")
            await asyncio.sleep(0.51)  # the links were good for long, so that each loss is the first
            assert a.peer("b").connected
        assert len(log.of(PeerLost)) == len(log.of(PeerJoined)) == 5


class Fickle(MemoryTransport):
    """Whoever is dialled ends the link at once."""

    dials = 0

    async def dial(self, address: str, expect: str | None = None) -> MemoryLink:
        self.dials += 1
        link = await super().dial(address, expect)
        asyncio.get_running_loop().call_soon(link.peer.abort, LinkRefused("not you"))
        return link


async def test_who_takes_links_and_ends_them_at_once_is_not_dialled_without_end() -> None:
    network = MemoryNetwork()
    transport = Fickle(network, "a")
    async with make(network, "b"), Node(transport=transport, peers=["b"]):
        await asyncio.sleep(1000)
        assert 30 < transport.dials < 130


class Refused(MemoryTransport):
    """As a full house answers, for a while."""

    dials = 0

    async def dial(self, address: str, expect: str | None = None) -> MemoryLink:
        self.dials += 1
        if self.dials < 5:
            raise LinkRefused("it takes no more links now: try again later")
        return await super().dial(address, expect)


async def test_a_full_house_is_tried_again() -> None:
    network = MemoryNetwork()
    async with make(network, "b"), Node(transport=Refused(network, "a"), peers=["b"]) as node:
        await asyncio.sleep(20)
        assert node.peer("b").connected


async def test_an_address_that_is_none_is_told_and_harms_nobody() -> None:
    network = MemoryNetwork()
    async with make(network, "b"), make(network, "a", peers=["http://nonsense", "b"]) as node:
        log = Log(node)
        await asyncio.sleep(1)
        assert node.peer("b").connected
        assert "is none of a node in this process" in log.of(PeerUnreached)[0].reason


async def test_our_own_address_is_passed_over() -> None:
    network = MemoryNetwork()
    addresses = ["memory:a", "memory:b"]  # all hosts are given one list
    async with make(network, "a", peers=addresses) as a, make(network, "b", peers=addresses) as b:
        logs = Log(a), Log(b)
        await asyncio.sleep(SETTLED)
        assert [peer.id for peer in a.peers] == ["b"]
        assert [peer.id for peer in b.peers] == ["a"]
        assert not any("itself" in event.reason for log in logs for event in log.of(PeerUnreached))


# -- peers of the table ------------------------------------------------------------------------------------------------


async def test_the_smaller_id_dials_and_the_larger_only_if_it_must() -> None:
    network = MemoryNetwork()
    async with make(network, "a", seat=0) as a, make(network, "b", seat=1) as b:
        for node in (a, b):
            node.members.learn([a.members.own, b.members.own])
        b.want([0])
        await asyncio.sleep(0.9)
        assert not b.peers
        await asyncio.sleep(0.2)
        assert b.peers
        assert b.peer("a").connection().link.initiator


async def test_who_cannot_be_dialled_dials_at_once() -> None:
    network = MemoryNetwork()
    async with make(network, "a", seat=0) as a, make(network, "b", listen=()) as b:
        b.members.learn([a.members.own])
        b.want([0])
        await steps()
        assert b.peers


async def test_all_addresses_of_a_peer_are_tried_in_turn() -> None:
    network = MemoryNetwork()
    async with make(network, "b", listen=["third"]), make(network, "a") as a:
        log = Log(a)
        a.members.learn([Member("b", addresses=("first", "http://second", "third"), seat=1, version=1)])
        a.want([1])
        await asyncio.sleep(3)
        assert a.peer("b").connected
        assert [event.address for event in log.of(PeerUnreached)] == ["first", "http://second"]


async def test_somebody_else_at_the_address_is_not_taken_and_a_new_address_is() -> None:
    network = MemoryNetwork()
    async with make(network, "impostor", listen=["door"]), make(network, "a") as a:
        log = Log(a)
        a.members.learn([Member("b", addresses=("door",), seat=1, version=1)])
        a.want([1])
        await asyncio.sleep(60)
        assert not a.peers
        assert "impostor answers at memory:door, where b was expected" in log.of(PeerUnreached)[0].reason
        async with make(network, "b", listen=["new door"]):
            a.members.learn([Member("b", addresses=("new door",), seat=1, version=2)])
            await asyncio.sleep(31)
            assert a.peer("b").connected


async def test_a_peer_that_has_no_addresses_any_more_is_waited_for() -> None:
    network = MemoryNetwork()
    async with make(network, "a") as a:
        log = Log(a)
        a.members.learn([Member("b", addresses=("b",), seat=1, version=1)])
        a.want([1])
        await asyncio.sleep(1)
        a.members.learn([Member("b", addresses=(), seat=1, version=2)])
        await asyncio.sleep(100)
        seen = len(log.of(PeerUnreached))
        await asyncio.sleep(1000)
        assert len(log.of(PeerUnreached)) == seen


async def test_to_want_twice_is_to_want_once() -> None:
    network = MemoryNetwork()
    async with linked(network=network, settings=QUIET) as (a, b):
        await b.members.announce(seat=1)
        await steps()
        for _ in range(10):
            a.want([1, 2])
            a._dialler.want_address("b")
        await asyncio.sleep(SETTLED)
        assert sum(map(len, network.links.values())) == 2
        network.cut("a", "b")
        await asyncio.sleep(SETTLED)
        assert sum(map(len, network.links.values())) == 2


async def test_no_dial_survives_the_node() -> None:
    class Slow(MemoryTransport):
        async def dial(self, address: str, expect: str | None = None) -> Any:
            await asyncio.Event().wait()

    network = MemoryNetwork()
    node = Node(transport=Slow(network, "a"), peers=["x", "y"])
    async with node:
        await asyncio.sleep(1)
    await until(lambda: len(asyncio.all_tasks()) == 1)


# -- new keys ----------------------------------------------------------------------------------------------------------


class Aging(MemoryTransport):
    """Its links have keys, which are good for a day."""

    dead = False

    async def dial(self, address: str, expect: str | None = None) -> MemoryLink:
        if self.dead:
            raise LinkRefused("not now")
        link = await super().dial(address, expect)
        link.renew_at = asyncio.get_running_loop().time() + 86_400
        return link


async def test_an_old_link_is_replaced_before_it_ends_and_no_ask_is_lost() -> None:
    network, far = MemoryNetwork(delay=lambda *_: 0.1), Gated()
    transport = Aging(network, "a")
    async with (
        make(network, "b", far, settings=QUIET) as b,
        Node(transport=transport, listen="a", peers=["b"], settings=QUIET) as a,
    ):
        logs = Log(a), Log(b)
        await until(lambda: a.peer("b").connected and b.peer("a").connected)
        used = {a.peer("b").connection().link.channel_id}
        for day in range(1, 4):
            await asyncio.sleep(86_390 - asyncio.get_running_loop().time() % 86_400)
            asking = asyncio.create_task(a.peer("b").ask(Ping(day)))
            await asyncio.sleep(20)
            link = a.peer("b").connection().link
            assert link.channel_id not in used
            assert b.peer("a").connection().link.channel_id == link.channel_id
            used.add(link.channel_id)
            await asyncio.sleep(100)
            assert len(a.peer("b").connections) == 2  # the old one waits for the answer
            far.gate.set()
            assert (await asking).n == day + 1
            far.gate.clear()
            await asyncio.sleep(20)
            assert len(a.peer("b").connections) == len(b.peer("a").connections) == 1
        assert not any(log.of(PeerLost) for log in logs)
        assert sum(len(log.of(PeerJoined)) for log in logs) <= 2


async def test_an_old_link_stays_until_there_is_a_new_one() -> None:
    network = MemoryNetwork()
    transport = Aging(network, "a")
    async with make(network, "b", settings=QUIET), Node(transport=transport, peers=["b"], settings=QUIET) as a:
        log = Log(a)
        await until(lambda: a.peer("b").connected)
        old = a.peer("b").connection().link
        transport.dead = True
        await asyncio.sleep(86_400 + 1000)
        assert a.peer("b").connection().link is old
        assert 1000 / 30 < len(log.of(PeerUnreached)) < 130
        transport.dead = False
        await asyncio.sleep(31)
        assert a.peer("b").connection().link is not old
        assert not log.of(PeerLost)


async def test_whoever_was_dialled_leaves_it_to_the_other_end() -> None:
    network = MemoryNetwork()
    async with (
        make(network, "a", seat=0, settings=QUIET) as a,
        make(network, "b", seat=1, peers=["a"], settings=QUIET),
    ):
        await until(lambda: a.at(1) is not None)
        a.peer("b").connection().link.renew_at = asyncio.get_running_loop().time()
        a.want([1])
        await asyncio.sleep(1000)
        assert network._dials == 1
