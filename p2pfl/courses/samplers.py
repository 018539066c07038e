"""Whom a round asks, of all who could be asked: at random, by how fast they are, or by how much they have to teach."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from random import Random
from typing import Protocol

import msgspec

from p2pfl.courses.course import RoleState

__all__ = [
    "SAMPLERS",
    "Grouped",
    "Oort",
    "PowerOfChoice",
    "Responsiveness",
    "Sampler",
    "SamplerSpec",
    "Seen",
    "Uniform",
]

SAMPLERS = ("uniform", "responsiveness", "grouped", "power-of-choice", "oort")
_KEPT = "seen"


class Seen(msgspec.Struct, frozen=True, array_like=True):
    """What the server has seen of a client the last time that it asked it."""

    seconds: float
    """From the question to the answer; so long at least, if none came."""
    num_examples: int = 0
    loss: float | None = None
    round: int = 0


class Sampler(Protocol):
    """Draws cohorts. What it learns of clients outlives a restart."""

    lazy: bool
    """Whether it looks at no more clients than it draws, so that there may be millions."""

    def draw(self, seats: Sequence[int], admits: Callable[[int], bool], many: int, rng: Random) -> list[int]:
        """So many of those seats that are admitted, or all of these, if they are fewer."""

    def note(self, seat: int, seen: Seen) -> None:
        """What came of asking a client. Nothing came, if there are no examples."""

    def state(self) -> RoleState:
        """What it has learned. Names of its own: no slashes."""

    def resume(self, state: RoleState) -> None:
        """Go on from there."""


@dataclass(frozen=True, slots=True)
class SamplerSpec:
    """Which sampler, and what it goes by; see the course's settings.

    >>> SamplerSpec("responsiveness", favour="slow").sampler()
    <Responsiveness, 0 clients seen>
    """

    name: str = "uniform"
    favour: str = "fast"
    candidates: float = 2.0
    groups: int = 10

    def sampler(self) -> Sampler:
        """One that has learned nothing yet."""
        match self.name:
            case "responsiveness":
                return Responsiveness(slow=self.favour == "slow")
            case "grouped":
                return Grouped(self.groups)
            case "power-of-choice":
                return PowerOfChoice(self.candidates)
            case "oort":
                return Oort()
        return Uniform()


class Uniform:
    """All are as likely. R. A. Fisher and F. Yates, 1938: at a cost that depends on how many are looked at."""

    lazy = True

    def draw(self, seats: Sequence[int], admits: Callable[[int], bool], many: int, rng: Random) -> list[int]:
        return list(islice(filter(admits, _shuffled(seats, rng)), many))

    def note(self, seat: int, seen: Seen) -> None:
        return None

    def state(self) -> RoleState:
        return {}

    def resume(self, state: RoleState) -> None:
        return None


class _Learning(ABC):
    """Samplers that go by what they have seen. Of who gives nothing, the time is known to be at least that long."""

    lazy = False

    def __init__(self) -> None:
        self.seen: dict[int, Seen] = {}

    def draw(self, seats: Sequence[int], admits: Callable[[int], bool], many: int, rng: Random) -> list[int]:
        return self.choose([seat for seat in seats if admits(seat)], many, rng)

    @abstractmethod
    def choose(self, there: list[int], many: int, rng: Random) -> list[int]:
        """So many of those who are there, or all of them."""

    def note(self, seat: int, seen: Seen) -> None:
        before = self.seen.get(seat)
        if before is not None and not seen.num_examples:
            longer = max(before.seconds, seen.seconds)
            seen = Seen(longer, before.num_examples, before.loss, seen.round)
        self.seen[seat] = seen

    def state(self) -> RoleState:
        return {_KEPT: msgspec.json.encode(self.seen).decode()}

    def resume(self, state: RoleState) -> None:
        self.seen = msgspec.json.decode(str(state[_KEPT]), type=dict[int, Seen])

    def __repr__(self) -> str:
        return f"<{type(self).__name__}, {len(self.seen)} clients seen>"


class Responsiveness(_Learning):
    """The likelier, the faster, or the slower: by the square root of the time that a client takes.

    As FederatedScope does it, which knows to favour the slow only (Y. Xie et al., VLDB 2023,
    https://arxiv.org/abs/2204.05011). Deviation: times are those that were seen; who was never asked counts as one of
    the likeliest.
    """

    def __init__(self, *, slow: bool = False) -> None:
        super().__init__()
        self._power = 0.5 if slow else -0.5

    def choose(self, there: list[int], many: int, rng: Random) -> list[int]:
        weights = {seat: _positive(self.seen[seat].seconds) ** self._power for seat in there if seat in self.seen}
        most = max(weights.values(), default=1.0)
        return _weighted(there, [weights.get(seat, most) for seat in there], many, rng)


class Grouped(_Learning):
    """Clients that are about as fast are asked together, group after group, each client once before any comes again.

    The tiers of Z. Chai et al.: "TiFL: A Tier-based Federated Learning System", HPDC 2020,
    https://arxiv.org/abs/2001.09249, with the groups in a random order, as in FederatedScope. Who was never asked is
    taken for slow; who is away when its turn comes has to wait for the next.
    """

    def __init__(self, groups: int = 10) -> None:
        super().__init__()
        self._groups = groups
        self._turns: list[int] = []  # the next one last

    def choose(self, there: list[int], many: int, rng: Random) -> list[int]:
        left, drawn = set(there), dict[int, None]()
        while len(drawn) < min(many, len(there)):
            if not self._turns:
                self._turns = self._walk(there, rng)
            seat = self._turns.pop()
            if seat in left:
                drawn[seat] = None
        return list(drawn)

    def _walk(self, there: list[int], rng: Random) -> list[int]:
        by_speed = sorted(
            rng.sample(there, len(there)),
            key=lambda seat: self.seen[seat].seconds if seat in self.seen else math.inf,
        )
        size = math.ceil(len(there) / self._groups)
        groups = [by_speed[start : start + size] for start in range(0, len(there), size)]
        rng.shuffle(groups)
        return [seat for group in groups for seat in rng.sample(group, len(group))]

    def state(self) -> RoleState:
        return {**super().state(), "turns": msgspec.json.encode(self._turns).decode()}

    def resume(self, state: RoleState) -> None:
        super().resume(state)
        self._turns = msgspec.json.decode(str(state["turns"]), type=list[int])


class PowerOfChoice(_Learning):
    """Of some candidates, drawn by their numbers of examples, those whose loss is highest.

    Y. J. Cho, J. Wang, G. Joshi: "Towards Understanding Biased Client Selection in Federated Learning", AISTATS 2022,
    https://arxiv.org/abs/2010.01243, in the form rpow-d: the loss is that of the last training. Who was never asked
    comes first, and counts for as many examples as others have on average.
    """

    def __init__(self, candidates: float = 2.0) -> None:
        """`candidates`: so many times as many as are to be asked."""
        super().__init__()
        self._candidates = candidates

    def choose(self, there: list[int], many: int, rng: Random) -> list[int]:
        known = [seen.num_examples for seen in self.seen.values() if seen.num_examples]
        usual = sum(known) / len(known) if known else 1.0
        sizes = [(seat in self.seen and self.seen[seat].num_examples) or usual for seat in there]
        candidates = _weighted(there, sizes, math.ceil(self._candidates * many), rng)
        return sorted(candidates, key=self._loss, reverse=True)[:many]

    def _loss(self, seat: int) -> float:
        seen = self.seen.get(seat)
        return math.inf if seen is None or seen.loss is None else seen.loss


class Oort(_Learning):
    """Clients with much to teach that are fast enough, and some who were never asked.

    F. Lai, X. Zhu, H. V. Madhyastha, M. Chowdhury: "Oort: Efficient Federated Learning via Guided Participant
    Selection", OSDI 2021, https://arxiv.org/abs/2010.06081, algorithm 1 with its constants. Deviations: the statistical
    utility is examples times mean loss, for the root of the mean square that clients do not tell, and counts in units
    of its 95th percentile; the time that is fast enough is a percentile of those seen, as in the authors' code; who was
    never asked is drawn at random, since its speed is not known.
    """

    _CLIP = 0.95  # utilities above this quantile count as that
    _CUTOFF = 0.95  # of the utility of the last who would be taken: who has as much may be drawn
    _PENALTY = 2.0  # the power by which too slow is punished
    _LEAST_EXPLORED, _DECAY = 0.2, 0.98
    _WINDOW = 20  # draws after which the pace is looked at
    _STEP = 0.05  # of the percentile, when there is less to gain at this pace

    def __init__(self) -> None:
        super().__init__()
        self._explore = 0.9
        self._draws = 0
        self._quantile = 0.3
        self._gain, self._gain_before = 0.0, 0.0  # utility that was drawn in this window, and in the last

    def choose(self, there: list[int], many: int, rng: Random) -> list[int]:
        self._draws += 1
        known = [seat for seat in there if seat in self.seen]
        fresh = [seat for seat in there if seat not in self.seen]
        wanted = sum(rng.random() < self._explore for _ in range(many))
        explored = min(len(fresh), max(wanted, many - len(known)))
        self._explore = max(self._LEAST_EXPLORED, self._explore * self._DECAY)
        utility = self._utilities(known)
        drawn = self._exploit(utility, min(len(known), many - explored), rng)
        self._pace(drawn)
        return [*drawn, *rng.sample(fresh, explored)]

    def _exploit(self, utility: dict[int, float], many: int, rng: Random) -> list[int]:
        if not many:
            return []
        ranked = sorted(utility, key=lambda seat: (-utility[seat], seat))
        least = self._CUTOFF * utility[ranked[many - 1]]
        pool = [seat for seat in ranked if utility[seat] >= least]
        return _weighted(pool, [utility[seat] for seat in pool], many, rng)

    def _utilities(self, seats: list[int]) -> dict[int, float]:
        if not seats:
            return {}
        learned = {seat: self._learned(seat) for seat in seats}
        most = _positive(_quantile(learned.values(), self._CLIP))
        fast = _positive(_quantile((seen.seconds for seen in self.seen.values()), self._quantile))
        now = max(seen.round for seen in self.seen.values()) + 1
        found = {}
        for seat in seats:
            seen = self.seen[seat]
            waited = math.sqrt(0.1 * math.log(now) / (seen.round + 1))
            found[seat] = min(1.0, learned[seat] / most) + waited
            if seen.seconds > fast:
                found[seat] *= (fast / seen.seconds) ** self._PENALTY
        return found

    def _learned(self, seat: int) -> float:
        """The statistical utility."""
        seen = self.seen[seat]
        return seen.num_examples * max(0.0, seen.loss or 0.0)

    def _pace(self, drawn: list[int]) -> None:
        """Allow more time once the clients that are fast enough have less to teach than before."""
        self._gain += sum(map(self._learned, drawn))
        if self._draws % self._WINDOW == 0:
            if self._gain < self._gain_before:
                self._quantile = min(1.0, self._quantile + self._STEP)
            self._gain, self._gain_before = 0.0, self._gain

    def state(self) -> RoleState:
        own = {"explore": self._explore, "draws": self._draws, "quantile": self._quantile}
        return {**super().state(), **own, "gain": self._gain, "gain_before": self._gain_before}

    def resume(self, state: RoleState) -> None:
        super().resume(state)
        self._explore, self._draws = float(state["explore"]), int(state["draws"])
        self._quantile = float(state["quantile"])
        self._gain, self._gain_before = float(state["gain"]), float(state["gain_before"])


def _shuffled(seats: Sequence[int], rng: Random) -> Iterator[int]:
    """All seats in a random order, at a cost that depends on how many are taken."""
    moved: dict[int, int] = {}  # the places that hold another seat by now
    for left in range(len(seats), 0, -1):
        place = rng.randrange(left)
        yield seats[moved.get(place, place)]
        moved[place] = moved.pop(left - 1, left - 1)


def _weighted(seats: Sequence[int], weights: Sequence[float], many: int, rng: Random) -> list[int]:
    """So many, drawn one after the other by weight: P. S. Efraimidis and P. G. Spirakis, 2006.

    The smallest of exponential times with these rates are drawn just so. Who has no weight comes last.
    """
    times = {
        seat: rng.expovariate(1.0) / weight if weight > 0 else math.inf
        for seat, weight in zip(seats, weights, strict=True)
    }
    return sorted(seats, key=times.__getitem__)[:many]


def _quantile(values: Iterable[float], share: float) -> float:
    ranked = sorted(values)
    return ranked[min(len(ranked) - 1, int(share * len(ranked)))]


def _positive(value: float) -> float:
    return max(value, 1e-9)
