"""How late a packet is: latency and bandwidth of every link, drawn from a seed."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from random import Random
from struct import Struct

from p2pfl.errors import ConfigError

__all__ = ["Network", "NetworkSpec"]

_SENT = Struct("<8sqd")  # one entry of the trace: link, bytes, seconds


@dataclass(frozen=True, slots=True)
class NetworkSpec:
    """The table [network] of a course file; it is for simulation only."""

    latency_ms: float = 20.0
    """Mean one-way delay of a link."""
    latency_spread: float = 0.0
    """Deviation of the logarithm of the links' delays; 0: all links are alike."""
    jitter: float = 0.0
    """Each packet is late by up to this share of its link's delay."""
    bandwidth_mbps: float = 100.0
    """Megabits a second in each direction of a link; 0: without bound."""

    def __post_init__(self) -> None:
        for name in ("latency_ms", "latency_spread", "jitter", "bandwidth_mbps"):
            if getattr(self, name) < 0:
                raise ConfigError(f"network.{name} is {getattr(self, name)}; it must not be negative")


class Network:
    """Delays for a MemoryNetwork, and a digest of all that was sent: two equal runs have equal traces."""

    def __init__(self, spec: NetworkSpec, seed: int) -> None:
        self._spec = spec
        self._seed = seed
        self._links: dict[tuple[str, str], _Line] = {}
        self._trace = hashlib.blake2b(digest_size=16)
        self.packets = 0
        self.bytes = 0

    def line(self, source: str, destination: str) -> Callable[[int], float]:
        """One direction of a link, for a MemoryNetwork: bytes that are sent now to seconds until they arrive."""
        line = self._links.get((source, destination))
        if line is None:
            line = self._links[source, destination] = self._new_line(source, destination)
        return partial(self._delay, line)

    def delay(self, source: str, destination: str, size: int) -> float:
        """Seconds until a packet of `size` bytes that is sent now arrives."""
        return self.line(source, destination)(size)

    def _delay(self, line: _Line, size: int) -> float:
        now = asyncio.get_running_loop().time()
        self.packets += 1
        self.bytes += size
        self._trace.update(_SENT.pack(line.key, size, now))
        spec = self._spec
        if spec.bandwidth_mbps:
            line.free_at = max(now, line.free_at) + size * 8e-6 / spec.bandwidth_mbps
        else:
            line.free_at = now
        late = line.latency * (1 + spec.jitter * line.rng.random()) if line.rng else line.latency
        return line.free_at + late - now

    def _new_line(self, source: str, destination: str) -> _Line:
        pair = "/".join(sorted((source, destination)))  # both directions of a link are equally long
        latency = self._spec.latency_ms / 1000
        latency *= Random(f"{self._seed}/latency/{pair}").lognormvariate(0, self._spec.latency_spread)
        rng = Random(f"{self._seed}/jitter/{source}/{destination}") if self._spec.jitter else None
        return _Line(hashlib.blake2b(f"{source}/{destination}".encode(), digest_size=8).digest(), latency, rng)

    @property
    def trace(self) -> str:
        """A digest of who sent how much to whom and when."""
        return self._trace.hexdigest()


@dataclass(slots=True)
class _Line:
    """One direction of a link."""

    key: bytes  # stands for both ends in the trace
    latency: float  # seconds
    rng: Random | None  # for jitter; two kilobytes, so only where there is some
    free_at: float = 0.0  # when what was sent before has left
