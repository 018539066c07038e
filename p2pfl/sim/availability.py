"""When nodes are online: time after time at random, with more of them at night if so wished, or as a file says."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

import msgspec

from p2pfl.errors import ConfigError, require

__all__ = ["Availability", "AvailabilitySpec", "Spell"]

Spell = tuple[bool, float]
"""Whether a node is online, and until when in seconds of virtual time."""
_DAY = 86_400.0
_NIGHT_HOUR = 2.0  # when most come online, if the hours differ
_FOR_EVER: Spell = (True, math.inf)
_COLUMNS = ["seat", "seconds", "online"]


@dataclass(frozen=True, slots=True)
class AvailabilitySpec:
    """The table [availability] of a course file; it is for simulation only. Who coordinates stays online."""

    online_seconds: float = 0.0
    """Mean time for which a node is online; 0: for ever."""
    offline_seconds: float = 0.0
    """Mean time for which it is offline then, and loses its links and what it computes; 0: it is never."""
    day_swing: float = 0.0
    """By this share nodes come back likelier at 2 o'clock, and unlikelier at 14 o'clock; 0: the hours are alike."""
    start_hour: float = 0.0
    """Hour of the day at which the simulation begins."""
    trace: str = ""
    """A file that says who is online when: rows `seat,seconds,online` (.csv), or objects with these keys (.jsonl)."""

    def __post_init__(self) -> None:
        for name in ("online_seconds", "offline_seconds"):
            value = getattr(self, name)
            require(0 <= value < math.inf, f"availability.{name} is {value}; it must be a number that is not negative")
        require(
            (self.online_seconds > 0) == (self.offline_seconds > 0),
            f"availability.online_seconds is {self.online_seconds} and availability.offline_seconds is "
            f"{self.offline_seconds}; give both, or none",
        )
        require(0 <= self.day_swing <= 1, f"availability.day_swing is {self.day_swing}; it must lie between 0 and 1")
        require(
            0 <= self.start_hour < 24, f"availability.start_hour is {self.start_hour}; it must be at least 0, below 24"
        )
        require(
            not self.trace or Path(self.trace).suffix in _READERS,
            f"availability.trace is {self.trace!r}; it must be a file whose name ends in {' or '.join(_READERS)}",
        )


class Availability:
    """Who of a world is online when. Each seat has a fate of its own, which depends on the seed only."""

    def __init__(self, spec: AvailabilitySpec, seed: int, n: int, coordinators: Container[int] = ()) -> None:
        """`coordinators` stay online unless the file says otherwise. Raises ConfigError for a file that cannot be."""
        self._spec = spec
        self._seed = seed
        self._coordinators = coordinators
        self._traced = _read(Path(spec.trace), n) if spec.trace else {}

    @property
    def quiet_seconds(self) -> float:
        """How long it may be quiet in a world that goes on later."""
        traced = max((rows[-1][0] for rows in self._traced.values()), default=0.0)
        spec = self._spec
        return traced + 10 * spec.offline_seconds + (_DAY if spec.day_swing else 0)

    @property
    def moves_any(self) -> bool:
        """Whether anybody is ever offline."""
        return bool(self._traced) or self._spec.online_seconds > 0

    def moves(self, seat: int) -> bool:
        """Whether this seat is ever offline."""
        return seat in self._traced or (self._spec.online_seconds > 0 and seat not in self._coordinators)

    def spells(self, seat: int) -> Iterator[Spell]:
        """The seat's times online and offline, from second 0 on; the last one, if any, lasts for ever."""
        if seat in self._traced:
            return _as_traced(self._traced[seat])
        return self._drawn(seat) if self.moves(seat) else iter((_FOR_EVER,))

    def online(self, seat: int, seconds: float) -> bool:
        """Whether it is online then."""
        return next(online for online, until in self.spells(seat) if until > seconds)

    def _drawn(self, seat: int) -> Iterator[Spell]:
        """Exponential times. The first is drawn as if this had gone on for long."""
        spec, rng, now = self._spec, Random(f"{self._seed}/availability/{seat}"), 0.0
        back, away = self._rate(now) / spec.offline_seconds, 1 / spec.online_seconds
        online = rng.random() < back / (back + away)
        while True:
            now += rng.expovariate(1 / spec.online_seconds) if online else self._absence(rng, now)
            yield online, now
            online = not online

    def _absence(self, rng: Random, since: float) -> float:
        """Thinning: P. A. W. Lewis and G. S. Shedler, "Simulation of Nonhomogeneous Poisson Processes by Thinning",
        Naval Research Logistics Quarterly 26(3), 1979.
        """
        most, now = 1 + self._spec.day_swing, since
        while True:
            now += rng.expovariate(most / self._spec.offline_seconds)
            if rng.random() * most <= self._rate(now):
                return now - since

    def _rate(self, seconds: float) -> float:
        """How likely it is to come back at this time of day, in relation to the mean."""
        hours = seconds / 3600 + self._spec.start_hour - _NIGHT_HOUR
        return 1 + self._spec.day_swing * math.cos(2 * math.pi * hours / 24)


_Rows = list[tuple[float, bool]]


def _as_traced(rows: Sequence[tuple[float, bool]]) -> Iterator[Spell]:
    online = True
    for seconds, changed in rows:
        if changed != online:
            yield online, seconds
            online = changed
    yield online, math.inf


class _Row(msgspec.Struct, forbid_unknown_fields=True):
    """A change: from then on this seat is online, or is not."""

    seat: int
    seconds: float
    online: bool


def _read(path: Path, n: int) -> Mapping[int, _Rows]:
    """The rows of each seat. A seat is online before its first row, and stays as it is after its last."""
    found: defaultdict[int, _Rows] = defaultdict(list)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"availability.trace: {path} cannot be read ({error}); give a file that exists") from error
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or (number == 1 and line.split(",") == _COLUMNS):
            continue
        where = f"availability.trace: line {number} of {path}"
        try:
            row = _READERS[path.suffix](line)
        except (msgspec.DecodeError, ValueError, TypeError) as error:
            raise ConfigError(f"{where} is {line[:50]!r}; it must hold {', '.join(_COLUMNS)}: {error}") from error
        _check(row, found, n, where)
        found[row.seat].append((row.seconds, row.online))
    return dict(found)


def _from_csv(line: str) -> _Row:
    values = dict(zip(_COLUMNS, (cell.strip().lower() for cell in line.split(",")), strict=True))
    return msgspec.convert(values, _Row, strict=False)


def _from_json(line: str) -> _Row:
    return msgspec.json.decode(line, type=_Row)


_READERS: Mapping[str, Callable[[str], _Row]] = {".csv": _from_csv, ".jsonl": _from_json}


def _check(row: _Row, before: Mapping[int, _Rows], n: int, where: str) -> None:
    require(0 <= row.seat < n, f"{where} names seat {row.seat}; the course has the seats 0 to {n - 1}")
    require(0 <= row.seconds < math.inf, f"{where} is at {row.seconds} s; it must not be before the beginning")
    earlier = before[row.seat][-1][0] if row.seat in before else 0.0
    require(row.seconds >= earlier, f"{where} is at {row.seconds} s, before an earlier line of its seat; sort them")
