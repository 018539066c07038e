"""Metrics of nodes on virtual time, as Prometheus' own parser reads them."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, get_args

import prometheus_client
import pytest
from prometheus_client.parser import text_string_to_metric_families

from p2pfl.app import metrics as subject
from p2pfl.app.metrics import CONTENT_TYPE, NodeMetrics
from p2pfl.app.progress import CourseProgress
from p2pfl.errors import RemoteError
from p2pfl.link.memory import MemoryNetwork
from p2pfl.node.events import Cause, PeerRefused, PeerUnreached, RoundEnded, RoundStarted, UpdateMissing
from p2pfl.node.lag import LoopLag
from p2pfl.node.node import Node
from tests.node.kit import Echo, Note, Ping, Stranger, linked, make, steps, until

Samples = dict[tuple[str, ...], float]


def scraped(metrics: NodeMetrics) -> Samples:
    """Values by name and values of labels."""
    families = text_string_to_metric_families(metrics.exposition().decode())
    return {(sample.name, *sample.labels.values()): sample.value for family in families for sample in family.samples}


def measured(node: Node, lag: LoopLag | None = None) -> NodeMetrics:
    progress = CourseProgress()
    node.observe(progress)
    return NodeMetrics(node, lag or LoopLag(), progress)


@asynccontextmanager
async def alone() -> AsyncIterator[tuple[Node, NodeMetrics]]:
    async with make(MemoryNetwork(), "a") as node:
        yield node, measured(node)


async def test_traffic_agrees_with_the_statistics_of_the_node() -> None:
    async with linked(far=(Echo(),)) as (a, b):
        await a.members.announce(seat=0)
        await b.members.announce(seat=1)
        here = measured(a)
        for n in range(5):
            await a.peer("b").ask(Ping(n))
        await a.peer("b").tell(Note(1))
        await steps()
        seen, counts = scraped(here), a.statistics()
        assert seen["p2pfl_sent_bytes_total",] == counts.bytes_sent > 0
        assert seen["p2pfl_received_bytes_total",] == counts.bytes_received > 0
        assert seen["p2pfl_sent_messages_total",] == counts.messages_sent
        assert seen["p2pfl_received_messages_total",] == counts.messages_received
        assert seen["p2pfl_peers",] == 1
        assert seen["p2pfl_seat",] == 0
        assert seen["p2pfl_peer_seat", "b"] == 1
        assert seen["p2pfl_peer_sent_bytes_total", "b"] == counts.bytes_sent  # there is no other peer
        assert seen["p2pfl_peer_received_bytes_total", "b"] == counts.bytes_received


async def test_the_round_trip_is_there_once_it_was_measured() -> None:
    async with linked() as (a, b):
        await b.members.announce(seat=1)
        here = measured(a)
        await until(lambda: a.peer("b").statistics().rtt_seconds is not None)
        assert scraped(here)["p2pfl_peer_rtt_seconds", "b"] == a.peer("b").statistics().rtt_seconds


async def test_failures_and_violations_are_counted_and_quarantine_is_a_state() -> None:
    network, echo = MemoryNetwork(), Echo()
    async with make(network, "a", echo) as a, make(network, "b", peers=["a"]) as b:
        here = measured(a)
        await b.linked()
        with pytest.raises(RemoteError):
            await b.peer("a").ask(Ping(-1))
        for _ in range(a.settings.strikes):
            stranger = await Stranger.dial(network, "villain", "a")
            stranger.send("nonsense", 0)
            await asyncio.sleep(1)
        seen = scraped(here)
        assert seen["p2pfl_handler_failures_total",] == 1
        assert seen["p2pfl_violations_total",] == a.settings.strikes
        assert seen["p2pfl_peers_quarantined",] == 1
        await asyncio.sleep(a.settings.quarantine_seconds)
        assert scraped(here)["p2pfl_peers_quarantined",] == 0
        assert scraped(here)["p2pfl_violations_total",] == a.settings.strikes


async def test_the_course() -> None:
    async with alone() as (node, metrics):
        assert scraped(metrics)["p2pfl_round",] == 0
        node.emit(RoundStarted(7, 10))
        await asyncio.sleep(2)
        node.emit(RoundEnded(7, 9, {"accuracy": 0.875, "loss": float("nan")}))
        seen = scraped(metrics)
        assert seen["p2pfl_round",] == 7
        assert seen["p2pfl_round_participants",] == 9
        assert seen["p2pfl_round_figure", "accuracy"] == 0.875
        assert seen["p2pfl_round_figure", "loss"] != seen["p2pfl_round_figure", "loss"]
        assert (seen["p2pfl_round_duration_seconds_count",], seen["p2pfl_round_duration_seconds_sum",]) == (1, 2)


async def test_what_happened_is_counted_from_zero() -> None:
    names = ("p2pfl_links_refused_total", "p2pfl_dials_failed_total", "p2pfl_peers_lost_total")
    async with linked() as (a, b):
        here = measured(a)
        assert [scraped(here)[name,] for name in names] == [0, 0, 0]
        a.emit(PeerRefused("203.0.113.9", "no"))
        a.emit(PeerUnreached("hub:1", "no", 1.0))
        await b.stop()
        await steps()
        assert [scraped(here)[name,] for name in names] == [1, 1, 1]


@pytest.mark.parametrize("cause", get_args(Cause))
async def test_missing_updates_are_counted_by_cause(cause: Cause) -> None:
    async with alone() as (node, metrics):
        node.emit(UpdateMissing(1, "north", "the bytes ended before the deadline", cause))
        seen = scraped(metrics)
        counted = {each: seen["p2pfl_updates_missing_total", each] for each in get_args(Cause)}
        assert counted.pop(cause) == 1
        assert set(counted.values()) == {0}


async def test_waits_are_told_without_names_and_numbers() -> None:
    async with alone() as (a, here):
        with a.waiting("the models of round 12"):
            await asyncio.sleep(30)
            with a.waiting("the models of round 13"):
                await asyncio.sleep(5)
                seen = scraped(here)
        assert seen["p2pfl_waiting_seconds", "the models of round N"] == pytest.approx(35)
        assert not [key for key in scraped(here) if key[0] == "p2pfl_waiting_seconds"]


async def test_labels_have_boundedly_many_values(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subject, "MOST_WORDS", 3)
    monkeypatch.setattr(subject, "MOST_PEERS", 2)
    network, seen = MemoryNetwork(), set()
    async with make(network, "hub", seat=0) as hub:
        here = measured(hub)
        for number, name in enumerate("abcde"):
            hub.emit(RoundEnded(number, 1, {name: 1.0}))
            async with make(network, name, peers=["hub"], seat=number + 1):
                await hub.meet([number + 1])
                with hub.waiting(f"word {name}"):
                    seen |= {key for key in scraped(here) if key[0] != "p2pfl_node_info" and len(key) > 1}
    by_name: dict[str, set[str]] = {}
    for name, label in seen:
        by_name.setdefault(name, set()).add(label)
    assert by_name["p2pfl_round_figure"] == {"a", "b", "c"}
    assert by_name["p2pfl_waiting_seconds"] == {"word a", "word b", "word c", "something else"}
    assert by_name["p2pfl_peer_sent_bytes_total"] == {"a", "b"}


async def test_who_has_no_seat_has_no_figures_of_its_own() -> None:
    async with linked() as (a, _):
        assert not [key for key in scraped(measured(a)) if key[0].startswith("p2pfl_peer_")]


async def test_the_lag_of_the_loop() -> None:
    async with make(MemoryNetwork(), "a") as node:
        with LoopLag() as lag:
            metrics = measured(node, lag)
            loop: Any = asyncio.get_running_loop()
            loop.advance(3.25)
            assert scraped(metrics)["p2pfl_event_loop_lag_seconds",] == 3


async def test_names_follow_the_conventions() -> None:
    async with alone() as (_, metrics):
        families = list(text_string_to_metric_families(metrics.exposition().decode()))
        assert CONTENT_TYPE.startswith("text/plain")
        for family in families:
            assert re.fullmatch(r"(p2pfl|process)_[a-z_]+", family.name)
            assert family.documentation
            assert family.type != "unknown"
            for sample in family.samples:
                assert sample.name.endswith("_total") is (family.type == "counter")
        assert {"process_resident_memory_bytes", "process_cpu_seconds"} <= {family.name for family in families}


async def test_nodes_have_registries_of_their_own() -> None:
    before = set(prometheus_client.REGISTRY._collector_to_names)
    async with linked() as (a, b):
        one, other = measured(a), measured(b)
        one_is, other_is = (next(key for key in scraped(each) if key[0] == "p2pfl_node_info") for each in (one, other))
        assert "a" in one_is
        assert "b" in other_is
        assert repr(one) == "<NodeMetrics of a>"
    assert set(prometheus_client.REGISTRY._collector_to_names) == before
