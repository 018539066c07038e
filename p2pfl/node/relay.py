"""Links between nodes that only dial out, through a node that is linked to both; and to be such a node.

    dialler                    relay                      the other end
    OpenTunnel  ------------>  OfferTunnel  ----------->
                <------------  Tunnel       <-----------  TunnelAnswer
    Cargo       <----------->  Cargo        <---------->  Cargo: first the handshake, then sealed records
    TunnelEnded <----------->  TunnelEnded  <---------->  TunnelEnded

What is carried is told, and handled the moment it comes: it takes no task, and no place that an ask of a course needs.
Handshake and records are those of any other link, so that who carries sees sizes, and nothing else.
"""

from __future__ import annotations

import asyncio
import itertools
import random
from contextlib import suppress
from functools import cached_property
from typing import TYPE_CHECKING

from p2pfl.errors import LinkError, LinkTruncated, P2pflError, PeerUnreachable, RemoteError
from p2pfl.link.base import CloseCode, Link, Tunnelling, error_of_close
from p2pfl.link.tunnel import MAX_CARRIED, MOST_WINDOW, TunnelSocket
from p2pfl.node.carriage import Cargo, RoomMade, Route, TunnelEnded, straight, wrapped
from p2pfl.node.dispatch import Dispatch
from p2pfl.node.events import PeerRefused
from p2pfl.wire.codec import Incoming, decode, encode, unpack
from p2pfl.wire.frame import OversizeError
from p2pfl.wire.message import Message, Request
from p2pfl.wire.packet import Packet

if TYPE_CHECKING:
    from p2pfl.node.node import Node
    from p2pfl.node.peer import Peer

__all__ = ["OfferTunnel", "OpenTunnel", "Relay", "RelayDispatch", "Tunnel", "TunnelAnswer"]

MOST_RELAYS = 5  # that are tried in turn
_SCHEME = "relay:"  # of an address: relay:<peer id of who carries>/<peer id of who is dialled>
_CLOSE_SECONDS = 1.0  # how long the end of a tunnel waits to be told


class Tunnel(Message, tag="relay/tunnel"):
    """A tunnel that is open, or why there is none."""

    number: int = 0
    window: int = 0  # bytes that an end may have under way
    refusal: str = ""


class OpenTunnel(Request[Tunnel], tag="relay/open"):
    """To who carries: a tunnel to another of its peers."""

    target: str


class TunnelAnswer(Message, tag="relay/answer"):
    """Whether an end takes a tunnel: it does unless it refuses."""

    refusal: str = ""


class OfferTunnel(Request[TunnelAnswer], tag="relay/offer"):
    """From who carries: a tunnel, opened by another of its peers."""

    tunnel: int
    window: int
    source: str


class RelayDispatch(Dispatch):
    """The handlers of a node. What tunnels carry is bounded by itself: it is no tensor that a course agrees on."""

    def admit(self, head: bytes, sizes: tuple[int, ...]) -> bool:
        """See Dispatch."""
        if unpack(Packet(head))[2].tag != Cargo.tag:
            return super().admit(head, sizes)
        if len(sizes) != 1 or sizes[0] > MAX_CARRIED:
            raise OversizeError(f"a tunnel carries one buffer of at most {MAX_CARRIED} bytes at a time")
        return False

    def overtakes(self, content: Incoming) -> bool:
        """See Dispatch. What is in tunnels is none of the business of handlers that are at work."""
        return content.tag in (Cargo.tag, RoomMade.tag, TunnelEnded.tag)

    def checked(self, kind: type[Message], content: Incoming) -> Message:
        """See Dispatch."""
        if kind is Cargo and content.tag == Cargo.tag:
            return decode(kind, content)
        return super().checked(kind, content)


class Relay:
    """A role that every node plays: it carries for others, and reaches and is reached through them."""

    addresses: tuple[str, ...] = ()  # of the door that it is; see Listener

    def __init__(self, node: Node) -> None:
        self.routes: dict[int, Route] = {}  # that we carry, by number
        self.ends: dict[tuple[str, int], TunnelSocket] = {}  # that are ours, by who carries and its number
        self._node = node
        self._numbers = itertools.count(1)
        self._closed = False

    @cached_property
    def _rng(self) -> random.Random:
        """Of two kilobytes, so only for a node that dials."""
        return random.Random(f"relay {self._node.id}")

    # -- to reach others -------------------------------------------------------------------------------------------

    def ways(self, peer_id: str) -> list[str]:
        """Addresses to dial a peer at, over peers that may be linked to it; first those that listen: others come there.

        None for a node whose transport makes no links through tunnels.
        """
        if not isinstance(self._node.transport, Tunnelling):
            return []
        linked = [peer for peer in self._node.peers if peer.id != peer_id and _is_straight(peer)]
        self._rng.shuffle(linked)
        linked.sort(key=self._only_dials)
        return [f"{_SCHEME}{peer.id}/{peer_id}" for peer in linked[:MOST_RELAYS]]

    async def dial(self, address: str, expect: str | None = None) -> Link:
        """Link to a peer at an address of its own, or at one of its `ways`: see Transport for what this raises."""
        node = self._node
        if not address.startswith(_SCHEME):
            return await node.transport.dial(address, expect)
        relay_id, _, peer_id = address.removeprefix(_SCHEME).partition("/")
        relay = self._linked(relay_id)
        if relay is None or not isinstance(node.transport, Tunnelling) or expect not in (None, peer_id):
            raise PeerUnreachable(f"{address} leads nowhere from here: link to {relay_id[:10]} first")
        try:
            async with asyncio.timeout(node.settings.tunnel_seconds):
                tunnel = await relay.ask(OpenTunnel(peer_id))
        except TimeoutError as error:
            raise PeerUnreachable(f"{relay.label} opened no tunnel in time: try again later") from error
        except RemoteError as error:
            raise PeerUnreachable(f"{error}: upgrade p2pfl there, or link to another node that carries") from error
        if tunnel.refusal or not 0 < tunnel.window <= MOST_WINDOW or (relay_id, tunnel.number) in self.ends:
            why = tunnel.refusal[:200] or "it offers a tunnel that cannot be"
            raise PeerUnreachable(
                f"{relay.label} opens no tunnel: {why}: let one of the two ends listen, or link both to one that does"
            )
        return await node.transport.dial_over(self._end_of(relay, tunnel.number, tunnel.window), relay_id, peer_id)

    # -- to be reached ---------------------------------------------------------------------------------------------

    @OfferTunnel.handler
    async def offered(self, offer: OfferTunnel, peer: Peer) -> TunnelAnswer:
        """Somebody wants to reach us through a peer."""
        refusal = self._why_not_take(offer, peer)
        if not refusal:
            self._node.spawn(self._answer(self._end_of(peer, offer.tunnel, offer.window), peer.id, offer.source))
        return TunnelAnswer(refusal)

    def _why_not_take(self, offer: OfferTunnel, peer: Peer) -> str:
        source = self._linked(offer.source)
        if self._closed or not isinstance(self._node.transport, Tunnelling):
            return "it takes no tunnels"
        if not _is_straight(peer):
            return "there are no tunnels in tunnels"
        if source is not None and _is_straight(source):
            return "it is linked to you already"
        if sum(relay == peer.id for relay, _ in self.ends) >= self._node.settings.tunnels_per_peer:
            return "it has too many tunnels"
        if not 0 < offer.window <= MOST_WINDOW or (peer.id, offer.tunnel) in self.ends:
            return "it was offered a tunnel that cannot be"
        return ""

    async def _answer(self, socket: TunnelSocket, relay: str, source: str) -> None:
        transport = self._node.transport
        assert isinstance(transport, Tunnelling)
        try:
            self._node.accept(await transport.answer_over(socket, relay, source))
        except LinkError as error:
            self._node.emit(PeerRefused(f"{_SCHEME}{relay}/{source}", str(error)))

    # -- to carry --------------------------------------------------------------------------------------------------

    @OpenTunnel.handler
    async def open(self, ask: OpenTunnel, peer: Peer) -> Tunnel:
        """A peer wants to reach another of our peers."""
        target = self._linked(ask.target)
        refusal = self._why_not_carry(peer, target)
        if refusal or target is None:
            return Tunnel(refusal=refusal)
        number, window = next(self._numbers), self._node.settings.tunnel_bytes
        route = Route(self._node, number, (peer, target), window, lambda number: self.routes.pop(number, None))
        self.routes[number] = route  # it takes its place while the other end is asked
        try:
            refusal = await self._offer(OfferTunnel(number, window, peer.id), target)
        except asyncio.CancelledError:
            refusal = "it was given up"
            raise
        finally:
            if refusal:
                route.end(peer, CloseCode.GONE)
        return Tunnel(number, window) if route.open else Tunnel(refusal=refusal or "an end has left it")

    def _why_not_carry(self, peer: Peer, target: Peer | None) -> str:
        settings = self._node.settings
        if self._closed or not settings.relay:
            return "it does not carry for others"
        if target is None or target is peer:
            return "it is not linked to the other end"
        if not _is_straight(peer) or not _is_straight(target):
            return "there are no tunnels in tunnels"
        most_of_one = max(sum(end in route.ends for route in self.routes.values()) for end in (peer, target))
        if len(self.routes) >= settings.tunnels or most_of_one >= settings.tunnels_per_peer:
            return "it carries too many tunnels"
        return ""

    async def _offer(self, offer: OfferTunnel, target: Peer) -> str:
        """Why the other end does not take it."""
        try:
            async with asyncio.timeout(self._node.settings.tunnel_seconds):
                return (await target.ask(offer)).refusal[:200]
        except TimeoutError:
            return "the other end did not answer in time"
        except P2pflError as error:
            return str(error)

    # -- what comes through tunnels --------------------------------------------------------------------------------

    @Cargo.handler
    def cargo(self, cargo: Cargo, peer: Peer) -> None:
        """A message for an end of ours, or to be carried. There may be no such tunnel any more."""
        if not cargo.onward:
            if (route := self._route(cargo.tunnel, peer)) is not None:
                route.carry(peer, cargo)
        elif (socket := self.ends.get((peer.id, cargo.tunnel))) is not None:
            socket.arrived(cargo.number, cargo.data.buffers[0])

    @RoomMade.handler
    def room_made(self, made: RoomMade, peer: Peer) -> None:
        """The other end has taken something out."""
        if not made.onward:
            if (route := self._route(made.tunnel, peer)) is not None:
                route.make_room(peer, made.size)
        elif (socket := self.ends.get((peer.id, made.tunnel))) is not None:
            socket.room_made(made.size)

    @TunnelEnded.handler
    def tunnel_ended(self, ended: TunnelEnded, peer: Peer) -> None:
        """The other end has left."""
        if not ended.onward:
            if (route := self._route(ended.tunnel, peer)) is not None:
                route.end(peer, ended.code)
        elif (socket := self.ends.pop((peer.id, ended.tunnel), None)) is not None:
            socket.ended(error_of_close(ended.code))

    def _route(self, number: int, peer: Peer) -> Route | None:
        route = self.routes.get(number)
        return route if route is not None and peer in route.ends else None

    # -- for the node ----------------------------------------------------------------------------------------------

    def lost(self, peer: Peer, reason: str) -> None:
        """A peer is not linked any more: neither is what it carried, or what it was reached through us for."""
        for route in [route for route in self.routes.values() if peer in route.ends]:
            route.end(peer, CloseCode.GONE)
        for key in [key for key in self.ends if key[0] == peer.id]:
            self.ends.pop(key).ended(LinkTruncated(f"{peer.label}, which carried the link, is lost: {reason}"))

    async def close(self) -> None:
        """Carry nothing new, and say goodbye on the links that others carry, while these are linked; see Listener."""
        self._closed = True
        settings = self._node.settings
        connections = [
            connection for peer in self._node.peers for connection in peer.connections if connection.link.relay
        ]
        for connection in connections:
            connection.say_goodbye("the node stops")
        with suppress(TimeoutError):
            async with asyncio.timeout(settings.drain_seconds):
                while handlers := [task for connection in connections for task in connection.handlers]:
                    await asyncio.wait(handlers)
        async with asyncio.TaskGroup() as group:
            for connection in connections:
                group.create_task(connection.link.close())

    def superfluous(self, link: Link) -> bool:
        """Whether a link is carried by others, and there is one that is not."""
        return bool(link.relay) and _is_straight(self._node.peer(link.remote))

    def _end_of(self, relay: Peer, number: int, window: int) -> TunnelSocket:
        socket = self.ends[relay.id, number] = TunnelSocket(_Way(self, relay, number), window)
        return socket

    def _linked(self, peer_id: str) -> Peer | None:
        """The peer of that id, if it is linked. A peer may name whom it likes: nothing is kept of who is not."""
        return next((peer for peer in self._node.peers if peer.id == peer_id), None)

    def _only_dials(self, peer: Peer) -> bool:
        member = self._node.members.get(peer.id)
        return member is None or not member.addresses

    def __repr__(self) -> str:
        return f"<Relay of {len(self.routes)} tunnels, {len(self.ends)} ends of its own>"


class _Way:
    """The way from one end of a tunnel to who carries it; see Way."""

    def __init__(self, role: Relay, relay: Peer, number: int) -> None:
        self._role = role
        self._relay = relay
        self._number = number

    async def carry(self, number: int, message: bytes | bytearray) -> None:
        await self._tell(Cargo(self._number, False, number, wrapped(message)))

    async def make_room(self, size: int) -> None:
        await self._tell(RoomMade(self._number, False, size))

    async def end(self, code: CloseCode) -> None:
        self._role.ends.pop((self._relay.id, self._number), None)
        with suppress(LinkError, TimeoutError):
            async with asyncio.timeout(_CLOSE_SECONDS):
                await self._tell(TunnelEnded(self._number, False, code))

    async def _tell(self, message: Message) -> None:
        straight(self._relay)
        await self._relay.tell_encoded(encode(message))


def _is_straight(peer: Peer) -> bool:
    return peer.connected and not peer.connection().link.relay
