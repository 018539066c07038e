"""The figures of a topology that decide whether it suits a run: size, cost per round, and rounds to agreement."""

from __future__ import annotations

import math
from dataclasses import dataclass

from p2pfl.topology.graph import Topology
from p2pfl.topology.mixing import rounds_to, schedule_rounds, schedule_sigma
from p2pfl.topology.schedule import Schedule

__all__ = ["TopologyReport", "describe", "diameter"]

_SAMPLED_ROUNDS = 50  # of a schedule that never repeats


@dataclass(frozen=True, slots=True)
class TopologyReport:
    """What `describe` found.

    For schedules that change, edges and degrees are those of a round, and the diameter is that of all links together.
    """

    family: str
    n: int
    edges: float
    degree_min: int
    degree_mean: float
    degree_max: int
    diameter: int | None  # None if not everybody can be reached
    gap: float  # 1 - σ2, from 0 (never agrees) to 1 (in one round); per round, if rounds differ
    rounds: float  # until a disagreement has shrunk to 1e-3 of itself; infinite if never
    symmetric: bool
    period: int | None  # 1 if all rounds are alike, None if they never repeat

    def rows(self) -> list[tuple[str, str]]:
        """Label and value of each figure, as a table prints them."""
        degree = f"{self.degree_min} / {self.degree_mean:.3g} / {self.degree_max}"
        period = (
            "never repeats" if self.period is None else "fixed" if self.period == 1 else f"repeats after {self.period}"
        )
        return [
            ("family", self.family),
            ("seats", str(self.n)),
            ("edges", f"{self.edges:g}"),
            ("degree min / mean / max", degree),
            ("diameter", "not connected" if self.diameter is None else str(self.diameter)),
            ("spectral gap", f"{self.gap:.4f}"),
            ("rounds to 1e-3", "never" if math.isinf(self.rounds) else f"{self.rounds:g}"),
            ("links", "two-way" if self.symmetric else "one-way"),
            ("rounds", period),
        ]


def describe(schedule: Schedule) -> TopologyReport:
    """Measure a topology or a schedule. O(n³): a second for 1,000 seats.

    >>> describe(Topology.from_edges(3, [(0, 1), (1, 2)])).rows()[3]
    ('degree min / mean / max', '1 / 1.33 / 2')
    """
    shown = [schedule.at(t) for t in range(schedule.period or _SAMPLED_ROUNDS)]
    degrees = [len(others) for topology in shown for others in topology.adjacency]
    periodic_rounds = schedule_rounds(schedule) if schedule.period else None
    sigma = schedule_sigma(schedule)
    return TopologyReport(
        family=schedule.family,
        n=schedule.n,
        edges=sum(len(topology.edges) for topology in shown) / len(shown),
        degree_min=min(degrees),
        degree_mean=sum(degrees) / len(degrees),
        degree_max=max(degrees),
        diameter=diameter(schedule.union),
        gap=1 - sigma,
        rounds=rounds_to(sigma) if periodic_rounds is None else periodic_rounds,
        symmetric=all(topology.is_symmetric for topology in shown),
        period=schedule.period,
    )


def diameter(topology: Topology) -> int | None:
    """Hops between the two seats that are farthest apart; None if some seat cannot be reached from another."""
    everybody = (1 << topology.n) - 1
    reached = [1 << seat for seat in range(topology.n)]  # a bit per seat: whom one reaches within `hops`
    hops = 0
    while any(seats != everybody for seats in reached):
        wider = []
        for seat, seats in enumerate(reached):
            for other in topology.neighbors(seat):
                seats |= reached[other]
            wider.append(seats)
        if wider == reached:
            return None
        reached = wider
        hops += 1
    return hops
