"""Events as people read them, and streams of them for listeners that may be slow."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from p2pfl.errors import ComputeError, LinkTruncated, RemoteError, RemoteProtocolError
from p2pfl.link.memory import MemoryNetwork
from p2pfl.node import events
from p2pfl.node.events import EventStream, Listening, PeerJoined, RoundEnded, Waiting
from tests.node.kit import make

PEER = "0123456789abcdef"
SENTENCES = {
    events.Listening(("a:1", "b:2")): "listening on a:1, b:2",
    events.PeerJoined(PEER): "0123456789 joined",
    events.PeerLost(PEER, "it said goodbye"): "0123456789 is gone: it said goodbye",
    events.PeerUnreached("a:1", "refused", 1.25): "no link to a:1: refused (next try in 1.2 s)",
    events.PeerRefused("1.2.3.4", "garbage"): "turned 1.2.3.4 away: garbage",
    events.PeerMisbehaved(PEER, "lies"): "0123456789 broke the protocol: lies",
    events.HandlerFailed(PEER, "Train", "ValueError: no"): "Train of 0123456789 failed here: ValueError: no",
    events.Waiting("rain", 12.3): "waiting for rain (12 s)",
    events.RoundStarted(3, 5): "round 3 started with 5",
    events.UpdateMissing(3, "bob", "it is late", "late"): "round 3 goes on without bob: it is late",
    events.CourseEnded(9, "all done"): "the course ended after round 9: all done",
}


@pytest.mark.parametrize("event", SENTENCES, ids=lambda event: type(event).__name__)
def test_each_is_one_line_for_people(event: events.Event) -> None:
    assert str(event) == SENTENCES[event]


@pytest.mark.parametrize(
    ("error", "cause", "reason"),
    [
        (TimeoutError(), "late", "no answer in time"),
        (TimeoutError("the deadline"), "late", "the deadline"),
        (LinkTruncated("cut"), "lost", "cut"),
        (RemoteProtocolError("NaN"), "unusable", "NaN"),
        (ValueError("the weight"), "unusable", "the weight"),
        (RemoteError("bob", "Train", "no"), "failed", "bob failed at Train: no"),
        (ComputeError("no memory"), "failed", "no memory"),
    ],
)
def test_an_error_says_why_an_update_is_missing(error: Exception, cause: events.Cause, reason: str) -> None:
    assert events.UpdateMissing.because(3, "bob", error) == events.UpdateMissing(3, "bob", reason, cause)


def test_metrics_are_shown() -> None:
    assert str(RoundEnded(1, 2, {"loss": 0.5})) == "round 1 ended with 2  loss 0.5000"
    assert str(RoundEnded(1, 2)) == "round 1 ended with 2"


def nobody(_: object) -> None:
    """Whoever leaves a stream that belongs to no node."""


async def test_a_slow_listener_misses_the_oldest() -> None:
    stream = EventStream(nobody, size=3)
    for n in range(10):
        stream.push(Waiting("", n))
    assert stream.missed == 7
    stream.finish()
    assert [event.seconds async for event in stream if isinstance(event, Waiting)] == [7, 8, 9]


async def test_a_listener_is_woken_and_sees_the_end() -> None:
    stream, seen = EventStream(nobody), []

    async def listen() -> None:
        async for event in stream:
            seen.append(event)

    async with asyncio.TaskGroup() as group:
        group.create_task(listen())
        for n in range(3):
            await asyncio.sleep(1)
            stream.push(Waiting("", n))
        await asyncio.sleep(1)
        assert len(seen) == 3
        stream.finish()


async def test_the_streams_of_a_node() -> None:
    node = make(MemoryNetwork(), "a")
    with node.events() as early:
        async with node:
            with node.events() as late:
                node.emit(PeerJoined(PEER))
            node.emit(PeerJoined("after"))
        assert [type(event) for event in [event async for event in early]] == [Listening, PeerJoined, PeerJoined]
        assert [event async for event in late] == [PeerJoined(PEER)]
    with late:  # to leave twice does no harm
        pass


async def test_a_listener_that_is_cancelled_can_listen_again() -> None:
    stream = EventStream(nobody)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(1):
            await anext(stream)
    stream.push(Waiting("", 1))
    assert await anext(stream) == Waiting("", 1)


async def test_an_observer_may_come_and_go_while_events_are_told() -> None:
    node = make(MemoryNetwork(), "a")
    streams: list[Any] = []

    class Curious:
        def push(self, event: events.Event) -> None:
            streams.append(node.events())

        def finish(self) -> None:
            streams.clear()

    node.observe(Curious())
    async with node:
        node.emit(Waiting("", 1))
        assert len(streams) == 2
    assert not streams
