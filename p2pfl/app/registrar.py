"""How hosts come together for a course: who has it gives it out, and gives every newcomer a seat."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from p2pfl.learn.arrays import Laid
from p2pfl.node.peer import Peer
from p2pfl.wire.message import Message, Request

if TYPE_CHECKING:
    from p2pfl.journal.journal import Journal  # loads torch, and who only asks for a seat has no journal

__all__ = ["Courier", "CourseText", "FetchCourse", "Join", "Registrar", "Seated"]

_SEATS = "seats"


class CourseText(Message):
    """A course file as JSON, its hash, and who gives seats."""

    text: str
    hash: str
    registrar: str
    run: str  # the name of this run: one course may be run many times
    layout: Laid = ()
    """Name, shape and strides of what a model's vector is made of, for clients without torch; nothing where a client
    does more than to train from the model that it is sent."""


class FetchCourse(Request[CourseText]):
    """Which course is this?"""


class Seated(Message):
    """The answer to Join: a seat, or why there is none."""

    seat: int | None
    refusal: str = ""


class Join(Request[Seated]):
    """Give me a seat. `hash` is that of the course as I read it; `seat` the one that I want, if any."""

    hash: str
    name: str
    seat: int | None


class Courier:
    """Passes the course on."""

    def __init__(self, course: CourseText) -> None:
        self._course = course

    @FetchCourse.handler
    async def fetch(self, ask: FetchCourse, peer: Peer) -> CourseText:
        return self._course


@dataclass
class Registrar:
    """Gives seats: to who comes back the one it had, to who is named in the topology file its own, else a free one."""

    hash: str
    n: int
    own_seat: int
    named: Mapping[str, int]  # seats that the topology file gives to names
    journal: Journal | None = None  # from which a registrar that was restarted knows who sits where

    def __post_init__(self) -> None:
        kept = {} if self.journal is None else self.journal.kept(_SEATS) or {}
        self._holders: dict[int, str] = {int(seat): str(holder) for seat, holder in kept.items()}
        self._holders[self.own_seat] = "this node"

    @Join.handler
    async def join(self, ask: Join, peer: Peer) -> Seated:
        if ask.hash != self.hash:
            return _refused(
                f"this node's course has the hash {ask.hash[:8]}, the peers' {self.hash[:8]}: leave --course out"
            )
        seat = self._seat_for(ask, peer.id)
        if seat is None:
            return _refused(f"all {self.n} seats are taken: raise topology.n, or use the --name of a member")
        if not 0 <= seat < self.n:
            return _refused(f"there is no seat {seat}: the course has seats 0 to {self.n - 1}")
        if self._holders.setdefault(seat, peer.id) != peer.id:
            return _refused(f"seat {seat} is taken: leave --seat out to get a free one")
        if self.journal is not None:
            await self.journal.keep(_SEATS, {str(given): holder for given, holder in self._holders.items()})
        return Seated(seat)

    def _seat_for(self, ask: Join, peer_id: str) -> int | None:
        had = next((seat for seat, holder in self._holders.items() if holder == peer_id), None)
        if had is not None:
            return had
        if ask.seat is not None:
            return ask.seat
        if ask.name in self.named:
            return self.named[ask.name]
        kept = set(self._holders) | set(self.named.values())
        return next((seat for seat in range(self.n) if seat not in kept), None)


def _refused(why: str) -> Seated:
    return Seated(None, why)
