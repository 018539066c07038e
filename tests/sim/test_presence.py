import asyncio

import pytest

from p2pfl.errors import PeerUnreachable
from p2pfl.link.memory import MemoryNetwork
from p2pfl.node.events import PeerJoined, PeerLost
from p2pfl.node.node import Node
from p2pfl.sim.availability import Availability, AvailabilitySpec
from p2pfl.sim.network import Network, NetworkSpec
from p2pfl.sim.presence import Presence


@pytest.fixture
def memory():
    return MemoryNetwork()


@pytest.fixture
def presence(memory, tmp_path):
    """Seat 1 is away from second 10 to 100, and from 200 on."""
    trace = tmp_path / "trace.csv"
    trace.write_text("1,10,0\n1,100,1\n1,200,0\n")
    return Presence(Availability(AvailabilitySpec(trace=str(trace)), 0, 3), memory, Network(NetworkSpec(), 0))


class Sees:
    def __init__(self):
        self.seen = []

    def push(self, event):
        if isinstance(event, PeerJoined | PeerLost):
            self.seen.append((type(event), asyncio.get_running_loop().time()))

    def finish(self):
        pass


async def test_a_node_that_goes_offline_loses_its_links_and_gets_them_back(memory, presence):
    sees = Sees()
    async with (
        Node(transport=memory.transport("a"), listen="a") as a,
        Node(transport=memory.transport("b"), peers=["a"]),
    ):
        a.observe(sees)
        presence.begin(0, "a")
        presence.begin(1, "b")
        await asyncio.sleep(300)
    assert [kind for kind, _ in sees.seen] == [PeerJoined, PeerLost, PeerJoined, PeerLost]
    _, lost, back, gone = (at for _, at in sees.seen)
    assert (lost, gone) == (10, 200)
    assert 100 < back < 132


async def test_what_it_has_sent_is_forgotten(memory, tmp_path):
    trace = tmp_path / "trace.csv"
    trace.write_text("0,1,0\n0,2,1\n")
    wire = Network(NetworkSpec(latency_ms=0, uplink_mbps=8), 0)
    presence = Presence(Availability(AvailabilitySpec(trace=str(trace)), 0, 1), memory, wire)
    presence.begin(0, "a")
    assert wire.delay("a", "b", 10**9) == pytest.approx(1000)
    await asyncio.sleep(3)
    assert wire.delay("a", "c", 10**6) == pytest.approx(1)


async def test_nobody_dials_it_and_it_dials_nobody_meanwhile(memory, presence):
    a, b = memory.transport("a"), memory.transport("b")
    await a.listen("a", lambda link: None)
    await b.listen("b", lambda link: None)
    presence.begin(1, "b")
    await a.dial("b")
    await asyncio.sleep(50)
    attempts = [asyncio.create_task(a.dial("b")), asyncio.create_task(b.dial("a"))]
    await asyncio.wait(attempts)
    assert [str(attempt.exception()) for attempt in attempts] == [
        "memory:b does not answer: b is offline",
        "memory:a does not answer: b is offline",
    ]
    assert asyncio.get_running_loop().time() == 100, "who is dialled says nothing as long as it is offline"
    await a.dial("b")
    await asyncio.sleep(150)
    with pytest.raises(PeerUnreachable):
        await a.dial("b")
    assert asyncio.get_running_loop().time() == 250 + 127, "or until the dialler gives up"


async def test_who_has_not_been_made_can_be_asked_about(presence):
    found = []
    for _ in range(3):
        found.append((presence.online(1), presence.online(2)))
        await asyncio.sleep(60)
    assert found == [(True, True), (False, True), (True, True)]


async def test_who_begins_later_is_where_it_would_be_by_then(memory, presence):
    await asyncio.sleep(50)
    presence.begin(1, "b")
    assert "b" in memory.offline
    await asyncio.sleep(51)
    assert "b" not in memory.offline
    await asyncio.sleep(200)
    assert "b" in memory.offline
    presence.end("b")
    assert not memory.offline


async def test_after_the_end_nobody_comes_and_goes(memory, presence):
    presence.begin(1, "b")
    presence.close()
    await asyncio.sleep(50)
    assert not memory.offline
    presence.begin(1, "b")
    presence.begin(1, "b")
    presence.end("b")
    await asyncio.sleep(200)
    assert not memory.offline
