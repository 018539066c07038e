"""The peers that a node knows by id, and the counts of those that it has forgotten."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from p2pfl.errors import LinkRefused
from p2pfl.link.base import Link, LinkStatistics
from p2pfl.node.events import PeerRefused
from p2pfl.node.peer import Peer
from p2pfl.node.statistics import summed

if TYPE_CHECKING:
    from p2pfl.node.node import Node

__all__ = ["Peers"]


class Peers:
    """All peers that there have been, linked or not, but for those that were forgotten."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._known: dict[str, Peer] = {}
        self._past = LinkStatistics()  # of those that were forgotten

    def of(self, peer_id: str) -> Peer:
        """The peer of that id; it is made if it is new."""
        if peer_id not in self._known:
            self._known[peer_id] = Peer(self._node, peer_id)
        return self._known[peer_id]

    def at(self, seat: int) -> Peer | None:
        """The peer in that seat, if there is one."""
        member = self._node.members.at(seat)
        return None if member is None else self._known.get(member.id)

    def take(self, link: Link, refusal: str = "") -> None:
        """Give a link that a transport has made to its peer; end it at once where there is cause to refuse it."""
        try:
            if refusal:
                raise LinkRefused(refusal)
            if self._node.relay.superfluous(link):
                raise LinkRefused("there is a link that needs nobody between")
            self.of(link.remote).attach(link)
        except LinkRefused as error:
            link.abort(error)
            self._node.emit(PeerRefused(link.remote, str(error)))

    def __iter__(self) -> Iterator[Peer]:
        return iter(self._known.values())

    @property
    def linked(self) -> list[Peer]:
        """Those with a link, by seat, then by id."""
        linked = (peer for peer in self._known.values() if peer.connected)
        return sorted(linked, key=lambda peer: (peer.seat is None, peer.seat, peer.id))

    def counts(self) -> LinkStatistics:
        """What went over the links of all."""
        return summed((self._past, *(peer.counts() for peer in self._known.values())))

    def forget(self, peer: Peer) -> None:
        """Keep nothing of a peer but its counts. One that has a link stays, and one that has misbehaved of late."""
        if peer.forgettable and self._known.pop(peer.id, None) is not None:
            self._past = summed((self._past, peer.counts()))

    def __repr__(self) -> str:
        return f"<Peers: {len(self._known)} known, {len(self.linked)} linked>"
