"""How many neighbours a client of a secure aggregation has, and how many of their shares it takes to go on without it.

J. Bell, K. Bonawitz, A. Gascón, T. Lepoint, M. Raykova: "Secure Single-Server Aggregation with (Poly)Logarithmic
Overhead", CCS 2020, https://eprint.iacr.org/2020/704. The figures are those of Google's production code
(google/federated-compute, Harary graphs), whose tests are ours.

Deviation: below 20 clients all are neighbours of all.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

from p2pfl.errors import ConfigError, require

__all__ = ["Plan", "Resilience", "hypergeometric_plan", "plan"]

_SECURITY_BITS = 40
_CORRECTNESS_BITS = 20
_COMPLETE_BELOW = 20  # clients
_MOST_TROUBLE = 0.9  # that adversaries and drop-outs may come to


@dataclass(frozen=True, slots=True)
class Resilience:
    """What a secure aggregation is to survive, as shares of its clients."""

    adversaries: float
    """That work together, the coordinator with them."""
    dropouts: float
    """That may be lost in the middle."""
    active: bool
    """Whether the coordinator may break the protocol, too."""


@dataclass(frozen=True, slots=True)
class Plan:
    """`degree` neighbours for each client, and `threshold` shares of its secrets, of the degree + 1 that there are."""

    degree: int
    threshold: int


@lru_cache(maxsize=256)
def plan(n: int, resilience: Resilience) -> Plan:
    """The plan for `n` clients, at least 2. Raises ConfigError where none is both private and likely to succeed.

    >>> plan(10, Resilience(0.05, 0.1, active=True))
    Plan(degree=9, threshold=7)
    """
    require(n >= 2, f"a secure aggregation of {n} clients hides nothing; it takes more")
    if n >= _COMPLETE_BELOW:
        return hypergeometric_plan(n, resilience)
    gamma = resilience.adversaries
    floor = math.ceil((n + gamma * n) / 2) if resilience.active else math.ceil(gamma * n)
    threshold = max(2 * n // 3, floor) + 1
    require(threshold <= n, _infeasible(n, resilience))
    return Plan(n - 1, threshold)


def hypergeometric_plan(n: int, resilience: Resilience) -> Plan:
    """The plan with the smallest even degree for which three things hold, however many clients there are.

    The graph of honest clients that stay is connected, except with probability 2^-40; no client has as many adversaries
    for neighbours as give its secrets away, with the same; and each client keeps enough neighbours, except with 2^-20.
    """
    trouble = resilience.adversaries + resilience.dropouts * (2 if resilience.active else 1)
    require(trouble <= _MOST_TROUBLE, _infeasible(n, resilience))
    logs = [math.lgamma(count + 1) for count in range(n + 1)]  # of factorials
    for degree in range(2, n, 2):
        if _is_connected(n, degree, resilience, logs) and (threshold := _threshold(n, degree, resilience, logs)):
            return Plan(degree, threshold)
    raise ConfigError(_infeasible(n, resilience))


def _is_connected(n: int, degree: int, resilience: Resilience, logs: list[float]) -> bool:
    bad = math.floor(resilience.adversaries * n) + math.floor(resilience.dropouts * n)
    if degree > bad or degree >= n - 1:
        return True
    pairs = math.log(n * (n - degree - 1) / 2)
    cut_off = logs[bad] + logs[n - degree] - logs[n] - logs[bad - degree]
    return pairs + cut_off < -(_SECURITY_BITS + 1) * math.log(2)


def _threshold(n: int, degree: int, resilience: Resilience, logs: list[float]) -> int | None:
    """How many shares it takes; None if what is private is not likely to succeed."""
    adversaries, staying = math.floor(resilience.adversaries * n), math.ceil((1 - resilience.dropouts) * n)
    least = _most_likely_above(n, adversaries, degree, 2.0 ** -(_SECURITY_BITS + 1) / n, logs)
    most = _most_likely_below(n, staying, degree, 2.0**-_CORRECTNESS_BITS / n, logs)
    if resilience.active:  # no two sets of neighbours that could each reveal are without an honest one in common
        least = math.ceil((least + degree - 1.25) / 2)
    return max(least + 1, 2) if most > least else None


def _most_likely_above(n: int, marked: int, drawn: int, rare: float, logs: list[float]) -> int:
    """The least number that more are marked than, of those that are drawn, with no more than this probability."""
    tail = 0.0
    for count in range(min(marked, drawn), -1, -1):
        tail += _probability(n, marked, drawn, count, logs)
        if tail > rare:
            return count
    return 0


def _most_likely_below(n: int, marked: int, drawn: int, rare: float, logs: list[float]) -> int:
    """The least number such that no more are marked, of those that are drawn, with at least this probability."""
    tail = 0.0
    for count in range(min(marked, drawn) + 1):
        tail += _probability(n, marked, drawn, count, logs)
        if tail >= rare:
            return count
    return min(marked, drawn)


def _probability(n: int, marked: int, drawn: int, count: int, logs: list[float]) -> float:
    """That of `drawn` out of `n`, just `count` are of the `marked` ones."""
    if drawn - count > n - marked:
        return 0.0

    def ways(of: int, choose: int) -> float:
        return logs[of] - logs[choose] - logs[of - choose]

    return math.exp(ways(marked, count) + ways(n - marked, drawn - count) - ways(n, drawn))


def _infeasible(n: int, resilience: Resilience) -> str:
    which = " with consistency" if resilience.active else ""
    return (
        f"course.secagg.adversaries = {resilience.adversaries:g} and course.secagg.dropouts = {resilience.dropouts:g} "
        f"are more than {n} clients can bear{which}; lower them, or ask more clients"
    )
