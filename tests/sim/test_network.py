import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pfl.errors import ConfigError
from p2pfl.link.memory import MemoryNetwork
from p2pfl.sim.loop import run_virtual
from p2pfl.sim.network import Network, NetworkSpec
from p2pfl.wire.packet import Packet


async def test_a_packet_takes_the_latency_and_its_time_on_the_line():
    network = Network(NetworkSpec(latency_ms=20, bandwidth_mbps=8), 0)
    assert network.delay("a", "b", 1_000_000) == pytest.approx(1.02)


async def test_without_bound_on_the_bandwidth_size_does_not_matter():
    network = Network(NetworkSpec(latency_ms=20, bandwidth_mbps=0), 0)
    assert network.delay("a", "b", 10**9) == network.delay("a", "b", 1) == pytest.approx(0.02)


async def test_packets_queue_for_the_line_and_each_direction_has_its_own():
    network = Network(NetworkSpec(latency_ms=20, bandwidth_mbps=8), 0)
    assert [network.delay("a", "b", 1_000_000) for _ in range(3)] == pytest.approx([1.02, 2.02, 3.02])
    assert network.delay("b", "a", 1_000_000) == pytest.approx(1.02)
    assert network.delay("a", "c", 1_000_000) == pytest.approx(1.02)
    await asyncio.sleep(2.5)
    assert network.delay("a", "b", 1_000_000) == pytest.approx(1.52), "half a second of the queue is left"
    await asyncio.sleep(10)
    assert network.delay("a", "b", 1_000_000) == pytest.approx(1.02), "an idle line saves nothing up"


@given(st.floats(0, 5), st.integers(0, 2**32))
def test_jitter_stays_within_its_share_of_the_latency(jitter, seed):
    async def delays():
        network = Network(NetworkSpec(latency_ms=100, jitter=jitter, bandwidth_mbps=0), seed)
        return [network.delay("a", "b", 10) for _ in range(20)]

    found = run_virtual(delays())
    assert all(0.1 - 1e-9 <= delay <= 0.1 * (1 + jitter) + 1e-9 for delay in found)
    assert len(set(found)) > 1 or jitter < 1e-6


async def test_latencies_differ_between_links_but_not_between_directions():
    network = Network(NetworkSpec(latency_spread=1.0, bandwidth_mbps=0), 3)
    found = {(a, b): network.delay(a, b, 1) for a in "abcdef" for b in "abcdef" if a != b}
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

    memory = MemoryNetwork(Network(NetworkSpec(jitter=5.0), 0).delay)
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
        network = Network(NetworkSpec(jitter=0.5), seed)
        for size in sizes:
            await asyncio.sleep(network.delay("a", "b", size))
        return network

    return run_virtual(send())


def test_equal_runs_have_equal_traces_and_others_have_not():
    first = traced(1, [10, 20])
    assert traced(1, [10, 20]).trace == first.trace
    assert len({first.trace, traced(2, [10, 20]).trace, traced(1, [20, 10]).trace, traced(1, [10, 20, 1]).trace}) == 4
    assert (first.packets, first.bytes) == (2, 30)


@pytest.mark.parametrize("field", ["latency_ms", "latency_spread", "jitter", "bandwidth_mbps"])
def test_settings_that_cannot_be_are_refused_by_name(field):
    with pytest.raises(ConfigError, match=rf"^network\.{field} is -1; it must not be negative$"):
        NetworkSpec(**{field: -1})
