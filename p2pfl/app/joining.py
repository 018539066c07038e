"""How a node comes into a course that others have begun: it asks for the course, and for a seat.

Nothing here needs torch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from p2pfl.app.registrar import CourseText, FetchCourse, Join
from p2pfl.errors import ConfigError, LinkClosed, LinkError, RemoteError, RemoteUnready
from p2pfl.node.node import Node
from p2pfl.node.peer import Peer

__all__ = ["agreed_hash", "fetch_course", "take_seat"]


def agreed_hash(course: Mapping[str, Any]) -> str:
    """What all nodes of a course, as nested tables, must agree on, as 32 hex digits.

    Not in it: what is only simulated, and where a host keeps its own files.
    """
    agreed = {name: table for name, table in course.items() if name not in ("network", "devices", "availability")}
    if any(mark in agreed["data"]["source"] for mark in "/.{"):
        agreed["data"] = {**agreed["data"], "source": "local files"}
    encoded = msgspec.json.encode(agreed, order="sorted")
    return hashlib.blake2b(encoded, digest_size=16, person=b"p2pfl-course").hexdigest()


async def fetch_course(node: Node, say: Callable[[str], None]) -> CourseText:
    """The course, from the first peer that gives it. `say`: takes a line for each that does not."""
    with node.waiting("a peer that has the course"):
        while True:
            looked = node.changes
            for peer in node.peers:
                try:
                    return await peer.ask(FetchCourse())
                except (RemoteError, LinkError) as error:
                    say(f"{peer.name} does not give the course: {error}")
            await node.change(looked)


async def take_seat(node: Node, registrar: str, wish: Join) -> int:
    """A seat, from the node with the peer id `registrar`; it may be restarted meanwhile. Raises ConfigError if it gives
    none, LinkClosed if it says goodbye.
    """
    while True:
        peer, looked = await _linked(node, registrar), node.changes
        try:
            seated = await peer.ask(wish)
            break
        except LinkClosed:
            raise
        except LinkError:
            continue  # who has been given a seat already is given the same
        except RemoteUnready:
            await node.change(looked)  # it tells of its seat once it gives others
    if seated.seat is None:
        raise ConfigError(seated.refusal)
    return seated.seat


async def _linked(node: Node, peer_id: str) -> Peer:
    with node.waiting("a link to the node that gives the seats"):
        while not node.peer(peer_id).connected:
            member = node.members.get(peer_id)
            if member is not None and member.seat is not None:
                node.want([member.seat])
            await node.change()
    return node.peer(peer_id)
