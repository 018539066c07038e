"""What a node tells a doctor, and what it does not; measurements against lines whose speed is known."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pfl.errors import LinkError, RemoteError
from p2pfl.link.memory import MemoryNetwork
from p2pfl.node.node import Node
from p2pfl.node.peer import Peer
from p2pfl.node.probing import (
    PARCEL_BYTES,
    Bandwidth,
    Describe,
    Description,
    DialBack,
    FetchParcel,
    Probed,
    ReadClock,
    Software,
    TakeParcel,
    time_link,
)
from p2pfl.sim.loop import run_virtual
from p2pfl.wire.message import Message
from p2pfl.wire.tensor import Tensors, TensorSpec
from tests.node.kit import Log, make, steps, until

PARCEL = Tensors((TensorSpec("parcel", "u8", (PARCEL_BYTES,)),), (memoryview(bytes(PARCEL_BYTES)),))
SOFTWARE = Software("0.1", "1", "3.11", "2.13", "Linux")


@asynccontextmanager
async def probed(
    network: MemoryNetwork | None = None, clock: Callable[[], float] = lambda: 1000.0, **asker: object
) -> AsyncIterator[tuple[Node, Peer, Node, Probed]]:
    """An asker, the peer that it asks, that peer's node and role."""
    network = network or MemoryNetwork()
    b = make(network, "b")
    role = Probed(b, SOFTWARE, clock)
    b.add(role)
    async with b, make(network, "a", peers=["b"], **asker) as a:
        await until(lambda: a.peer("b").connected and b.peer("a").connected)
        await steps()
        yield a, a.peer("b"), b, role


async def test_a_node_describes_itself() -> None:
    async with probed() as (_, peer, b, role):
        assert await peer.ask(Describe()) == Description(SOFTWARE, "b", None, ("memory:b",), "", None)
        await b.members.announce(seat=3)
        role.course, role.model_bytes = "hash", 40
        assert await peer.ask(Describe()) == Description(SOFTWARE, "b", 3, ("memory:b",), "hash", 40)


@pytest.mark.parametrize("text", ["\x1b[31mred", "a\nb", "x" * 201])
@pytest.mark.parametrize("field", ["name", "course", "torch"])
def test_what_a_peer_says_is_fit_for_a_screen(text: str, field: str) -> None:
    said = {"name": "b", "course": "", "torch": "2.13"} | {field: text}
    software = Software("0.1", "1", "3.11", said["torch"], "Linux")
    with pytest.raises(ValueError, match="does not print"):
        Description(software, said["name"], None, (), said["course"], None)


@given(ahead=st.floats(-1e6, 1e6), there=st.floats(0.001, 0.2), back=st.floats(0.001, 0.2))
def test_the_clock_offset_is_right_to_half_the_round_trip(ahead: float, there: float, back: float) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        delays = {("a", "b"): there, ("b", "a"): back}
        network = MemoryNetwork(lambda source, destination, _: delays[source, destination])
        async with probed(network, lambda: loop.time() + ahead) as (_, peer, _, _):
            timing = await time_link(peer, loop.time)
        assert timing.rtt_seconds == pytest.approx(there + back)
        assert timing.clock_offset_seconds == pytest.approx(ahead + (there - back) / 2, abs=1e-6)

    run_virtual(main())


async def test_a_single_late_answer_moves_neither_figure() -> None:
    lateness: Iterator[float] = iter(())

    def delay(source: str, _: str, size: int) -> float:
        return 0.1 + (next(lateness, 0.0) if source == "b" else 0.0)

    loop = asyncio.get_running_loop()
    async with probed(MemoryNetwork(delay), loop.time) as (_, peer, _, _):
        lateness = iter([0.0, 3.0])
        timing = await time_link(peer, loop.time)
    assert timing.rtt_seconds == pytest.approx(0.2)
    assert timing.clock_offset_seconds == pytest.approx(0.0, abs=1e-9)


def line(rate: float, latency: float) -> Callable[[str, str], Callable[[int], float]]:
    """Lines that carry `rate` bytes a second in each direction, one packet after the other."""

    def direction(_source: str, _destination: str) -> Callable[[int], float]:
        free = 0.0

        def delay(size: int) -> float:
            nonlocal free
            now = asyncio.get_running_loop().time()
            free = max(free, now) + size / rate
            return free - now + latency

        return delay

    return direction


@pytest.mark.parametrize("rate", [30e3, 1e6, 50e6])
async def test_bandwidth_is_that_of_the_line(rate: float) -> None:
    async with probed(MemoryNetwork(lines=line(rate, 0.02))) as (_, peer, _, _):
        bandwidth = Bandwidth(peer, 0.04, 8 << 20)
        began = asyncio.get_running_loop().time()
        await bandwidth.measure(15)
        took = asyncio.get_running_loop().time() - began
    assert took <= 15
    assert bandwidth.down == pytest.approx(rate, rel=0.05)
    assert bandwidth.up == pytest.approx(rate, rel=0.05)


async def test_a_line_on_which_nothing_gets_through_in_time_is_given_an_upper_bound() -> None:
    async with probed(MemoryNetwork(lines=line(15e3, 0.02))) as (_, peer, _, _):
        bandwidth = Bandwidth(peer, 0.04, 8 << 20)
        await bandwidth.measure(6)
        assert bandwidth.down == bandwidth.up == PARCEL_BYTES / 3


@pytest.mark.parametrize("most", [1, 3 * PARCEL_BYTES, 1_000_000])
async def test_no_more_is_sent_than_was_allowed(most: int) -> None:
    async with probed(MemoryNetwork(lines=line(1e9, 0.001))) as (_, peer, _, _):
        await Bandwidth(peer, 0.002, most).measure(15)
        counts = peer.statistics()
    allowed = max(most // PARCEL_BYTES, 1) * PARCEL_BYTES
    for moved in (counts.bytes_sent, counts.bytes_received):
        assert allowed <= moved <= 1.01 * allowed + 20_000


async def test_who_asks_for_ever_more_gets_a_bounded_number_of_parcels() -> None:
    async with probed() as (_, peer, _, _):
        given = [(await peer.ask(FetchParcel())).content is not None for _ in range(600)]
        assert given == [True] * 512 + [False] * 88
        assert not (await peer.ask(TakeParcel(PARCEL))).more
        bandwidth = Bandwidth(peer, 0.0, 8 << 20)
        await bandwidth.measure(15)
        assert (bandwidth.down, bandwidth.up) == (None, None)
        await asyncio.sleep(1.01)
        given = [(await peer.ask(FetchParcel())).content is not None for _ in range(100)]
        assert sum(given) == 16


async def test_parcels_are_taken_whatever_tensors_a_course_has_agreed_on() -> None:
    async with probed() as (_, peer, b, _):
        log = Log(b)
        b.agree((TensorSpec("params", "f32", (3,)),))
        with pytest.raises(RemoteError):  # nobody announced it
            await peer.ask(TakeParcel(PARCEL))
        assert b.violations == 1
        await Bandwidth(peer, 0.0, 8 << 20).measure(15)
        assert b.violations == 1
        assert len(log.of(object)) == 1


async def test_an_open_vocabulary_stays_open() -> None:
    async with probed() as (_, peer, b, _):
        await peer.ask(FetchParcel())
        assert not b.dispatch.schemas  # to agree on parcels alone would be to refuse the course's models


async def test_a_link_that_ends_in_the_middle_of_a_measurement_is_one_error() -> None:
    network = MemoryNetwork(lines=line(1e6, 0.02))
    async with probed(network) as (_, peer, _, _):
        asyncio.get_running_loop().call_later(0.5, network.cut, "a", "b")
        with pytest.raises(LinkError):
            await Bandwidth(peer, 0.04, 80 << 20).measure(15)


async def test_who_listens_is_dialled_back() -> None:
    async with probed() as (_, peer, b, _):
        assert (await peer.ask(DialBack(7700))).outcome == "reached"
        await steps()
        assert len(b.peers) == 1


async def test_who_does_not_listen_is_not_reached() -> None:
    async with probed(listen=()) as (_, peer, _, _):
        assert (await peer.ask(DialBack(7700))).outcome == "unreached"


async def test_nobody_is_dialled_back_whom_we_dialled() -> None:
    network = MemoryNetwork()
    a, b = make(network, "a"), make(network, "b", peers=["a"])
    b.add(Probed(b, SOFTWARE))
    async with a, b:
        await until(lambda: a.peer("b").connected and b.peer("a").connected)
        assert (await a.peer("b").ask(DialBack(7700))).outcome == "unreached"


async def test_dialling_back_is_rare() -> None:
    async with probed() as (_, peer, _, _):
        said = [(await peer.ask(DialBack(7700))).outcome for _ in range(6)]
        assert said == ["reached"] * 4 + ["busy"] * 2
        await asyncio.sleep(11)
        assert (await peer.ask(DialBack(7700))).outcome == "reached"


async def test_dialling_back_gives_up_in_time() -> None:
    network = MemoryNetwork()
    async with probed(network) as (_, peer, b, _):

        async def never(*_: object) -> None:
            await asyncio.sleep(1e6)

        b.transport.dial_back = never  # type: ignore[attr-defined, method-assign]  # a host that swallows packets
        began = asyncio.get_running_loop().time()
        assert (await peer.ask(DialBack(7700))).outcome == "unreached"
        assert asyncio.get_running_loop().time() - began <= 5


@pytest.mark.parametrize("port", [0, -1, 65536])
async def test_a_port_that_is_none_is_against_the_protocol(port: int) -> None:
    async with probed() as (_, peer, b, _):
        with pytest.raises(RemoteError):
            await peer.ask(DialBack(port))
        assert b.violations == 1


def test_tags_leave_the_words_to_courses() -> None:
    kinds = [kind for kind in Message.__subclasses__() if kind.__module__ == "p2pfl.node.probing"]
    assert kinds
    assert all(kind.tag.startswith("probe/") for kind in [*kinds, Describe, ReadClock, DialBack, FetchParcel])
