"""What a node tells Prometheus: its state when it is asked, and counts of what has happened to it.

Names follow https://prometheus.io/docs/practices/naming/. Nothing that a peer chooses becomes a label, and of every
label there are boundedly many values in the life of a process: a database keeps each of them for months.
"""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from typing import get_args

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    InfoMetricFamily,
    Metric,
    SummaryMetricFamily,
)

from p2pfl.app.progress import CourseProgress
from p2pfl.node.events import Cause, Event, PeerLost, PeerMisbehaved, PeerRefused, PeerUnreached, UpdateMissing
from p2pfl.node.lag import LoopLag
from p2pfl.node.node import Node

__all__ = ["CONTENT_TYPE", "NodeMetrics"]

CONTENT_TYPE = CONTENT_TYPE_LATEST
MOST_PEERS = 100  # that have figures of their own; the others are in the totals
MOST_WORDS = 30  # of a kind that roles choose: figures of a round, things that are waited for

_HAPPENED: Mapping[type[Event], tuple[str, str]] = {
    PeerLost: ("p2pfl_peers_lost", "Peers whose last link ended."),
    PeerRefused: ("p2pfl_links_refused", "Links that others dialled and that were turned away."),
    PeerUnreached: ("p2pfl_dials_failed", "Addresses that were dialled in vain."),
}


class NodeMetrics:
    """The metrics of one node, in a registry of their own: other nodes, and whoever embeds this one, keep theirs.

    `exposition()` is the page; `registry` is for who adds to it, or has it scraped by other means.
    """

    def __init__(self, node: Node, lag: LoopLag, progress: CourseProgress) -> None:
        """Observes `node` from now on; `lag` is that of the loop it runs on."""
        self.registry = CollectorRegistry()
        self._node = node
        self._lag = lag
        self._progress = progress
        self._version = version("p2pfl-aio")
        self._happened: Counter[type[Event]] = Counter()
        self._missing: Counter[Cause] = Counter(dict.fromkeys(get_args(Cause), 0))
        self._suspects: set[str] = set()  # ids of those who may be in quarantine
        self._peers: dict[str, None] = {}
        self._figures: dict[str, None] = {}
        self._waits: dict[str, None] = {}
        ProcessCollector(registry=self.registry)
        self.registry.register(self)
        node.observe(self)

    def exposition(self) -> bytes:
        """All metrics in Prometheus' text format. Called on the node's event loop, as all of this."""
        return generate_latest(self.registry)

    # -- as an observer --------------------------------------------------------------------------------------------

    def push(self, event: Event) -> None:
        """Called by the node."""
        self._happened[type(event)] += 1
        if isinstance(event, UpdateMissing):
            self._missing[event.cause] += 1
        elif isinstance(event, PeerMisbehaved):
            self._suspects.add(event.peer)

    def finish(self) -> None:
        """Called by the node: nothing more will come."""

    # -- as a collector --------------------------------------------------------------------------------------------

    def collect(self) -> Iterator[Metric]:
        """Called by the registry for every scrape."""
        yield from self._of_node()
        yield from self._of_peers()
        yield from self._of_course()
        waiting = GaugeMetricFamily("p2pfl_waiting_seconds", "How long something has been waited for.", labels=["what"])
        for what, seconds in self._longest_waits().items():
            waiting.add_metric([what], seconds)
        yield waiting

    def _of_node(self) -> Iterator[Metric]:
        node, counts = self._node, self._node.statistics()
        about = {"peer_id": node.id, "name": node.name, "version": self._version}
        yield InfoMetricFamily("p2pfl_node", "Who this node is.", about)
        if node.seat is not None:
            yield _gauge("p2pfl_seat", "The node's place in the topology.", node.seat)
        yield _gauge("p2pfl_peers", "Peers that are linked.", counts.peers)
        yield _gauge("p2pfl_peers_quarantined", "Peers that are kept out for misbehaving.", self._quarantined())
        yield _counter("p2pfl_sent_messages", "Messages sent to peers.", counts.messages_sent)
        yield _counter("p2pfl_received_messages", "Messages received from peers.", counts.messages_received)
        yield _counter("p2pfl_sent_bytes", "Bytes sent to peers, as on the wire.", counts.bytes_sent)
        yield _counter("p2pfl_received_bytes", "Bytes received from peers, as on the wire.", counts.bytes_received)
        yield _counter("p2pfl_handler_failures", "Handlers of this node that raised.", counts.handler_failures)
        yield _counter("p2pfl_violations", "Messages of peers against the protocol.", counts.violations)
        for kind, (name, documentation) in _HAPPENED.items():
            yield _counter(name, documentation, self._happened[kind])
        yield _gauge(
            "p2pfl_event_loop_lag_seconds",
            f"The longest delay of a timer in the last {self._lag.window_seconds:g} s.",
            self._lag.longest(),
        )

    def _of_peers(self) -> Iterator[Metric]:
        seat = GaugeMetricFamily("p2pfl_peer_seat", "A linked peer's place in the topology.", labels=["peer"])
        sent = CounterMetricFamily("p2pfl_peer_sent_bytes", "Bytes sent to a peer.", labels=["peer"])
        received = CounterMetricFamily("p2pfl_peer_received_bytes", "Bytes received from a peer.", labels=["peer"])
        rtt = GaugeMetricFamily("p2pfl_peer_rtt_seconds", "Round trip of the last ping.", labels=["peer"])
        for peer in self._node.peers:
            if peer.seat is None or not _admitted(self._peers, peer.id, MOST_PEERS):
                continue
            counts = peer.statistics()
            seat.add_metric([peer.id], peer.seat)
            sent.add_metric([peer.id], counts.bytes_sent)
            received.add_metric([peer.id], counts.bytes_received)
            if counts.rtt_seconds is not None:
                rtt.add_metric([peer.id], counts.rtt_seconds)
        yield from (seat, sent, received, rtt)

    def _of_course(self) -> Iterator[Metric]:
        progress = self._progress
        yield _gauge("p2pfl_round", "The round that began last; 0 before the first.", progress.round)
        yield _gauge("p2pfl_round_participants", "Who took part in that round.", progress.participants)
        yield SummaryMetricFamily(
            "p2pfl_round_duration_seconds", "How long rounds took.", progress.rounds_ended, progress.seconds
        )
        figures = GaugeMetricFamily("p2pfl_round_figure", "A figure of the last round, by name.", labels=["figure"])
        for name, value in progress.figures.items():
            if _admitted(self._figures, name, MOST_WORDS):
                figures.add_metric([name], value)
        yield figures
        missing = CounterMetricFamily("p2pfl_updates_missing", "Updates that rounds did without.", labels=["cause"])
        for name, count in self._missing.items():
            missing.add_metric([name], count)
        yield missing

    def _quarantined(self) -> int:
        outside = {peer_id for peer_id in self._suspects if self._node.peer(peer_id).quarantine_seconds}
        self._suspects = outside  # the others come again with their next violation
        return len(outside)

    def _longest_waits(self) -> dict[str, float]:
        now = asyncio.get_running_loop().time()
        longest: dict[str, float] = {}
        for what, since in self._node.waits():
            words = re.sub(r"\d+", "N", what.partition(" from ")[0])
            words = words if _admitted(self._waits, words, MOST_WORDS) else "something else"
            longest[words] = max(longest.get(words, 0.0), now - since)
        return longest

    def __repr__(self) -> str:
        return f"<NodeMetrics of {self._node.name}>"


def _admitted(known: dict[str, None], label: str, most: int) -> bool:
    """Whether a value of a label is, or becomes, one of those that there may be."""
    if label not in known and len(known) < most:
        known[label] = None
    return label in known


def _gauge(name: str, documentation: str, value: float) -> Metric:
    return GaugeMetricFamily(name, documentation, value)


def _counter(name: str, documentation: str, value: float) -> Metric:
    return CounterMetricFamily(name, documentation, value)
