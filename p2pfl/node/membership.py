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

__all__ = ["Member", "Membership", "Roster"]

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

    def __init__(self, own: Member, changed: Callable[[], None], tell: Callable[[Roster, Peer | None], Awaitable[None]]) -> None:
        self._own_id = own.id
        self._table: dict[str, Member] = {}
        self._by_seat: dict[int, str] = {}
        self._changed = changed
        self._tell = tell
        self._enter(replace(own, version=time.time_ns()))  # a restarted node must outrun its former record

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
        if new:
            self._changed()
        return new

    async def announce(self, **change: object) -> None:
        """Change our own record and tell everybody."""
        own = replace(self.own, version=self.own.version + 1, **change)  # type: ignore[arg-type]  # names are fields
        self._enter(own)
        self._changed()
        await self._tell(Roster([own]), None)

    def everything(self) -> Roster:
        """All that we know, for a peer that has just been linked."""
        return Roster(list(self._table.values()))

    @Roster.handler
    async def heard(self, roster: Roster, peer: Peer) -> None:
        new = self.learn(roster.members)
        if new:
            await self._tell(Roster(new), peer)

    def _enter(self, member: Member) -> None:
        known = self._table.get(member.id)
        if known is not None and known.seat is not None and self._by_seat.get(known.seat) == member.id:
            del self._by_seat[known.seat]
        self._table[member.id] = member
        if member.seat is not None:
            self._by_seat[member.seat] = member.id
