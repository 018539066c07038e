"""How hosts come together for a course: who has it gives it out, and gives every newcomer a seat."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from p2pfl.errors import CourseError
from p2pfl.node.peer import Peer
from p2pfl.wire.message import Message, Request

__all__ = ["Courier", "CourseText", "FetchCourse", "Join", "Registrar", "Seated"]


class CourseText(Message):
    """A course file as JSON, its hash, and who gives seats."""

    text: str
    hash: str
    registrar: str


class FetchCourse(Request[CourseText]):
    """Which course is this?"""


class Seated(Message):
    seat: int


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

    def __post_init__(self) -> None:
        self._holders: dict[int, str] = {self.own_seat: "this node"}

    @Join.handler
    async def join(self, ask: Join, peer: Peer) -> Seated:
        if ask.hash != self.hash:
            raise CourseError(
                f"your course has the hash {ask.hash[:8]}, ours {self.hash[:8]}: leave --course out to take ours"
            )
        seat = self._seat_for(ask, peer.id)
        holder = self._holders.setdefault(seat, peer.id)
        if holder != peer.id:
            raise CourseError(f"seat {seat} is taken: leave --seat out to get a free one")
        return Seated(seat)

    def _seat_for(self, ask: Join, peer_id: str) -> int:
        had = next((seat for seat, holder in self._holders.items() if holder == peer_id), None)
        if had is not None:
            return had
        if ask.seat is not None:
            if not 0 <= ask.seat < self.n:
                raise CourseError(f"there is no seat {ask.seat}: the course has seats 0 to {self.n - 1}")
            return ask.seat
        if ask.name in self.named:
            return self.named[ask.name]
        kept = set(self._holders) | set(self.named.values())
        free = next((seat for seat in range(self.n) if seat not in kept), None)
        if free is None:
            raise CourseError(f"all {self.n} seats are taken: raise topology.n, or give this node the name of a member")
        return free
