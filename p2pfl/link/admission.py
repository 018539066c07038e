"""How many strangers may knock: bounds on handshakes under way and on their rate, per host and over all.

No I/O and no clock of its own. A host is refused before it costs more than the parsing of one HTTP request.
"""

from __future__ import annotations

import ipaddress
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http import HTTPStatus

from p2pfl.link.base import LinkLimits

__all__ = ["Doorkeeper", "TokenBucket", "Turned"]

MAX_BUCKETS = 4096  # hosts whose rate is remembered


class TokenBucket:
    """Allows `burst` at once and `rate` a second in the long run."""

    __slots__ = ("_burst", "_rate", "_since", "_tokens")

    def __init__(self, burst: float, rate: float, now: float) -> None:
        self._burst = burst
        self._rate = rate
        self._tokens = burst
        self._since = now

    def take(self, now: float) -> bool:
        """Take a token; False if there is none."""
        self._refill(now)
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True

    def full(self, now: float) -> bool:
        """Whether it is as good as new."""
        self._refill(now)
        return self._tokens >= self._burst

    def _refill(self, now: float) -> None:
        self._tokens = min(self._burst, self._tokens + (now - self._since) * self._rate)
        self._since = now


class Turned(Exception):
    """A host that is turned away, with the HTTP status that says why."""

    def __init__(self, status: HTTPStatus) -> None:
        super().__init__(status.phrase)
        self.status = status


class Doorkeeper:
    """Counts the handshakes under way and rates the hosts that begin them."""

    def __init__(self, limits: LinkLimits, clock: Callable[[], float]) -> None:
        self._limits = limits
        self._clock = clock
        self._half_open: Counter[str] = Counter()
        self._buckets: dict[str, TokenBucket] = {}

    @contextmanager
    def half_open(self, host: str, established: int) -> Iterator[None]:
        """Hold a place for one handshake. Raises Turned: 503 if the house is full, 429 if the host comes too often."""
        limits = self._limits
        host, loopback = _neighbourhood(host)
        exempt = limits.loopback_exempt and loopback
        waiting = self._half_open.total()
        if waiting >= limits.half_open or waiting + established >= limits.links:
            raise Turned(HTTPStatus.SERVICE_UNAVAILABLE)
        if not exempt:
            if self._half_open[host] >= limits.half_open_per_host:
                raise Turned(HTTPStatus.SERVICE_UNAVAILABLE)
            if not self._bucket(host).take(self._clock()):
                raise Turned(HTTPStatus.TOO_MANY_REQUESTS)
        self._half_open[host] += 1
        try:
            yield
        finally:
            self._half_open[host] -= 1
            self._half_open += Counter()  # forgets the hosts at zero

    def _bucket(self, host: str) -> TokenBucket:
        now = self._clock()
        if host not in self._buckets and len(self._buckets) >= MAX_BUCKETS:
            self._buckets = {name: bucket for name, bucket in self._buckets.items() if not bucket.full(now)}
            while len(self._buckets) >= MAX_BUCKETS:  # many hosts at once: forget who came first
                del self._buckets[next(iter(self._buckets))]
        new = TokenBucket(self._limits.handshakes_burst, self._limits.handshakes_per_second, now)
        return self._buckets.setdefault(host, new)


def _neighbourhood(host: str) -> tuple[str, bool]:
    """What counts as one host, and whether it is this one. Who has one IPv6 address mostly has all of its /64."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host, host == ""  # the peer of a Unix socket has no address
    if address.version == 6 and not address.is_loopback:
        if address.ipv4_mapped is not None:
            return _neighbourhood(str(address.ipv4_mapped))
        return str(ipaddress.ip_network((address.packed, 64), strict=False)), False
    return host, address.is_loopback
