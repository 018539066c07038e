import asyncio
from math import log
from statistics import median, pstdev

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pfl.errors import ConfigError
from p2pfl.link.memory import MemoryNetwork
from p2pfl.sim.loop import run_virtual
from p2pfl.sim.network import Network, NetworkSpec
from p2pfl.wire.packet import Packet

MB = 1_000_000  # takes a second at 8 Mbit/s
SMALL = 50_000  # goes into one record


def network(seed=0, coordinators=(), **spec):
    return Network(NetworkSpec(**({"latency_ms": 20, "uplink_mbps": 8, "downlink_mbps": 0} | spec)), seed, coordinators)


async def test_a_packet_takes_the_latency_and_its_time_on_the_slower_of_uplink_and_downlink():
    assert network().delay("a", "b", MB) == pytest.approx(1.02)
    assert network(downlink_mbps=4).delay("a", "b", MB) == pytest.approx(2.02)
    assert network(downlink_mbps=80).delay("a", "b", MB) == pytest.approx(1.02), "it streams"
    assert network(downlink_mbps=4).delay("a", "b", SMALL) == pytest.approx(0.12)


async def test_without_bound_on_the_bandwidth_size_does_not_matter():
    free = network(uplink_mbps=0)
    assert free.delay("a", "b", 10**9) == free.delay("a", "b", 1) == pytest.approx(0.02)


async def test_large_packets_share_the_uplink_of_their_node_whoever_they_are_for():
    wire = network()
    assert [wire.delay("a", to, MB) for to in "bcb"] == pytest.approx([1.02, 2.02, 3.02])
    assert wire.delay("b", "a", MB) == pytest.approx(1.02), "the other direction is free"
    await asyncio.sleep(2.5)
    assert wire.delay("a", "d", MB) == pytest.approx(1.52), "half a second of the queue is left"
    await asyncio.sleep(10)
    assert wire.delay("a", "b", MB) == pytest.approx(1.02), "an idle line saves nothing up"


async def test_large_packets_share_the_downlink_of_who_receives_them_whoever_sends():
    wire = network(uplink_mbps=0, downlink_mbps=8)
    assert [wire.delay(source, "z", MB) for source in "abc"] == pytest.approx([1.02, 2.02, 3.02])
    assert wire.delay("a", "y", MB) == pytest.approx(1.02)


async def test_a_slow_sender_does_not_hold_up_the_others_at_a_downlink():
    wire = network(uplink_mbps=8, downlink_mbps=80)
    wire.delay("a", "b", 100 * MB)  # this keeps the uplink of a for 100 seconds
    assert wire.delay("a", "z", MB) == pytest.approx(101.02)
    assert wire.delay("c", "z", MB) == pytest.approx(1.02)


async def test_a_downlink_does_what_comes_later_in_between_what_has_been_sent_before():
    wire = network(uplink_mbps=8, downlink_mbps=8)
    wire.delay("a", "b", 2 * MB)
    assert wire.delay("a", "z", MB) == pytest.approx(3.02), "from second 2 to 3"
    assert wire.delay("c", "z", 3 * MB) == pytest.approx(4.02), "from 0 to 2 and from 3 to 4"
    assert wire.delay("d", "z", MB) == pytest.approx(5.02)


async def test_a_downlink_is_taken_up_when_a_packet_passes_it_and_not_when_it_is_sent():
    wire = network(uplink_mbps=8, downlink_mbps=8)
    for source, elsewhere in ("ab", "cd"):
        wire.delay(source, elsewhere, 2 * MB)
    assert [wire.delay(source, "z", MB) for source in "ac"] == pytest.approx([3.02, 4.02])


async def test_packets_of_one_record_take_a_downlink_from_large_ones_that_are_sent_later():
    wire = network(uplink_mbps=0, downlink_mbps=8)
    wire.delay("a", "z", MB)
    assert [wire.delay("b", "z", SMALL) for _ in range(2)] == pytest.approx([0.07, 0.12])
    assert wire.delay("c", "z", MB) == pytest.approx(2.12)
    assert [wire.delay("b", "y", SMALL) for _ in range(40)][-1] == pytest.approx(2.02)
    assert wire.delay("a", "y", MB) == pytest.approx(3.0), "behind those that were sent before"


async def test_a_packet_of_one_record_overtakes_large_ones_and_queues_with_its_like():
    wire = network()
    wire.delay("a", "b", 10 * MB)
    assert [wire.delay("a", "b", SMALL) for _ in range(3)] == pytest.approx([0.07, 0.12, 0.17])
    assert wire.delay("a", "b", MB) == pytest.approx(11.17), "large ones that are sent later notice"


async def test_coordinators_have_a_bandwidth_of_their_own():
    wire = network(coordinators={"hub"}, coordinator_mbps=80, bandwidth_spread=1.0)
    assert wire.delay("hub", "a", MB) == pytest.approx(0.12)


async def test_bandwidths_differ_between_nodes_and_are_good_or_bad_both_ways():
    wire = network(latency_ms=0, bandwidth_spread=0.7, downlink_mbps=80, coordinators={"hub"}, coordinator_mbps=0)
    speeds = [8 / wire.delay(f"a{number}", "hub", MB) for number in range(300)]
    assert median(speeds) == pytest.approx(8, rel=0.15)
    assert pstdev(map(log, speeds)) == pytest.approx(0.7, rel=0.15)
    up, down = wire.pipes("a7")
    assert up.seconds_per_byte == pytest.approx(10 * down.seconds_per_byte)


async def test_who_is_forgotten_begins_anew():
    wire = network()
    wire.delay("a", "b", 100 * MB)
    wire.forget("a")
    assert wire.delay("a", "b", MB) == pytest.approx(1.02)


Sends = st.lists(
    st.tuples(
        st.floats(0, 3),
        st.sampled_from("abcd"),
        st.sampled_from("wxyz"),
        st.integers(1, 3 * MB) | st.integers(1, SMALL),
    ),
    min_size=1,
    max_size=25,
)


def play(sends, seed=0, **spec):
    """When each packet was sent and when it came; the network."""

    async def run():
        wire, found = network(seed, **spec), []
        for pause, source, destination, size in sends:
            await asyncio.sleep(pause if pause > 1 else 0)
            now = asyncio.get_running_loop().time()
            found.append((now, now + wire.delay(source, destination, size), source, destination, size))
        return found, wire

    return run_virtual(run())


@given(Sends, st.sampled_from([0, 4, 8, 30]), st.sampled_from([0, 4, 8, 30]), st.floats(0, 2))
def test_nothing_arrives_before_its_latency_and_its_own_time_on_the_line(sends, up, down, jitter):
    found, _ = play(sends, uplink_mbps=up, downlink_mbps=down, jitter=jitter)
    slower = max((8e-6 / rate for rate in (up, down) if rate), default=0.0)
    for sent, came, _, _, size in found:
        assert came >= sent + 0.02 + size * slower - 1e-9


@given(Sends, st.sampled_from([4, 8, 30]), st.sampled_from([4, 8, 30]), st.booleans())
def test_no_uplink_and_no_downlink_carries_more_than_it_can(sends, up, down, large):
    """Of packets of one kind, those that were sent after some time and came before another fit into what is between."""
    kind = range(70_000, 3 * MB + 1) if large else range(SMALL + 1)
    sends = [send for send in sends if send[-1] in kind]
    found, _ = play(sends, uplink_mbps=up, downlink_mbps=down)
    for column, rate in ((2, up), (3, down)):
        for node in "abcdwxyz":
            mine = [packet for packet in found if packet[column] == node]
            for begin in {packet[0] for packet in mine}:
                for end in {packet[1] for packet in mine}:
                    within = sum(size for sent, came, _, _, size in mine if sent >= begin and came <= end)
                    assert within * 8e-6 / rate <= max(0.0, end - begin - 0.02) + 1e-6


@given(Sends)
def test_all_that_is_sent_is_counted(sends):
    _, wire = play(sends)
    assert (wire.packets, wire.bytes) == (len(sends), sum(size for *_, size in sends))
    wire.settle()
    assert (wire.packets, wire.bytes) == (len(sends), sum(size for *_, size in sends))


@given(Sends, st.integers(0, 3))
def test_equal_seeds_give_equal_times_and_traces(sends, seed):
    shaky = {"jitter": 1.0, "latency_spread": 1.0, "bandwidth_spread": 1.0, "downlink_mbps": 20}
    first, again, other = (play(sends, each, **shaky) for each in (seed, seed, seed + 1))
    assert first[0] == again[0] != other[0]
    assert first[1].trace == again[1].trace


async def test_looking_at_the_counts_leaves_the_trace_alone_however_long_it_is():
    looked, other = network(), network()
    for number in range(40_000):
        looked.delay("a", "b", number)
        other.delay("a", "b", number)
        assert len(other.pending) < 100_000, "what is kept does not grow with the run"
        if number % 1000 == 7:
            assert looked.packets == number + 1 and looked.trace
    assert looked.trace == other.trace
    assert (other.packets, other.bytes) == (40_000, sum(range(40_000)))


@given(st.floats(0, 5), st.integers(0, 2**32))
def test_jitter_stays_within_its_share_of_the_latency(jitter, seed):
    async def delays():
        wire = network(seed, latency_ms=100, jitter=jitter, uplink_mbps=0)
        return [wire.delay("a", "b", 10) for _ in range(20)]

    found = run_virtual(delays())
    assert all(0.1 - 1e-9 <= delay <= 0.1 * (1 + jitter) + 1e-9 for delay in found)
    assert len(set(found)) > 1 or jitter < 1e-6


async def test_latencies_differ_between_links_but_not_between_directions():
    wire = network(3, latency_spread=1.0, uplink_mbps=0)
    found = {(a, b): wire.delay(a, b, 1) for a in "abcdef" for b in "abcdef" if a != b}
    assert len(set(found.values())) == 15
    assert all(found[a, b] == found[b, a] for a, b in found)


async def test_a_late_packet_is_not_overtaken_on_its_link():
    class Inbox:
        def __init__(self):
            self.heads = []

        def admit(self, head, sizes):
            raise AssertionError("there is nothing to admit")

        def packet_received(self, packet):
            self.heads.append(packet.head)

        def link_closed(self, error):
            pass

    memory = MemoryNetwork(lines=network(jitter=5.0).line)
    far, inbox = [], Inbox()
    await memory.transport("b").listen("b", far.append)
    near = await memory.transport("a").dial("b")
    near.start(Inbox())
    await asyncio.sleep(1)
    far[0].start(inbox)
    for number in range(50):
        near.send(Packet(b"%d" % number))
    await asyncio.sleep(10)
    assert inbox.heads == [b"%d" % number for number in range(50)]


def traced(seed, sizes):
    async def send():
        wire = network(seed, jitter=0.5)
        for size in sizes:
            await asyncio.sleep(wire.delay("a", "b", size))
        return wire

    return run_virtual(send())


def test_equal_runs_have_equal_traces_and_others_have_not():
    first = traced(1, [10, 20])
    assert traced(1, [10, 20]).trace == first.trace
    assert len({first.trace, traced(2, [10, 20]).trace, traced(1, [20, 10]).trace, traced(1, [10, 20, 1]).trace}) == 4
    assert (first.packets, first.bytes) == (2, 30)


@pytest.mark.parametrize("field", NetworkSpec.__slots__)
@pytest.mark.parametrize("value", [-1, float("nan"), float("inf")])
def test_settings_that_cannot_be_are_refused_by_name(field, value):
    with pytest.raises(ConfigError, match=rf"^network\.{field} is {value}; it must be a number that is not negative$"):
        NetworkSpec(**{field: value})
