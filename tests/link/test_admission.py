"""Token buckets and half-open counts, on a clock of our own."""

from __future__ import annotations

from contextlib import ExitStack
from http import HTTPStatus

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pfl.link.admission import MAX_BUCKETS, Doorkeeper, TokenBucket, Turned
from p2pfl.link.base import LinkLimits


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def knock(doors: Doorkeeper, host: str, established: int = 0) -> HTTPStatus | None:
    try:
        with doors.half_open(host, established):
            return None
    except Turned as turned:
        return turned.status


@given(st.lists(st.floats(0, 5), max_size=60), st.integers(1, 5), st.floats(0.1, 3))
def test_a_bucket_gives_burst_and_then_its_rate(pauses: list[float], burst: int, rate: float) -> None:
    bucket, now, given_out = TokenBucket(burst, rate, 0.0), 0.0, 0
    for pause in pauses:
        now += pause
        given_out += bucket.take(now)
        assert given_out <= burst + rate * now + 1e-9
    assert bucket.take(now + 1 / rate + 1e-6), "a token comes back in time"


def test_bursts_are_told_to_come_later() -> None:
    clock = Clock()
    doors = Doorkeeper(LinkLimits(), clock)
    assert [knock(doors, "192.0.2.1") for _ in range(11)] == [None] * 10 + [HTTPStatus.TOO_MANY_REQUESTS]
    assert knock(doors, "192.0.2.2") is None, "another host has its own bucket"
    clock.now += 1.0
    assert [knock(doors, "192.0.2.1") for _ in range(2)] == [None, HTTPStatus.TOO_MANY_REQUESTS]


def test_handshakes_under_way_per_host_and_over_all() -> None:
    doors = Doorkeeper(LinkLimits(handshakes_burst=1000), Clock())
    with ExitStack() as under_way:
        for _ in range(8):
            under_way.enter_context(doors.half_open("192.0.2.1", 0))
        assert knock(doors, "192.0.2.1") is HTTPStatus.SERVICE_UNAVAILABLE
        for n in range(56):
            under_way.enter_context(doors.half_open(f"198.51.100.{n}", 0))
        assert knock(doors, "203.0.113.1") is HTTPStatus.SERVICE_UNAVAILABLE
        assert knock(doors, "127.0.0.1") is HTTPStatus.SERVICE_UNAVAILABLE, "the total counts for all"
    assert knock(doors, "192.0.2.1") is None, "places come back"


def test_a_full_house() -> None:
    doors = Doorkeeper(LinkLimits(links=3), Clock())
    assert knock(doors, "127.0.0.1", established=2) is None
    assert knock(doors, "127.0.0.1", established=3) is HTTPStatus.SERVICE_UNAVAILABLE
    with doors.half_open("127.0.0.1", 2):
        assert knock(doors, "127.0.0.1", established=2) is HTTPStatus.SERVICE_UNAVAILABLE


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "::ffff:127.0.0.1", ""])
def test_loopback_is_exempt_unless_switched_off(host: str) -> None:
    assert {knock(Doorkeeper(LinkLimits(), Clock()), host) for _ in range(50)} == {None}
    strict = Doorkeeper(LinkLimits(loopback_exempt=False), Clock())
    assert [knock(strict, host) for _ in range(11)][-1] is HTTPStatus.TOO_MANY_REQUESTS


def test_an_ipv6_network_is_one_host() -> None:
    doors = Doorkeeper(LinkLimits(), Clock())
    assert [knock(doors, f"2001:db8::{n}") for n in range(1, 12)][-1] is HTTPStatus.TOO_MANY_REQUESTS
    assert knock(doors, "2001:db8:0:1::1") is None
    assert knock(doors, "::ffff:192.0.2.1") is None
    assert [knock(doors, "192.0.2.1") for _ in range(10)][-1] is HTTPStatus.TOO_MANY_REQUESTS


def test_many_hosts_cost_bounded_memory() -> None:
    clock = Clock()
    doors = Doorkeeper(LinkLimits(), clock)
    for n in range(MAX_BUCKETS + 500):
        assert knock(doors, f"host {n}") is None
    assert len(doors._buckets) == MAX_BUCKETS
    clock.now += 60.0
    assert knock(doors, "one more") is None
    assert len(doors._buckets) == 1, "full buckets are forgotten first"
