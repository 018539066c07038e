"""How one peer is looked at: on virtual time, with peers that are well, and with peers that are not."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest

from p2pfl.doctor.examination import Examination, Hearsay, Place, Thoroughness
from p2pfl.doctor.finding import Trouble
from p2pfl.doctor.reach import Answer, Knock
from p2pfl.errors import ConfigError
from p2pfl.link.memory import MemoryNetwork
from p2pfl.node.membership import Member
from p2pfl.node.node import Node
from p2pfl.node.peer import Peer
from p2pfl.node.probing import ClockRead, Describe, Description, Probed, ReadClock, Software
from tests.node.kit import Log, make, steps, until

SOFTWARE = Software("0.1", "1", "3.11", "2.13", "Linux")
MINUTE_AHEAD: Callable[[], float] = lambda: asyncio.get_running_loop().time() + 60  # noqa: E731 - a clock is a function


def probed(network: MemoryNetwork, name: str, **options: Any) -> Node:
    node = make(network, name, **options)
    node.add(Probed(node, SOFTWARE, MINUTE_AHEAD))
    return node


async def opened(address: str) -> Sequence[Knock]:
    return (Knock("10.0.0.1", Answer.OPEN),)


@asynccontextmanager
async def examining(
    network: MemoryNetwork, *nodes: Node, knock: Any = opened, **thoroughness: Any
) -> AsyncIterator[tuple[Examination, Node]]:
    async with AsyncExitStack() as stack:
        for node in nodes:
            await stack.enter_async_context(node)
        transport = network.transport("doctor")
        doctor = Node(transport=transport, members=Hearsay(Member("doctor")))
        await stack.enter_async_context(doctor)
        clock = asyncio.get_running_loop().time
        yield Examination(doctor, knock, lambda _: "open", Thoroughness(**thoroughness), clock), doctor


async def test_a_peer_that_is_well() -> None:
    network = MemoryNetwork(lambda *_: 0.05)
    node = probed(network, "b")
    async with examining(network, node) as (examination, doctor):
        finding = await examination.of(Place(("b",)))
        await steps()
        assert not doctor.peers
        assert not node.peers
    assert finding.trouble is None
    assert (finding.peer_id, finding.trust, finding.suite) == ("b", "open", "in this process")
    assert finding.description == Description(SOFTWARE, "b", None, ("memory:b",), "", None)
    assert finding.rtt_seconds == pytest.approx(0.1)
    assert finding.clock_offset_seconds == pytest.approx(60)
    assert finding.down is not None
    assert finding.up is not None
    assert finding.dialled_back == ""
    assert finding.astray == {}


async def test_being_dialled_back() -> None:
    network = MemoryNetwork()
    async with examining(network, probed(network, "b"), port=7700) as (examination, doctor):
        assert (await examination.of(Place(("b",)))).dialled_back == "unreached"
        listener = await doctor.transport.listen("doctor", lambda link: doctor.spawn(link.close()))
        assert (await examination.of(Place(("b",)))).dialled_back == "reached"
        await listener.close()


async def test_the_doctor_is_no_member_and_spreads_no_rumours() -> None:
    network = MemoryNetwork(lambda *_: 0.05)
    a, b = probed(network, "a"), probed(network, "b")
    a.members.learn([Member("c")])
    async with examining(network, a, b) as (examination, doctor):
        async with asyncio.TaskGroup() as group:
            for name in ("a", "b"):
                group.create_task(examination.of(Place((name,))))
        assert {member.id for member in doctor.members} == {"a", "b", "c", "doctor"}
        assert [{member.id for member in node.members} for node in (a, b)] == [{"a", "c"}, {"b"}]


async def test_whom_peers_know_is_unmet_until_it_has_been_looked_at() -> None:
    network = MemoryNetwork()
    hub, leaf = probed(network, "hub"), probed(network, "leaf", listen=(), peers=["hub"])
    other = probed(network, "other", peers=["hub"])
    async with examining(network, hub, leaf, other) as (examination, _):
        await until(lambda: len(hub.peers) == 2)
        await steps()
        assert examination.unmet() == []
        await examination.of(Place(("hub",)))
        unmet = {place.expect: place for place in examination.unmet()}
        assert unmet == {"leaf": Place((), "leaf"), "other": Place(("memory:other",), "other")}
        silent, found = [await examination.of(unmet[name]) for name in ("leaf", "other")]
        assert silent.trouble is Trouble.NO_DOOR
        assert silent.peer_id == "leaf"
        assert (found.trouble, found.peer_id, found.twin) == (None, "other", "")
        assert examination.unmet() == []


async def test_one_node_at_two_addresses_is_told_once() -> None:
    network = MemoryNetwork()
    async with examining(network, probed(network, "b")) as (examination, _):
        await examination.of(Place(("b",)))
        again = await examination.of(Place(("memory:b",)))
    assert again.twin == "b"
    assert not again.probed


async def test_the_first_address_that_works_counts() -> None:
    network = MemoryNetwork()
    async with examining(network, probed(network, "b")) as (examination, _):
        finding = await examination.of(Place(("nowhere", "b"), "b"))
        assert (finding.address, finding.trouble, finding.error) == ("b", None, "")
        finding = await examination.of(Place(("nowhere", "elsewhere"), "c"))
        assert (finding.address, finding.trouble) == ("elsewhere", Trouble.SILENT)


async def test_another_node_than_expected() -> None:
    network = MemoryNetwork()
    async with examining(network, probed(network, "b")) as (examination, _):
        assert (await examination.of(Place(("b",), "somebodyelse"))).trouble is Trouble.OTHER


async def test_an_address_that_is_none() -> None:
    network = MemoryNetwork()
    async with examining(network) as (examination, _):
        assert (await examination.of(Place(("ftp://x",), "b"))).trouble is Trouble.ADDRESS


async def test_what_tcp_says_is_not_asked_again() -> None:
    async def refused(address: str) -> Sequence[Knock]:
        return (Knock("10.0.0.1", Answer.REFUSED),)

    network = MemoryNetwork()
    async with examining(network, probed(network, "b"), knock=refused) as (examination, _):
        assert (await examination.of(Place(("b",)))).trouble is Trouble.REFUSED


async def test_a_program_without_the_role_is_there_all_the_same() -> None:
    network = MemoryNetwork()
    async with examining(network, make(network, "b")) as (examination, _):
        finding = await examination.of(Place(("b",)))
    assert finding.trouble is None
    assert not finding.probed
    assert "nothing here handles 'probe/describe'" in finding.error


class Stuck:
    """Answers who it is, and then nothing."""

    @Describe.handler
    async def describe(self, ask: Describe, peer: Peer) -> Description:
        return Description(SOFTWARE, "stuck", None, (), "", None)

    @ReadClock.handler
    async def read_clock(self, ask: ReadClock, peer: Peer) -> ClockRead:
        await asyncio.Event().wait()
        raise AssertionError


async def test_a_peer_that_gets_stuck_holds_nobody_up() -> None:
    network = MemoryNetwork()
    async with examining(network, make(network, "b", Stuck()), seconds=15.0) as (examination, _):
        began = asyncio.get_running_loop().time()
        finding = await examination.of(Place(("b",)))
        assert asyncio.get_running_loop().time() - began <= 17.1
    assert (finding.trouble, finding.error) == (Trouble.LOST, "it took too long")


async def test_a_host_that_swallows_packets_is_silent_in_time() -> None:
    network = MemoryNetwork()
    b = probed(network, "b")
    async with examining(network, b, seconds=15.0) as (examination, _):
        network.take_offline("b")
        began = asyncio.get_running_loop().time()
        assert (await examination.of(Place(("b",)))).trouble is Trouble.SILENT
        assert asyncio.get_running_loop().time() - began == pytest.approx(15)
        network.bring_online("b")


async def test_a_link_that_breaks_while_bandwidth_is_measured_leaves_what_was_found() -> None:
    network = MemoryNetwork(lambda *_: 0.05)
    b = probed(network, "b")
    async with examining(network, b) as (examination, _):
        asyncio.get_running_loop().call_later(1.0, network.cut, "b", "doctor")
        finding = await examination.of(Place(("b",)))
    assert finding.trouble is Trouble.LOST
    assert finding.rtt_seconds == pytest.approx(0.1)


async def test_bandwidth_is_measured_of_one_at_a_time_and_the_rest_side_by_side() -> None:
    """Through one line of ours. Half of it for each would be what two see that measure at once."""
    free = 0.0

    def delay(source: str, destination: str, size: int) -> float:
        nonlocal free
        now = asyncio.get_running_loop().time()
        if size < 10_000 or destination != "doctor":
            return 0.1
        free = max(free, now) + size / 1e6
        return free - now + 0.1

    network = MemoryNetwork(delay)
    async with examining(network, probed(network, "a"), probed(network, "b"), most_bytes=1 << 20) as (examination, _):
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(examination.of(Place((name,)))) for name in ("a", "b")]
        for task in tasks:
            assert task.result().down == pytest.approx(1e6, rel=0.3)


async def test_addresses_that_lead_nowhere_are_astray() -> None:
    knocks = {
        "memory:b": (Knock("10.0.0.1", Answer.OPEN),),
        "ws://inside:1": (),
        "ws://closed:1": (Knock("10.0.0.2", Answer.REFUSED),),
        "ws://localhost:1": (Knock("127.0.0.1", Answer.OPEN),),
    }

    async def knock(address: str) -> Sequence[Knock]:
        if address not in knocks:
            raise ConfigError("no address")
        return knocks[address]

    network = MemoryNetwork()
    b = probed(network, "b")
    async with examining(network, b, knock=knock) as (examination, _):
        await b.members.announce(addresses=("memory:b", *list(knocks)[1:]))
        first = await examination.of(Place(("memory:b",)))
        await b.members.announce(addresses=("ftp://x", "memory:b"))
        second = await examination.of(Place(("memory:b",)))
    assert first.astray == {
        "ws://inside:1": "unknown name",
        "ws://closed:1": "connection refused",
        "ws://localhost:1": "it leads back to whoever dials it",
    }
    assert second.astray == {"ftp://x": "no address"}


async def test_many_peers_are_looked_at_a_few_at_a_time() -> None:
    network = MemoryNetwork()
    most = 0

    async def knock(address: str) -> Sequence[Knock]:
        nonlocal most, now
        now += 1
        most = max(most, now)
        await asyncio.sleep(1)
        now -= 1
        return ()

    now = 0
    async with examining(network, knock=knock) as (examination, _), asyncio.TaskGroup() as group:
        for number in range(100):
            group.create_task(examination.of(Place((f"peer{number}",))))
    assert most == 32


async def test_events_of_the_examined_tell_of_a_visit_and_nothing_worse() -> None:
    network = MemoryNetwork()
    b = probed(network, "b")
    log = Log(b)
    async with examining(network, b) as (examination, _):
        await examination.of(Place(("b",)))
        await steps()
    assert [type(event).__name__ for _, event in log.events] == ["Listening", "PeerJoined", "PeerLost"]
    assert b.violations == b.dispatch.failures == 0
