"""Passing membership records on. No handler waits for it: nodes could wait for each other's handlers for ever."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from contextlib import suppress
from itertools import islice
from typing import TYPE_CHECKING

from p2pfl.errors import LinkError
from p2pfl.node.membership import MOST_RECORDS, Roster
from p2pfl.wire.codec import encode

if TYPE_CHECKING:
    from p2pfl.node.node import Node
    from p2pfl.node.peer import Peer

__all__ = ["Gossip"]


class Gossip:
    """Whose records each peer has yet to be told. A peer that is behind is told the newest of each, once."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._due: dict[Peer, dict[str, None]] = {}

    def greet(self, peer: Peer) -> None:
        """Tell a peer that has just been linked all that is known."""
        self._pass_on(self._node.members.greeting(), (peer,))

    def spread(self, ids: Collection[str], source: Peer | None) -> None:
        """Tell all peers but one the records of these nodes."""
        self._pass_on(ids, [peer for peer in self._node.peers if peer is not source])

    def _pass_on(self, ids: Collection[str], peers: Iterable[Peer]) -> None:
        for peer in peers if ids else ():
            due = self._due.get(peer)
            if due is None:
                due = self._due[peer] = {}
                self._node.spawn(self._deliver(peer, due))
            due.update(dict.fromkeys(ids))

    async def _deliver(self, peer: Peer, due: dict[str, None]) -> None:
        members = self._node.members
        try:
            with suppress(LinkError):  # it is told everything when it is linked again
                while due:
                    connection = await peer.room_to_tell()
                    batch = list(islice(due, MOST_RECORDS))
                    for peer_id in batch:
                        del due[peer_id]
                    records = [member for peer_id in batch if (member := members.get(peer_id))]
                    connection.tell(encode(Roster(records)))
                    await connection.link.drain()
        finally:
            del self._due[peer]
