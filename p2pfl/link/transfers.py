"""What outlives a link of the large packets that were under way on it, so that they go on upon the next.

Of those that came in: the part that arrived, for two minutes, until the peer asks for it, and only in memory that
nothing else needs. Of those that went out: under which name they began, as long as somebody holds their buffers.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable
from typing import NamedTuple, Protocol

from p2pfl.errors import LinkError, LinkTruncated
from p2pfl.wire.transfer import Begun, Partial, TransferId

__all__ = ["KEPT_PER_PEER", "KEPT_SECONDS", "Carrier", "Transfers"]

KEPT_SECONDS = 120.0  # how long what came of a packet waits for the rest
KEPT_PER_PEER = 8  # packets
_REMEMBERED = 1024  # packets of ours that may go on, to any peer


class Carrier(Protocol):
    """A link, as far as it matters here."""

    remote: str

    def carries(self, transfer: TransferId) -> bool:
        """Whether a packet of that name is on its way in."""

    def abort(self, error: LinkError) -> None:
        """End at once, and report to `Transfers.ended`."""


class Timer(Protocol):
    """What `call_later` of an event loop gives."""

    def cancel(self) -> None: ...


class _Kept(NamedTuple):
    partial: Partial
    expiry: Timer


def _later(seconds: float, call: Callable[[], object]) -> Timer:
    return asyncio.get_running_loop().call_later(seconds, call)


class Transfers:
    """The unfinished transfers of one node, and its open links. `reserved` are the bytes of memory that are kept."""

    def __init__(self, call_later: Callable[[float, Callable[[], object]], Timer] = _later) -> None:
        self.reserved = 0
        self._call_later = call_later
        self._links: set[Carrier] = set()
        self._kept: dict[tuple[str, TransferId], _Kept] = {}  # by peer and name, the oldest first
        self._begun: deque[tuple[str, Begun]] = deque(maxlen=_REMEMBERED)

    def opened(self, link: Carrier) -> None:
        """A link has begun to deliver."""
        self._links.add(link)

    def ended(self, link: Carrier, partials: Iterable[tuple[TransferId, Partial]], begun: Iterable[Begun]) -> None:
        """A link has ended: keep what came of packets under way, and which of ours may have been."""
        self._links.discard(link)
        for transfer, partial in partials:
            self._keep(link.remote, transfer, partial)
        for entry in [entry for entry in self._begun if not entry[1].alive]:
            self._begun.remove(entry)
        self._begun.extend((link.remote, packet) for packet in begun)

    def begun_before(self, peer: str, buffers: tuple[memoryview, ...]) -> Begun | None:
        """The packet with these buffers that had begun to leave on a link to `peer` which has ended; told once."""
        for entry in self._begun:
            if entry[0] == peer and entry[1].has(buffers):
                self._begun.remove(entry)
                return entry[1]
        return None

    def take(self, link: Carrier, transfer: TransferId, sizes: tuple[int, ...]) -> Partial | None:
        """What came of a packet that the peer sends again on `link`: it is kept no longer.

        A peer goes on only with what was on a link that has ended. If that has not been noticed here, it is now.
        """
        for other in [other for other in self._links if other.remote == link.remote and other is not link]:
            if other.carries(transfer):
                other.abort(LinkTruncated("the other end goes on upon another link with what was under way on this"))
        partial = self._forget((link.remote, transfer))
        return partial if partial is not None and partial.sizes == sizes else None

    def make_way(self, most: float) -> None:
        """Keep at most so many bytes: those that have waited longest go."""
        while self._kept and self.reserved > most:
            self._forget(next(iter(self._kept)))

    def _keep(self, peer: str, transfer: TransferId, partial: Partial) -> None:
        key = peer, transfer
        known = self._forget(key)
        if known is not None and known.received > partial.received:
            partial = known
        of_peer = [other for other in self._kept if other[0] == peer]
        for oldest in of_peer[: max(0, len(of_peer) + 1 - KEPT_PER_PEER)]:
            self._forget(oldest)
        self._kept[key] = _Kept(partial, self._call_later(KEPT_SECONDS, lambda: self._forget(key)))
        self.reserved += sum(partial.sizes)

    def _forget(self, key: tuple[str, TransferId]) -> Partial | None:
        kept = self._kept.pop(key, None)
        if kept is None:
            return None
        kept.expiry.cancel()
        self.reserved -= sum(kept.partial.sizes)
        return kept.partial

    def __repr__(self) -> str:
        return f"<Transfers {len(self._kept)} kept, {self.reserved} B; {len(self._begun)} may go on>"
