"""How late a packet is: the latency of every link, the bandwidth of every node, drawn from a seed.

What a node sends passes its uplink, and the downlink of who receives it; all its links share the two. A packet over one
record waits for those that were sent before it; one up to a record waits only for others of its kind, and those over a
record that are sent later wait for it. So it is on sockets, where the records of several packets take turns. A transfer
streams: its last byte arrives one latency after it has left, or when the downlink is through with it. A downlink that
a slow sender leaves idle is used by others.

An uplink does not take back what is withdrawn from it before it has left.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
from array import array
from bisect import insort
from collections.abc import Callable, Container
from dataclasses import dataclass
from random import Random

from p2pfl.errors import require
from p2pfl.link.memory import RECORD_OVERHEAD
from p2pfl.sim.draws import lognormal, uniform
from p2pfl.wire.frame import MAX_RECORD

__all__ = ["Network", "NetworkSpec"]

_RECORD = MAX_RECORD + RECORD_OVERHEAD  # bytes of the largest
_TOUCH = 1e-9  # seconds: so close together, two times at work are one
_PENDING = 3 * 4096  # numbers of the trace that are hashed together


@dataclass(frozen=True, slots=True)
class NetworkSpec:
    """The table [network] of a course file; it is for simulation only."""

    latency_ms: float = 20.0
    """Median one-way delay of a link."""
    latency_spread: float = 0.0
    """Deviation of the logarithm of the links' delays; 0: all links are alike."""
    jitter: float = 0.0
    """Each packet is late by up to this share of its link's delay."""
    uplink_mbps: float = 100.0
    """Megabits a second that the median node sends at most, over all its links; 0: without bound."""
    downlink_mbps: float = 100.0
    """Megabits a second that the median node receives at most; 0: without bound."""
    bandwidth_spread: float = 0.0
    """Deviation of the logarithm of the nodes' bandwidths; 0: all nodes are alike."""
    coordinator_mbps: float = 1000.0
    """The same, in each direction, of nodes that hold no examples, such as a server; 0: without bound."""
    loss_every_seconds: float = 0.0
    """Mean time until a link breaks and what is under way on it is lost; 0: links do not break."""

    def __post_init__(self) -> None:
        for name in self.__slots__:
            value = getattr(self, name)
            require(0 <= value < math.inf, f"network.{name} is {value}; it must be a number that is not negative")


class Network:
    """Delays for a MemoryNetwork, and a digest of all that was sent: two equal runs have equal traces."""

    def __init__(self, spec: NetworkSpec, seed: int, coordinators: Container[str] = ()) -> None:
        """`coordinators`: names of the nodes that have the bandwidth of a coordinator."""
        self.spec = spec
        self.seed = seed
        self.pending: list[float] = []  # of the trace, not hashed yet: link, bytes, seconds; link, bytes, seconds; ...
        self._coordinators = coordinators
        self._pipes: dict[str, tuple[_Pipe, _Pipe]] = {}  # uplink and downlink of each node
        self.steady = not spec.jitter
        self._time: Callable[[], float] | None = None  # the loop's, once there is a line
        self._rng = Random()  # for jitter, seeded then
        self._trace = hashlib.blake2b(digest_size=16)
        self._packets = 0  # that have been hashed
        self._bytes = 0

    def line(self, source: str, destination: str) -> Callable[[int], float]:
        """One direction of a link, for a MemoryNetwork: bytes that are sent now to seconds until they arrive."""
        if self._time is None:
            self._time = asyncio.get_running_loop().time
            self._rng.seed(f"{self.seed}/jitter/{self._time()}")
        return _Line(self, self._time, source, destination)

    def delay(self, source: str, destination: str, size: int) -> float:
        """Seconds until a packet of `size` bytes that is sent now arrives."""
        return self.line(source, destination)(size)

    def forget(self, name: str) -> None:
        """All links of this node have ended: nothing that it has sent is under way any more."""
        self._pipes.pop(name, None)

    def late(self, latency: float) -> float:
        """A packet's delay on a link with this one, where there is jitter."""
        return latency * (1 + self.spec.jitter * self._rng.random())

    def pipes(self, name: str) -> tuple[_Pipe, _Pipe]:
        """Uplink and downlink of a node."""
        if name not in self._pipes:
            spec = self.spec
            if name in self._coordinators:
                up = down = spec.coordinator_mbps
            else:
                factor = lognormal(spec.bandwidth_spread, self.seed, "bandwidth", name)
                up, down = spec.uplink_mbps * factor, spec.downlink_mbps * factor
            self._pipes[name] = _Pipe(up), _Pipe(down)
        return self._pipes[name]

    def settle(self) -> None:
        """Hash what is pending."""
        pending = self.pending
        self._trace.update(array("d", pending))
        self._packets += len(pending) // 3
        self._bytes += int(sum(pending[1::3]))
        pending.clear()

    @property
    def packets(self) -> int:
        """Sent by all nodes so far."""
        return self._packets + len(self.pending) // 3

    @property
    def bytes(self) -> int:
        """Sent by all nodes so far."""
        return self._bytes + int(sum(self.pending[1::3]))

    @property
    def trace(self) -> str:
        """A digest of who sent how much to whom and when."""
        self.settle()
        return self._trace.hexdigest()


class _Pipe:
    """The uplink or the downlink of one node."""

    __slots__ = ("busy", "free_at", "seconds_per_byte")

    def __init__(self, mbps: float) -> None:
        self.seconds_per_byte = 8e-6 / mbps if mbps else 0.0
        self.free_at = 0.0  # when it has got through all packets of one record
        self.busy: list[tuple[float, float]] = []  # when it is taken up by larger ones: disjoint, in order

    def take(self, start: float, seconds: float, now: float) -> float:
        """Work on a packet over one record from `start` on, whenever there is nothing else to do; when it is done."""
        start = max(start, self.free_at)
        if not seconds:
            return start
        if len(self.busy) == 1 and self.busy[0][0] <= start <= self.busy[0][1]:  # it queues, as nearly all do
            done = self.busy[0][1] + seconds
            self.busy[0] = self.busy[0][0], done
            return done
        done = start + seconds
        begin, end, apart = start, start, []
        for since, until in self.busy:
            if until < start - _TOUCH or since > done + _TOUCH:
                if until > now:
                    apart.append((since, until))
                continue
            if since < done:  # what was there before comes first
                done += max(0.0, until - max(since, start))
            begin, end = min(begin, since), max(end, until)
        insort(apart, (begin, max(end, done)))
        self.busy = apart
        return done

    def push(self, seconds: float, now: float) -> None:
        """A packet of one record goes before the larger ones: those that are sent after it notice."""
        since, until = self.busy[-1]
        if until > now:
            self.busy[-1] = since, until + seconds


class _Line:
    """One direction of a link."""

    __slots__ = ("_down", "_key", "_latency", "_time", "_up", "_wire")

    def __init__(self, wire: Network, time: Callable[[], float], source: str, destination: str) -> None:
        spec = wire.spec
        ends = sorted((source, destination))  # both directions of a link are equally long
        self._wire = wire
        self._time = time
        self._latency = spec.latency_ms / 1000 * lognormal(spec.latency_spread, wire.seed, "latency", *ends)
        self._key = uniform(source, destination)  # stands for both ends in the trace
        self._up = wire.pipes(source)[0]
        self._down = wire.pipes(destination)[1]

    def __call__(self, size: int) -> float:
        """Seconds until a packet of so many bytes that is sent now arrives. Every simulated message comes by here."""
        wire, now, up, down = self._wire, self._time(), self._up, self._down
        pending = wire.pending
        pending += (self._key, size, now)
        if len(pending) >= _PENDING:
            wire.settle()
        latency = self._latency if wire.steady else wire.late(self._latency)
        sending, receiving = size * up.seconds_per_byte, size * down.seconds_per_byte
        if size > _RECORD:
            left = up.take(now, sending, now)
            taken = down.take(left - sending + latency, receiving, now)
            return max(left + latency, taken) - now
        up.free_at = left = (up.free_at if up.free_at > now else now) + sending
        down.free_at = taken = (down.free_at if down.free_at > now else now) + receiving
        if up.busy:
            up.push(sending, now)
        if down.busy:
            down.push(receiving, now)
        return (left if left > taken else taken) + latency - now
