"""Nodes that only dial out, on virtual time: links in memory, and sealed links through tunnels upon them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from p2pfl.crypto.identity import Identity
from p2pfl.link.handshaking import TunnelLink, greet, return_greeting
from p2pfl.link.memory import MemoryNetwork, MemoryTransport
from p2pfl.link.secure import SecuritySettings
from p2pfl.link.trust import Open
from p2pfl.node.node import Node
from p2pfl.node.relay import Relay
from tests.node.kit import until

# ids in this order: of two, the smaller dials
X, Y, Z, HUB, BACKUP = sorted(
    (Identity.from_seed(bytes([n]) * 32) for n in range(5)), key=lambda identity: identity.peer_id
)


class Tunnelled(MemoryTransport):
    """Links in memory, and sealed ones through tunnels."""

    def __init__(self, network: MemoryNetwork, identity: Identity) -> None:
        super().__init__(network, identity.peer_id)
        self._security = SecuritySettings(identity=identity, trust=Open())

    async def dial_over(self, socket: Any, relay: str, expect: str) -> TunnelLink:
        limits = self.network.limits
        return TunnelLink(socket, relay, await greet(socket, self._security, limits, expect), limits)

    async def answer_over(self, socket: Any, relay: str, expect: str) -> TunnelLink:
        limits = self.network.limits
        return TunnelLink(socket, relay, await return_greeting(socket, self._security, limits, expect), limits)


def place(network: MemoryNetwork, identity: Identity, *roles: object, **options: Any) -> Node:
    """A node that only dials out, unless it is told where to listen."""
    return Node(*roles, transport=Tunnelled(network, identity), **options)


@asynccontextmanager
async def apart(
    network: MemoryNetwork, *hubs: Node, x: tuple[object, ...] = (), y: tuple[object, ...] = (), **options: Any
) -> AsyncIterator[tuple[Node, Node]]:
    """Nodes x and y, in seats 1 and 2, which only dial out to the hubs, and are linked to them."""
    async with AsyncExitStack() as stack:
        for hub in hubs:
            await stack.enter_async_context(hub)
        peers = [hub.id for hub in hubs]
        a = await stack.enter_async_context(place(network, X, *x, peers=peers, seat=1, **options))
        b = await stack.enter_async_context(place(network, Y, *y, peers=peers, seat=2, **options))
        await until(lambda: all(hub.peer(node.id).connected for hub in hubs for node in (a, b)))
        await until(lambda: a.members.at(2) and b.members.at(1))
        yield a, b


def hub(network: MemoryNetwork, identity: Identity = HUB, *roles: object, **options: Any) -> Node:
    """A node to which others dial. It makes no links through tunnels itself: to carry them needs nothing."""
    return Node(
        *roles,
        transport=network.transport(identity.peer_id),
        listen=identity.peer_id,
        seat=options.pop("seat", 0),
        **options,
    )


def carrier(node: Node, peer: Node) -> str | None:
    """Who carries the link of a node to another."""
    link = node.peer(peer.id).connection().link
    return link.relay or None


def relays(*nodes: Node) -> list[Relay]:
    return [node.relay for node in nodes]


class Marked:
    """Looks for a marker in whatever one node passes on."""

    def __init__(self, network: MemoryNetwork, marker: bytes) -> None:
        self.bytes = 0
        self.seen = False
        self._marker = marker
        network.watch = self._look

    def _look(self, link: Any, packet: Any) -> None:
        whole = packet.head + b"".join(bytes(buffer) for buffer in packet.buffers)
        self.bytes += len(whole)
        self.seen |= self._marker in whole


async def settled() -> None:
    """Long enough for retired links to close, and for lost ones to be dialled again."""
    await asyncio.sleep(40)
