"""Another node, as roles see it: ask it, tell it something."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Coroutine, Iterable
from typing import TYPE_CHECKING, Any, TypeVar, cast

from p2pfl.errors import LinkClosed, LinkError, LinkRefused, P2pflError, RemoteProtocolError
from p2pfl.link.base import LinkStatistics
from p2pfl.node.conduct import Conduct
from p2pfl.node.connection import Connection
from p2pfl.node.events import PeerMisbehaved
from p2pfl.node.quota import LineQuota
from p2pfl.node.statistics import PeerStatistics, summed
from p2pfl.wire.codec import Body, encode
from p2pfl.wire.message import Message, Request, reply_type

if TYPE_CHECKING:
    from p2pfl.link.base import Link
    from p2pfl.node.dispatch import Dispatch
    from p2pfl.node.node import Node

__all__ = ["Peer", "require_seat", "tell_all"]

ReplyT = TypeVar("ReplyT", bound=Message)
_MOST_CONNECTIONS = 4  # the active one, and duplicates that have not ended yet


class Peer:
    """One other node, whether linked at the moment or not. It is the same object for as long as our node lives."""

    __slots__ = (
        "_active", "_conduct", "_connections", "_gone", "_leaving", "_loss", "_node", "_past", "_quota", "id",
        "lost_at",
    )  # fmt: skip

    def __init__(self, node: Node, peer_id: str) -> None:
        self.id = peer_id
        self.lost_at: float | None = None
        """When its last link broke, on the loop's clock, even if it is back; None if it is not to be waited for: after
        a goodbye, and in quarantine."""
        self._node = node
        self._active: Connection | None = None  # what is sent upon
        self._connections: list[Connection] = []  # all that are open: the active one, and those that end
        self._leaving: set[Connection] = set()  # those of them on which the peer, which stops, has said goodbye
        self._loss = ""  # why there is no active one any more
        self._gone = asyncio.Event()
        self._gone.set()
        self._past = LinkStatistics()  # of links that have ended
        self._conduct = Conduct(node.settings)
        self._quota: LineQuota | None = None  # of what is said of it; made with the first line

    # -- for roles -------------------------------------------------------------------------------------------------

    @property
    def node(self) -> Node:
        """Our node, whose peer it is."""
        return self._node

    @property
    def name(self) -> str:
        """What the peer calls itself, or the start of its id."""
        member = self._node.members.get(self.id)
        return member.name if member and member.name else self.id[:10]

    @property
    def seat(self) -> int | None:
        """Its place in the course's topology, once it has one."""
        member = self._node.members.get(self.id)
        if member is None or member.seat is None:
            return None
        return member.seat if self._node.members.at(member.seat) is member else None  # it may be a mere claim

    @property
    def connected(self) -> bool:
        """Whether a link is up."""
        return self._active is not None

    @property
    def audible(self) -> bool:
        """Whether something may still come from it: a link is open, even if the peer has said goodbye on it."""
        return bool(self._connections)

    @property
    def label(self) -> str:
        """Name and start of the id, for messages to people."""
        return self.name if self.name == self.id[:10] else f"{self.name} ({self.id[:10]})"

    async def tell(self, message: Message) -> None:
        """Send a statement. Waits while the peer is behind, not for its handler.

        Raises LinkError if the peer is not linked, MessageError for a message that cannot be sent.
        """
        await self.tell_encoded(encode(message))

    async def ask(self, request: Request[ReplyT]) -> ReplyT:
        """Send a request and wait for its reply; to cancel the waiting cancels the handler at the other end.

        Raises RemoteError when the peer's handler failed or its reply is against the protocol, LinkError when the peer
        is not linked or was lost meanwhile, MessageError for a request that cannot be sent.
        """
        body = encode(request)
        connection = await self.room_to_ask()
        answer: asyncio.Future[Message] = asyncio.get_running_loop().create_future()

        def sink(result: Message | P2pflError) -> None:
            if not answer.done():
                answer.set_exception(result) if isinstance(result, P2pflError) else answer.set_result(result)

        number = connection.ask(body, reply_type(type(request)), sink)
        self._node.watch_waits()
        try:
            return cast("ReplyT", await answer)
        finally:
            connection.cancel(number)  # does nothing once there is an answer

    async def gone(self) -> None:
        """Wait until no link to this peer is up."""
        await self._gone.wait()

    def statistics(self) -> PeerStatistics:
        """Counts so far."""
        return PeerStatistics.of(self.counts(), self._active.rtt_seconds if self._active else None)

    def __repr__(self) -> str:
        seat = "" if self.seat is None else f" seat {self.seat}"
        return f"<Peer {self.label}{seat} {'linked' if self.connected else 'not linked'}>"

    # -- for the node, which sends upon the active connection ------------------------------------------------------

    def connection(self) -> Connection:
        """The connection to send upon. Raises LinkClosed if there is none."""
        if self._active is None:
            raise LinkClosed(f"{self.label} is not linked{self._loss and ': '}{self._loss}")
        return self._active

    async def room_to_tell(self) -> Connection:
        """The connection to send upon, once it has room for a statement. Raises LinkClosed."""
        while not (connection := self.connection()).session.tells_left:
            await connection.room()
        return connection

    async def room_to_ask(self) -> Connection:
        """The connection to send upon, once it has room for a request. Raises LinkClosed."""
        while not (connection := self.connection()).session.asks_left:
            await connection.room()
        return connection

    async def tell_encoded(self, body: Body) -> None:
        """Send a statement that was encoded before; see `tell`."""
        connection = await self.room_to_tell()
        connection.tell(body)
        await connection.link.drain()

    @property
    def renew_at(self) -> float:
        """When the link to send upon is to be replaced by us, on the loop's clock: who dialled it sees to that."""
        return self._active.link.renew_at if self._active is not None and self._active.link.initiator else math.inf

    @property
    def quarantine_seconds(self) -> float:
        """For how long no link to it is made or taken."""
        return self._conduct.quarantine(asyncio.get_running_loop().time())

    def check_quarantine(self) -> None:
        """Raises LinkRefused, saying for how long, if no link is to be made or taken."""
        if seconds := self.quarantine_seconds:
            raise LinkRefused(f"{self.label} broke the protocol too often: no link for another {seconds:.0f} s")

    @property
    def forgettable(self) -> bool:
        """Whether it is of no account: there is no link, and nothing is held against it."""
        return not self.audible and self._conduct.spotless(asyncio.get_running_loop().time())

    @property
    def connections(self) -> tuple[Connection, ...]:
        """All that are open."""
        return tuple(self._connections)

    def counts(self) -> LinkStatistics:
        """Counts of all links so far."""
        return summed((self._past, *(connection.link.statistics for connection in self._connections)))

    def attach(self, link: Link) -> None:
        """Take a new link. Of two that were dialled at once, both ends keep the one that the smaller id dialled.

        Two that one end dialled: nobody dials while a good link is up, so the old one is dead over there or has served
        its time, and both ends keep the newer. A link that needs nobody between is better than one through others.

        Raises LinkRefused for a peer in quarantine.
        """
        self.check_quarantine()
        new, old = Connection(self, link, self._node.settings.session), self._active
        if len(self._connections) == _MOST_CONNECTIONS:
            spare = next(connection for connection in self._connections if connection is not old)
            spare.link.abort(LinkRefused("too many links of one peer"))
        self._connections.append(new)
        self._choose(new if old is None or _outdoes(link, old.link) else old)
        new.start()

    # -- for its connections ---------------------------------------------------------------------------------------

    @property
    def dispatch(self) -> Dispatch:
        """The handlers of our node."""
        return self._node.dispatch

    def retires(self, connection: Connection) -> None:
        """The other end uses another link than this one. Where we do not, it comes yet, or we settle it here.

        Two links that one end dialled may become known in different orders at the two ends, so that each retires the
        one that the other has chosen. Then both take the one with the smaller channel id.
        """
        rivals = [rival for rival in self._connections if rival.link.initiator == connection.link.initiator]
        if connection is self._active and len(rivals) > 1:
            self._choose(min(rivals, key=lambda rival: rival.link.channel_id))

    def leaves(self, connection: Connection, reason: str) -> None:
        """The other end stops. It still answers what it was asked, and is asked and told no more."""
        self._leaving.add(connection)
        if connection is self._active:
            self.lost_at = None
            self._fall_back(f"it said goodbye: {reason}")

    def detached(self, connection: Connection, error: LinkError) -> None:
        """A connection has ended."""
        self._past = summed((self._past, connection.link.statistics))
        self._connections.remove(connection)
        self._leaving.discard(connection)
        self._node.adopt(connection.handlers)
        if connection is self._active:
            over = isinstance(error, LinkClosed) or self.quarantine_seconds
            self.lost_at = None if over else asyncio.get_running_loop().time()
            self._fall_back(str(error))
        self._node.stir()  # who waits to hear from it looks again

    def strike(self, reason: str) -> None:
        """Note a violation. One too many ends all links."""
        self._node.violations += 1
        if (ending := self.line_ending()) is not None:
            self._node.emit(PeerMisbehaved(self.id, reason + ending))
        if self._conduct.strike(asyncio.get_running_loop().time()):
            self._expel(f"too many violations, the last: {reason}")

    def ban(self, reason: str) -> None:
        """What it did is beyond doubt: end all links, and make none for as long as the longest quarantine lasts.

        A node that is started anew does not remember it.
        """
        self._node.violations += 1
        self._node.emit(PeerMisbehaved(self.id, reason))
        self._conduct.ban(asyncio.get_running_loop().time())
        self._expel(reason)

    def _expel(self, reason: str) -> None:
        for connection in self.connections:
            connection.condemn(RemoteProtocolError(reason))

    def line_ending(self) -> str | None:
        """Leave for one line to a person that this peer provokes, and what to end it with. None: not so soon."""
        now = asyncio.get_running_loop().time()
        if self._quota is None:
            self._quota = LineQuota(now)
        return self._quota.take(now)

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Run something that ends by itself, and in any case with our node."""
        self._node.spawn(work)

    # -- which connection is the active one ------------------------------------------------------------------------

    def _fall_back(self, reason: str) -> None:
        """The active connection is no more; a duplicate that has not closed yet takes its place."""
        staying = [connection for connection in self._connections if connection not in self._leaving]
        self._loss = reason
        self._choose(staying[-1] if staying else None)

    def _choose(self, chosen: Connection | None) -> None:
        before, self._active = self._active, chosen
        if chosen is not None:
            chosen.resume()
        for connection in self._connections:
            if connection is not chosen and connection not in self._leaving:
                connection.retire()
        if before is None and chosen is not None:
            self._gone.clear()
            self._node.joined(self)
        elif before is not None and chosen is None:
            self._gone.set()
            self._node.lost(self, self._loss)


def _outdoes(new: Link, old: Link) -> bool:
    """Whether a new link takes the place of one that is up; both ends see it alike. See `Peer.attach`."""
    if bool(new.relay) != bool(old.relay):
        return bool(old.relay)
    return old.initiator == new.initiator or new.initiator == (new.local < new.remote)


async def tell_all(peers: Iterable[Peer], body: Body) -> list[Peer]:
    """Tell many what was encoded before; those that were not reached are given back.

    Who is behind keeps the caller waiting, but nobody else from being told.
    """
    sent, behind, missed = [], [], []
    for peer in peers:
        try:
            connection = peer.connection()
        except LinkError:
            missed.append(peer)
            continue
        if connection.session.tells_left:
            connection.tell(body)
            sent.append(connection)
        else:
            behind.append(peer)

    async def catch_up(peer: Peer) -> None:
        try:
            await peer.tell_encoded(body)
        except LinkError:
            missed.append(peer)

    async def drain() -> None:
        for connection in sent:
            await connection.link.drain()

    if not behind:
        await drain()
        return missed
    async with asyncio.TaskGroup() as group:
        for peer in behind:
            group.create_task(catch_up(peer))
        await drain()
    return missed


def require_seat(peer: Peer, *seats: int) -> int:
    """The seat of a peer that must sit in one of `seats`. Raises RemoteProtocolError for anybody else.

    A role takes messages only from whom the topology puts above or beside it; a link alone gives no say in a course.
    """
    seat = peer.seat
    if seat is None or seat not in seats:
        raise RemoteProtocolError(f"{peer.label} in seat {seat} has no say here: that is for {_listed(seats)}")
    return seat


def _listed(seats: tuple[int, ...]) -> str:
    return f"seat {seats[0]}" if len(seats) == 1 else "neighbours"
