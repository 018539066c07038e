"""Who takes part, where they listen and which seat they have: a table that every node holds and gossips.

Each node speaks for itself: it raises the version of its own record, and others pass on what is new to them. So a node
that was given one address learns all others. Records are hearsay until a link is made, and a link is only made with the
peer id that the record names; a node that hears a false record of itself outruns it.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, replace

from p2pfl.node.peer import Peer
from p2pfl.wire.message import Message

__all__ = ["MOST_CHARACTERS", "MOST_RECORDS", "Member", "Membership", "Roster", "Spread"]

MOST_RECORDS = 25  # in one message: of the largest members, they still fit a head
_MOST_MEMBERS = 10_000
_MOST_FROM_ONE = 2_500  # members that one peer can make known: others must have room, too
_MOST_ADDRESSES = 16
MOST_CHARACTERS = 200  # of a name, an id, an address
_MOST_VERSION = 1 << 62

Spread = Callable[[Collection[str], "Peer | None"], None]
"""Passes the records of some ids on to all peers but one."""


@dataclass(frozen=True)
class Member:
    """What a node says of itself. No addresses: it only dials out."""

    id: str
    name: str = ""
    addresses: tuple[str, ...] = ()
    seat: int | None = None
    version: int = 0


class Roster(Message):
    """Records that are new to the sender. Raises ValueError for what is too large to be passed on."""

    members: list[Member]

    def __post_init__(self) -> None:
        if len(self.members) > MOST_RECORDS:
            raise ValueError(f"a roster has {len(self.members)} members, over the limit of {MOST_RECORDS}")
        for member in self.members:
            where = (member.id, *member.addresses)
            if len(where) > 1 + _MOST_ADDRESSES or any(len(text) > MOST_CHARACTERS for text in (member.name, *where)):
                raise ValueError("a member's id, name or addresses are too long")
            if not (member.name.isprintable() and all(text.isprintable() and text.isascii() for text in where)):
                raise ValueError("a member's id, name or addresses have characters that do not belong there")
            if not 0 <= member.version < _MOST_VERSION:
                raise ValueError("a member has an impossible version")


class Membership:
    """The table of one node, and the role that keeps it up to date."""

    def __init__(self, own: Member, *, restarted: bool = True) -> None:
        """`restarted`: the record gets a new version, to outrun one that may be known of an earlier life."""
        self._own_id = own.id
        self._table: dict[str, Member] = {}
        self._by_seat: dict[int, str] = {}
        self._first_hand: set[str] = set()  # who has told its record itself, over a link
        self._heard_from: Counter[str] = Counter()  # how many others a peer has told us of
        self._changed: Callable[[], None] = lambda: None
        self._spread: Spread = lambda ids, source: None
        self._enter(replace(own, version=time.time_ns()) if restarted else own)

    def bind(self, changed: Callable[[], None], spread: Spread) -> None:
        """Called by the node: whom to wake after a change, and how to pass records on to all peers but one."""
        self._changed, self._spread = changed, spread

    @property
    def own(self) -> Member:
        """What we say of ourselves."""
        return self._table[self._own_id]

    def get(self, peer_id: str) -> Member | None:
        """What is known of a node."""
        return self._table.get(peer_id)

    def at(self, seat: int) -> Member | None:
        """Who sits there, as far as is known."""
        peer_id = self._by_seat.get(seat)
        return None if peer_id is None else self._table[peer_id]

    def on_call(self, seat: int) -> bool:
        """Whether who sits there sleeps until it is dialled, and need not be linked to take part."""
        return False

    def would_wake(self, seat: int) -> bool:
        """Whether who sleeps there would wake if it were dialled now: it may be away."""
        return self.on_call(seat)

    def __iter__(self) -> Iterator[Member]:
        return iter(self._table.values())

    def __len__(self) -> int:
        return len(self._table)

    def learn(self, members: Iterable[Member], source: str = "") -> list[Member]:
        """Take records in; those that have to be passed on, because they were new or were false.

        `source`: the peer id of who told them. What it says of itself counts for more than hearsay: there is always
        room for it, and a seat that nobody has claimed for himself goes to who does.
        """
        new = []
        for member in members:
            if member.id == self._own_id:
                if member.version >= self.own.version and member != self.own:
                    self._enter(replace(self.own, version=member.version + 1))
                    new.append(self.own)
            elif self._is_news(member, source):
                self._enter(member)
                new.append(member)
            if member.id == source and self._table.get(source) == member:
                self._believe(member)
        if new:
            self._changed()
        return new

    def _is_news(self, member: Member, source: str) -> bool:
        known = self._table.get(member.id)
        if known is not None:
            return member.version > known.version
        if member.id == source:
            return len(self._table) < _MOST_MEMBERS or self._make_room()
        if len(self._table) >= _MOST_MEMBERS or self._heard_from[source] >= _MOST_FROM_ONE:
            return False
        self._heard_from[source] += 1
        return True

    def _make_room(self) -> bool:
        """Forget somebody who has told us nothing himself; whether there was such."""
        hearsay = (peer_id for peer_id in self._table if peer_id not in self._first_hand and peer_id != self._own_id)
        forgotten = next(hearsay, None)
        if forgotten is None:
            return False
        member = self._table.pop(forgotten)
        if self._sits(member):
            del self._by_seat[member.seat]  # type: ignore[arg-type]  # who sits has a seat
        return True

    def _believe(self, member: Member) -> None:
        """It says so itself."""
        self._first_hand.add(member.id)
        if member.seat is None:
            return
        holder = self._by_seat.get(member.seat)
        if holder not in (member.id, self._own_id) and holder not in self._first_hand:
            self._by_seat[member.seat] = member.id
            self._changed()

    async def announce(self, *, addresses: tuple[str, ...] | None = None, seat: int | None = None) -> None:
        """Change our own record, and have everybody told."""
        own = self.own
        self._enter(
            replace(
                own,
                addresses=own.addresses if addresses is None else addresses[:_MOST_ADDRESSES],
                seat=own.seat if seat is None else seat,
                version=own.version + 1,
            )
        )
        self._changed()
        self._spread((own.id,), None)

    def greeting(self) -> Collection[str]:
        """Whose records a peer is told that has just been linked: all."""
        return tuple(self._table)

    @Roster.handler
    async def heard(self, roster: Roster, peer: Peer) -> None:
        """A peer passes records on."""
        new = [member.id for member in self.learn(roster.members, peer.id)]
        if new:
            self._spread(new, None if self._own_id in new else peer)  # whoever told what is false is told better

    def _enter(self, member: Member) -> None:
        known = self._table.get(member.id)
        self._table[member.id] = member
        if known is not None and known.seat != member.seat and self._sits(known):
            del self._by_seat[known.seat]  # type: ignore[arg-type]  # who sits has a seat
        if member.seat is not None:
            self._by_seat.setdefault(member.seat, member.id)  # who claims a seat that is taken does not get it

    def _sits(self, member: Member) -> bool:
        return member.seat is not None and self._by_seat.get(member.seat) == member.id
