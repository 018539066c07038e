"""Who takes part, where they listen and which seat they have: a table that every node holds and gossips.

Each node speaks for itself: it raises the version of its own record, and others pass on what is new to them. A node that
was given one address so learns all others. Records are hearsay until a link is made, and a link is only made with the
peer id that the record names.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass, replace

from p2pfl.node.peer import Peer
from p2pfl.wire.message import Message

__all__ = ["Directory", "Member", "Membership", "Roster"]

_MOST_MEMBERS = 100_000


@dataclass(frozen=True)
class Member:
    """What a node says of itself. No addresses: it only dials out."""

    id: str
    name: str = ""
    addresses: tuple[str, ...] = ()
    seat: int | None = None
    version: int = 0


class Roster(Message):
    """Records that are new to the sender."""

    members: list[Member]


class Membership:
    """The table of one node, and the role that keeps it up to date."""

    def __init__(self, own: Member) -> None:
        self._own_id = own.id
        self._table: dict[str, Member] = {}
        self._by_seat: dict[int, str] = {}
        self._changed: Callable[[], None] | None = None
        self._tell: Callable[[Roster, Peer | None], Awaitable[None]] | None = None
        self._enter(replace(own, version=time.time_ns()))  # a restarted node must outrun its former record

    def bind(self, changed: Callable[[], None], tell: Callable[[Roster, Peer | None], Awaitable[None]]) -> None:
        """Called by the node: whom to wake after a change, and how to tell all peers but one."""
        self._changed, self._tell = changed, tell

    @property
    def own(self) -> Member:
        return self._table[self._own_id]

    def get(self, peer_id: str) -> Member | None:
        return self._table.get(peer_id)

    def at(self, seat: int) -> Member | None:
        """Who sits there, as far as is known."""
        peer_id = self._by_seat.get(seat)
        return None if peer_id is None else self._table[peer_id]

    def __iter__(self) -> Iterator[Member]:
        return iter(self._table.values())

    def __len__(self) -> int:
        return len(self._table)

    def learn(self, members: Iterable[Member]) -> list[Member]:
        """Take records in; those that were new."""
        new = []
        for member in members:
            known = self._table.get(member.id)
            if member.id != self._own_id and (known is None or member.version > known.version):
                if known is None and len(self._table) >= _MOST_MEMBERS:
                    continue
                self._enter(member)
                new.append(member)
        if new and self._changed:
            self._changed()
        return new

    async def announce(self, **change: object) -> None:
        """Change our own record and tell everybody."""
        own = replace(self.own, version=self.own.version + 1, **change)  # type: ignore[arg-type]  # names are fields
        self._enter(own)
        if self._changed and self._tell:
            self._changed()
            await self._tell(Roster([own]), None)

    def everything(self) -> Roster | None:
        """All that we know, for a peer that has just been linked; None if it needs no telling."""
        return Roster(list(self._table.values()))

    @Roster.handler
    async def heard(self, roster: Roster, peer: Peer) -> None:
        new = self.learn(roster.members)
        if new and self._tell:
            await self._tell(Roster(new), peer)

    def _enter(self, member: Member) -> None:
        known = self._table.get(member.id)
        if known is not None and known.seat is not None and self._by_seat.get(known.seat) == member.id:
            del self._by_seat[known.seat]
        self._table[member.id] = member
        if member.seat is not None:
            self._by_seat.setdefault(member.seat, member.id)  # who claims a seat that is taken does not get it


class Directory:
    """A table that all nodes of one process share: everybody is known from the start."""

    def __init__(self, members: Iterable[Member]) -> None:
        self.table = {member.id: member for member in members}
        self.by_seat = {member.seat: member.id for member in self.table.values() if member.seat is not None}

    def membership(self, peer_id: str) -> Membership:
        """The membership of one of the nodes."""
        return _Listed(self, peer_id)


class _Listed(Membership):
    """One node's view of a Directory. There is nothing to gossip about."""

    def __init__(self, directory: Directory, peer_id: str) -> None:
        super().__init__(directory.table[peer_id])
        self._table, self._by_seat = directory.table, directory.by_seat

    def everything(self) -> Roster | None:
        return None

    async def announce(self, **change: object) -> None:
        self._enter(replace(self.own, **change))  # type: ignore[arg-type]  # names are fields
