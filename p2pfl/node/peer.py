"""Another node, as roles see it: ask it, tell it something."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar, cast

from p2pfl.errors import LinkClosed, LinkError, LinkRefused, P2pflError
from p2pfl.node.connection import Connection
from p2pfl.wire.codec import encode
from p2pfl.wire.message import Message, Request, reply_type

if TYPE_CHECKING:
    from p2pfl.link.base import Link
    from p2pfl.node.dispatch import Dispatch
    from p2pfl.node.node import Node

__all__ = ["Peer", "PeerStatistics"]

ReplyT = TypeVar("ReplyT", bound=Message)


@dataclass(frozen=True, slots=True)
class PeerStatistics:
    """Counts over all links that there have been with a peer; bytes as they crossed the wire."""

    messages_sent: int
    messages_received: int
    bytes_sent: int
    bytes_received: int
    rtt_seconds: float | None


class Peer:
    """One other node, whether linked at the moment or not. It is the same object for as long as our node lives."""

    __slots__ = ("_active", "_connections", "_gone", "_node", "_past", "_strikes", "id")

    def __init__(self, node: Node, peer_id: str) -> None:
        self.id = peer_id
        self._node = node
        self._active: Connection | None = None  # what is sent upon
        self._connections: list[Connection] = []  # the active one, and those that retire
        self._gone = asyncio.Event()
        self._gone.set()
        self._past = [0, 0, 0, 0]  # counts of links that have ended
        self._strikes: deque[float] = deque()

    # -- for roles -------------------------------------------------------------------------------------------------

    @property
    def name(self) -> str:
        """What the peer calls itself, or the start of its id."""
        member = self._node.members.get(self.id)
        return member.name if member and member.name else self.id[:10]

    @property
    def seat(self) -> int | None:
        """Its place in the course's topology, once it has one."""
        member = self._node.members.get(self.id)
        return member.seat if member else None

    @property
    def connected(self) -> bool:
        """Whether a link is up."""
        return self._active is not None

    @property
    def label(self) -> str:
        """Name and start of the id, for messages to people."""
        return self.name if self.name == self.id[:10] else f"{self.name} ({self.id[:10]})"

    async def tell(self, message: Message) -> None:
        """Send a statement. Waits while the peer is behind, not for its handler. LinkError if it cannot be reached."""
        await self.connection().tell(encode(message))

    async def ask(self, request: Request[ReplyT]) -> ReplyT:
        """Send a request and wait for its reply; to cancel the waiting cancels the handler at the other end.

        Raises RemoteError when the peer's handler failed, LinkError when the peer was lost meanwhile.
        """
        body = encode(request)
        connection = self.connection()
        await connection.room_to_ask()
        answer: asyncio.Future[Message] = asyncio.get_running_loop().create_future()

        def sink(result: Message | P2pflError) -> None:
            if not answer.done():
                answer.set_exception(result) if isinstance(result, P2pflError) else answer.set_result(result)

        number = connection.ask(body, reply_type(type(request)), sink)
        self._node.watch_waits()
        try:
            return cast("ReplyT", await answer)
        except asyncio.CancelledError:
            connection.cancel(number)
            raise

    async def gone(self) -> None:
        """Wait until no link to this peer is up."""
        await self._gone.wait()

    def statistics(self) -> PeerStatistics:
        """Counts so far."""
        sums = list(self._past)
        for connection in self._connections:
            sums = [a + b for a, b in zip(sums, _counts(connection), strict=True)]
        return PeerStatistics(*sums, rtt_seconds=self._active.rtt_seconds if self._active else None)

    def __repr__(self) -> str:
        seat = "" if self.seat is None else f" seat {self.seat}"
        return f"<Peer {self.label}{seat} {'linked' if self.connected else 'not linked'}>"

    # -- for the node and its connections --------------------------------------------------------------------------

    @property
    def dispatch(self) -> Dispatch:
        return self._node.dispatch

    @property
    def connections(self) -> tuple[Connection, ...]:
        return tuple(self._connections)

    def connection(self) -> Connection:
        """The connection to send upon. Raises LinkClosed if there is none."""
        if self._active is None:
            raise LinkClosed(f"{self.label} is not linked")
        return self._active

    def attach(self, link: Link) -> None:
        """Take a new link. Of two that were dialled at once, both ends keep the one that the smaller id dialled."""
        new, old = Connection(self, link, self._node.settings.session), self._active
        self._connections.append(new)
        if old is None:
            self._active = new
        elif old.link.initiator == link.initiator:  # nobody dials while a link is up: the old one is dead over there
            self._active = new
            old.link.abort(LinkRefused("replaced by a newer link of the same peer"))
        else:
            ours_wins = link.local < link.remote
            self._active, loser = (new, old) if link.initiator == ours_wins else (old, new)
            loser.retire("duplicate")
        self._gone.clear()
        new.start()
        if old is None:
            self._node.joined(self)

    def leaving(self, connection: Connection, reason: str) -> None:
        """The other end will close this connection. A duplicate is still answered; a stopping peer is not asked."""
        if reason == "duplicate":
            if connection is not self._active:
                connection.retire(reason)
        elif connection is self._active:
            self._active = None

    def detached(self, connection: Connection, error: LinkError) -> None:
        """A connection has ended."""
        self._past = [a + b for a, b in zip(self._past, _counts(connection), strict=True)]
        self._connections.remove(connection)
        if self._active is connection:
            self._active = None
        if not self._connections:
            self._gone.set()
            self._node.lost(self, error)

    def strike(self, reason: str) -> bool:
        """Note a violation; whether it is one too many."""
        self._node.misbehaved(self, reason)
        now = asyncio.get_running_loop().time()
        self._strikes.append(now)
        while self._strikes[0] < now - self._node.settings.strike_seconds:
            self._strikes.popleft()
        return len(self._strikes) >= self._node.settings.strikes

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        self._node.spawn(work)


def _counts(connection: Connection) -> tuple[int, int, int, int]:
    s = connection.link.statistics
    return s.packets_sent, s.packets_received, s.bytes_sent, s.bytes_received
