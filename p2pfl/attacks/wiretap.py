"""A node that is honest, but curious: it plays its part as it should, and keeps what comes to it.

What it hears is what crosses its links in the true protocol, so an attack on it is an attack on the course as it runs.
"""

from __future__ import annotations

from typing import NamedTuple

from p2pfl.link.memory import MemoryLink
from p2pfl.wire.codec import decode, unpack
from p2pfl.wire.message import Message
from p2pfl.wire.packet import Packet

__all__ = ["Heard", "Wiretap"]


class Heard(NamedTuple):
    """A message as it came to the curious node."""

    sender: str
    """The peer id of who sent it."""
    message: Message


class Wiretap:
    """The `watch` of a MemoryNetwork: keeps the messages of some kinds that are sent to one peer.

    In a simulation: `world.memory.watch = Wiretap(world.peer_id(0), Update)` before it runs.
    """

    def __init__(self, peer_id: str, *kinds: type[Message]) -> None:
        self.heard: list[Heard] = []
        """In the order in which they were sent."""
        self._peer_id = peer_id
        self._kinds = {kind.tag: kind for kind in kinds}

    def __call__(self, link: MemoryLink, packet: Packet) -> None:
        """Take note of a packet on its way. Raises RemoteProtocolError for a message that is not of its kind."""
        if link.remote != self._peer_id:
            return
        _, _, content = unpack(packet)
        if (kind := self._kinds.get(content.tag)) is not None:
            self.heard.append(Heard(link.local, decode(kind, content)))

    def __repr__(self) -> str:
        return f"<Wiretap of {self._peer_id[:10]}: {len(self.heard)} messages>"
