"""What can go wrong in a world, as values with a time, drawn from a seed: schedules of faults.

After K. Kingsbury's Jepsen (https://jepsen.io), whose nemesis mixes partitions, kills and clock skew, and
FoundationDB's simulation (J. Zhou et al., "FoundationDB: A Distributed Unbundled Transactional Key Value Store",
SIGMOD 2021), whose swizzle-clogging stops the links of some nodes one by one and restores them in a random order.

A schedule ends with a quiet time, in which all is well: what then does not come to its end never would.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from random import Random

from p2pfl.errors import ConfigError
from p2pfl.sim.world import World

__all__ = [
    "FAULTS", "ClockJump", "Clog", "Corrupt", "Crash", "Cut", "Fault", "FullDisk", "Ground", "Lag", "Mute", "Partition",
    "Rot", "SlowDisk", "haunt", "schedule", "shrink",
]  # fmt: skip

_MOST_FAULTS = 6  # draws for one schedule; a swizzle is one of them
_SHORTEST, _LONGEST = 0.05, 12.0  # seconds that a fault lasts: from within a transfer to beyond the keepalive


@dataclass(frozen=True, slots=True)
class Fault(ABC):
    """Something that is wrong from `at` to `until`, in seconds of virtual time."""

    at: float
    until: float

    @abstractmethod
    async def begin(self, world: World) -> None:
        """Let it go wrong."""

    async def end(self, world: World) -> None:
        """Let it be well again, where it has not ended by itself."""
        return

    def __str__(self) -> str:
        return f"{self.at:7.3f} s to {self.until:7.3f} s: {self.what}"

    @property
    @abstractmethod
    def what(self) -> str:
        """It, in words."""


@dataclass(frozen=True, slots=True)
class Crash(Fault):
    """A process is killed, and begun anew. `silently`: its host goes with it, so that nobody ends its links."""

    seat: int
    silently: bool = False
    torn: bool = False  # its disk does not keep its word: of what was being written, half is there

    @property
    def what(self) -> str:
        how = ", its links stay half-open" if self.silently else ""
        return f"seat {self.seat} is killed{how}{', its disk tears what it writes' if self.torn else ''}, and restarted"

    async def begin(self, world: World) -> None:
        if world.alive(self.seat):
            if self.seat in world.disks:
                world.disks[self.seat].torn = self.torn
            world.kill(self.seat, silently=self.silently)

    async def end(self, world: World) -> None:
        if world.down(self.seat):
            await world.restart(self.seat)


@dataclass(frozen=True, slots=True)
class Cut(Fault):
    """All links between two seats break, and what is under way is lost."""

    a: int
    b: int

    @property
    def what(self) -> str:
        return f"the links between seats {self.a} and {self.b} break"

    async def begin(self, world: World) -> None:
        world.memory.cut(world.peer_id(self.a), world.peer_id(self.b))


@dataclass(frozen=True, slots=True)
class Partition(Fault):
    """Nothing passes between some seats and all others; what is held up arrives afterwards, as with TCP."""

    side: tuple[int, ...]

    @property
    def what(self) -> str:
        return f"seats {', '.join(map(str, self.side))} are parted from all others"

    async def begin(self, world: World) -> None:
        for a, b in self._pairs(world):
            world.memory.partition(a, b)

    async def end(self, world: World) -> None:
        for a, b in self._pairs(world):
            world.memory.heal(a, b)

    def _pairs(self, world: World) -> list[tuple[str, str]]:
        others = [seat for seat in range(world.n) if seat not in self.side]
        return [(world.peer_id(a), world.peer_id(b)) for a in self.side for b in others]


@dataclass(frozen=True, slots=True)
class Clog(Partition):
    """One step of a swizzle."""

    @property
    def what(self) -> str:
        return f"swizzle: seat {self.side[0]} is clogged"


@dataclass(frozen=True, slots=True)
class Mute(Fault):
    """Nothing passes from one seat to another; the other way it does."""

    source: int
    destination: int

    @property
    def what(self) -> str:
        return f"nothing passes from seat {self.source} to seat {self.destination}"

    async def begin(self, world: World) -> None:
        world.memory.mute(world.peer_id(self.source), world.peer_id(self.destination))

    async def end(self, world: World) -> None:
        world.memory.unmute(world.peer_id(self.source), world.peer_id(self.destination))


@dataclass(frozen=True, slots=True)
class Lag(Fault):
    """Packets from one seat to another are late, so that those of other links overtake them."""

    source: int
    destination: int
    seconds: float

    @property
    def what(self) -> str:
        return f"packets from seat {self.source} to seat {self.destination} are late by {self.seconds:.3f} s"

    async def begin(self, world: World) -> None:
        world.memory.lag(world.peer_id(self.source), world.peer_id(self.destination), self.seconds)

    async def end(self, world: World) -> None:
        world.memory.lag(world.peer_id(self.source), world.peer_id(self.destination), -self.seconds)


@dataclass(frozen=True, slots=True)
class Corrupt(Fault):
    """A bit of the next packet from one seat to another is turned on its way."""

    source: int
    destination: int

    @property
    def what(self) -> str:
        return f"a bit turns on the way from seat {self.source} to seat {self.destination}"

    async def begin(self, world: World) -> None:
        world.memory.corrupt(world.peer_id(self.source), world.peer_id(self.destination))


@dataclass(frozen=True, slots=True)
class SlowDisk(Fault):
    """To sync a file takes long. So what is lost by a crash is more."""

    seat: int
    seconds: float

    @property
    def what(self) -> str:
        return f"the disk of seat {self.seat} takes {self.seconds:.3f} s more to sync"

    async def begin(self, world: World) -> None:
        if self.seat in world.disks:
            world.disks[self.seat].sync_seconds += self.seconds

    async def end(self, world: World) -> None:
        if self.seat in world.disks:
            world.disks[self.seat].sync_seconds -= self.seconds


@dataclass(frozen=True, slots=True)
class FullDisk(Fault):
    """Nothing can be written."""

    seat: int

    @property
    def what(self) -> str:
        return f"the disk of seat {self.seat} is full"

    async def begin(self, world: World) -> None:
        if self.seat in world.disks:
            world.disks[self.seat].full = True

    async def end(self, world: World) -> None:
        if self.seat in world.disks:
            world.disks[self.seat].full = False


@dataclass(frozen=True, slots=True)
class Rot(Fault):
    """A bit turns in one of the files of a seat, which is noticed when the seat is restarted, if at all."""

    seat: int
    which: float  # of its files by name, as a share of them

    @property
    def what(self) -> str:
        return f"a bit turns in a file of seat {self.seat}"

    async def begin(self, world: World) -> None:
        disk = world.disks.get(self.seat)
        if disk is not None and (names := sorted(disk.names())):
            disk.rot(names[int(self.which * len(names))])


@dataclass(frozen=True, slots=True)
class ClockJump(Fault):
    """The wall clock of a seat jumps, and goes on from there."""

    seat: int
    seconds: float

    @property
    def what(self) -> str:
        return f"the wall clock of seat {self.seat} jumps by {self.seconds:+.0f} s"

    async def begin(self, world: World) -> None:
        process = world.seats[self.seat].process
        assert process is not None, "faults happen in a mortal world"
        process.wall_seconds += self.seconds


@dataclass(frozen=True, slots=True)
class Ground:
    """Where faults happen: `n` seats, those that are linked, and the seconds by which all is well again."""

    n: int
    links: tuple[tuple[int, int], ...]  # pairs of seats, both ways
    seconds: float = 15.0

    def moment(self, rng: Random) -> float:
        """When a fault begins; most begin early, while there is much under way."""
        return self.seconds * rng.random() ** 2

    def period(self, rng: Random) -> tuple[float, float]:
        """When a fault begins, and ends."""
        at = self.moment(rng)
        return at, min(self.seconds, at + _SHORTEST * (_LONGEST / _SHORTEST) ** rng.random())


def _crash(rng: Random, ground: Ground) -> list[Fault]:
    return [Crash(*ground.period(rng), rng.randrange(ground.n), torn=rng.random() < 0.3)]


def _vanish(rng: Random, ground: Ground) -> list[Fault]:
    return [Crash(*ground.period(rng), rng.randrange(ground.n), silently=True)]


def _cut(rng: Random, ground: Ground) -> list[Fault]:
    at = ground.moment(rng)
    return [Cut(at, at, *rng.choice(ground.links))]


def _partition(rng: Random, ground: Ground) -> list[Fault]:
    size = rng.choice((1, ground.n // 2, rng.randint(1, ground.n - 1)))
    return [Partition(*ground.period(rng), tuple(sorted(rng.sample(range(ground.n), max(1, size)))))]


def _oneway(rng: Random, ground: Ground) -> list[Fault]:
    return [Mute(*ground.period(rng), *rng.choice(ground.links))]


def _delay(rng: Random, ground: Ground) -> list[Fault]:
    return [Lag(*ground.period(rng), *rng.choice(ground.links), 0.01 * 300 ** rng.random())]


def _flip(rng: Random, ground: Ground) -> list[Fault]:
    at = ground.moment(rng)
    return [Corrupt(at, at, *rng.choice(ground.links))]


def _disk(rng: Random, ground: Ground) -> list[Fault]:
    seat = rng.randrange(ground.n)
    if rng.random() < 0.5:
        return [FullDisk(*ground.period(rng), seat)]
    return [SlowDisk(*ground.period(rng), seat, 0.01 * 100 ** rng.random())]


def _rot(rng: Random, ground: Ground) -> list[Fault]:
    """Of a seat that is then killed, or nobody would read the file again."""
    crash = Crash(*ground.period(rng), rng.randrange(ground.n))
    return [crash, Rot(crash.at, crash.at, crash.seat, rng.random())]


def _clock(rng: Random, ground: Ground) -> list[Fault]:
    at = ground.moment(rng)
    return [ClockJump(at, at, rng.randrange(ground.n), rng.choice((-3600.0, -1.0, 600.0, 3600.0)))]


def _swizzle(rng: Random, ground: Ground) -> list[Fault]:
    """Some seats are clogged one by one, and come back in another order."""
    seats = rng.sample(range(ground.n), rng.randint(1, ground.n - 1) if ground.n > 1 else 1)
    since, until = ground.period(rng)
    begins = sorted(rng.uniform(since, (since + until) / 2) for _ in seats)
    ends = [rng.uniform((since + until) / 2, until) for _ in seats]
    return [Clog(at, end, (seat,)) for at, end, seat in zip(begins, ends, seats, strict=True)]


Draw = Callable[[Random, Ground], list[Fault]]
FAULTS: Mapping[str, tuple[float, Draw]] = {  # how often it is drawn, and how
    "crash": (3, _crash),
    "vanish": (1, _vanish),
    "cut": (3, _cut),
    "partition": (2, _partition),
    "oneway": (1, _oneway),
    "delay": (2, _delay),
    "flip": (1, _flip),
    "disk": (1, _disk),
    "rot": (1, _rot),
    "clock": (1, _clock),
    "swizzle": (1, _swizzle),
}


def schedule(seed: int, ground: Ground, kinds: Collection[str] = tuple(FAULTS)) -> tuple[Fault, ...]:
    """Up to six faults of these kinds, in the order in which they begin. Equal arguments draw the same.

    Raises ConfigError for a kind that is not known.
    """
    for kind in kinds:
        if kind not in FAULTS:
            raise ConfigError(f"faults: {kind!r} is no kind of fault; choose some of {', '.join(FAULTS)}")
    rng = Random(f"{seed}/nemesis")
    names = [kind for kind in FAULTS if kind in kinds]
    drawn = rng.choices(names, [FAULTS[kind][0] for kind in names], k=rng.randint(1, _MOST_FAULTS)) if names else []
    faults = [fault for kind in drawn for fault in FAULTS[kind][1](rng, ground)]
    return tuple(sorted(faults, key=lambda fault: (fault.at, fault.until)))


async def haunt(world: World, faults: Sequence[Fault], told: Callable[[Fault, bool], None] | None = None) -> None:
    """Let all of these happen to a world that runs. `told` hears of each as it begins (True) and as it ends."""
    loop = asyncio.get_running_loop()
    turns = [(fault.at, True, fault) for fault in faults] + [(fault.until, False, fault) for fault in faults]
    for due, begins, fault in sorted(turns, key=lambda turn: (turn[0], not turn[1])):
        if due > loop.time():
            await asyncio.sleep(due - loop.time())
        if told is not None:
            told(fault, begins)
        await (fault.begin(world) if begins else fault.end(world))


def shrink(faults: Sequence[Fault], fails: Callable[[Sequence[Fault]], bool]) -> tuple[Fault, ...]:
    """As few of these as still let it fail: none of them can be left out."""
    left = list(faults)
    position = len(left)
    while position:
        position -= 1
        fewer = left[:position] + left[position + 1 :]
        if fails(fewer):
            left, position = fewer, len(fewer)
    return tuple(left)
