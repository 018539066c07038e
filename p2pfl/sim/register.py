"""Who sits where in a world. Everybody is known from the start, and a record is made when somebody asks for it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Container

from p2pfl.node.membership import Member, Membership, Spread

__all__ = ["Register"]


class Register:
    """The table that all nodes of a world share."""

    def __init__(
        self, n: int, sleepers: Container[int] = (), online: Callable[[int], bool] = lambda seat: True
    ) -> None:
        """`sleepers`: seats whose nodes exist only while they are needed; `online`: whether one can be reached now."""
        self.n = n
        self.sleepers = sleepers
        self.online = online
        self._made: dict[int, Member] = {}
        self._ids: dict[str, Member] = {}  # the same, by id

    def member(self, seat: int) -> Member | None:
        """The record of a seat, the same object until it is dropped; None where there is no such seat."""
        if seat not in self._made:
            if not 0 <= seat < self.n:
                return None
            peer_id = f"seat{seat:07d}"
            member = Member(peer_id, f"seat {seat}", (f"memory:{peer_id}",), seat)
            self._made[seat] = self._ids[peer_id] = member
        return self._made[seat]

    def get(self, peer_id: str) -> Member | None:
        """The record of an id; None where there is no such node."""
        return self._ids.get(peer_id) or self.member(self.seat_of(peer_id))

    def seat_of(self, peer_id: str) -> int:
        """The seat of an id, which may be one that does not exist."""
        digits = peer_id.removeprefix("seat")
        return int(digits) if digits.isdecimal() else -1

    def drop(self, seat: int) -> None:
        """Keep the record no longer: it can be made again."""
        if (member := self._made.pop(seat, None)) is not None:
            del self._ids[member.id]

    def membership(self, seat: int) -> Membership:
        """The membership of the node in that seat."""
        member = self.member(seat)
        assert member is not None, f"there is no seat {seat}"
        return _Registered(self, member)


class _Registered(Membership):
    """One node's view of the register. There is nothing to gossip about."""

    def __init__(self, register: Register, own: Member) -> None:
        super().__init__(own, restarted=False)
        self._register = register
        self._member = own

    @property
    def own(self) -> Member:
        return self._member

    def get(self, peer_id: str) -> Member | None:
        return self._register.get(peer_id)

    def at(self, seat: int) -> Member | None:
        return self._register.member(seat)

    def on_call(self, seat: int) -> bool:
        return seat in self._register.sleepers

    def would_wake(self, seat: int) -> bool:
        return self.on_call(seat) and self._register.online(seat)

    def bind(self, changed: Callable[[], None], spread: Spread) -> None:
        super().bind(changed, lambda ids, source: None)

    async def announce(self, *, addresses: tuple[str, ...] | None = None, seat: int | None = None) -> None:
        self._changed()  # the register knows it already

    def greeting(self) -> Collection[str]:
        return ()
