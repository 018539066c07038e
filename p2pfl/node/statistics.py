"""Counts of what went over the links of one peer, and of all peers of a node."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

from p2pfl.link.base import LinkStatistics

__all__ = ["NodeStatistics", "PeerStatistics", "summed"]


@dataclass(frozen=True, slots=True)
class PeerStatistics:
    """Counts over all links that there have been with a peer; bytes as they crossed the wire."""

    messages_sent: int
    messages_received: int
    bytes_sent: int
    bytes_received: int
    rtt_seconds: float | None  # of the last ping, over the link that is up

    @classmethod
    def of(cls, counts: LinkStatistics, rtt_seconds: float | None) -> Self:
        """With the counts of all its links."""
        return cls(counts.packets_sent, counts.packets_received, counts.bytes_sent, counts.bytes_received, rtt_seconds)


@dataclass(frozen=True, slots=True)
class NodeStatistics:
    """Counts since the node was made; bytes as they crossed the wire."""

    peers: int
    messages_sent: int
    messages_received: int
    bytes_sent: int
    bytes_received: int
    handler_failures: int
    violations: int

    @classmethod
    def of(cls, counts: LinkStatistics, peers: int, handler_failures: int, violations: int) -> Self:
        """With the counts of all links."""
        sums = (counts.packets_sent, counts.packets_received, counts.bytes_sent, counts.bytes_received)
        return cls(peers, *sums, handler_failures, violations)


def summed(links: Iterable[LinkStatistics]) -> LinkStatistics:
    """The counts of several links together."""
    total = LinkStatistics()
    for link in links:
        total.packets_sent += link.packets_sent
        total.packets_received += link.packets_received
        total.bytes_sent += link.bytes_sent
        total.bytes_received += link.bytes_received
    return total
