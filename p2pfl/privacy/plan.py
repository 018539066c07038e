"""What a course's rounds cost, before the first: how much noise there is, and what each round is charged with."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from p2pfl.errors import require
from p2pfl.privacy.gaussian import mu_for
from p2pfl.privacy.spec import PrivacySpec
from p2pfl.privacy.spent import Spent
from p2pfl.privacy.tree import sensitivity_squared

__all__ = ["Plan", "plan_of"]


@dataclass(frozen=True, slots=True)
class Plan:
    """Of one node. `unit` has for each round the mu² that it costs where the noise multiplier is 1."""

    spec: PrivacySpec
    multiplier: float
    delta: float
    unit: tuple[float, ...]
    participations: int
    """Rounds that it takes part in at most."""

    def cost(self, round: int, before: int) -> Spent:
        """What a round (from 0) costs a node that has taken part `before` times in this run.

        The nodes of a tree are shared by the rounds: all that is allowed is paid for with the first.
        """
        if self.spec.mechanism == "tree":
            return self.total if before == 0 else Spent()
        return Spent(self.unit[round] / self.multiplier**2)

    @property
    def total(self) -> Spent:
        """What the whole run costs at most."""
        return Spent(_dearest(self.spec, self.unit, self.participations) / self.multiplier**2)


def plan_of(spec: PrivacySpec, nodes: int, units: Sequence[tuple[float, ...]]) -> list[Plan]:
    """The plans of all nodes; they share the noise multiplier with which even the one that is worst off is safe.

    `nodes`: how many hold data; `units`: for each, and each round, the mu² at a noise multiplier of 1.

    Raises ConfigError where no noise does it, or the budget is too small.
    """
    delta = spec.delta or nodes**-1.1
    small = f"privacy.delta is {delta:g}; it must be less than one in the number of nodes, which is {nodes}"
    require(delta < 1 / nodes, small)
    rounds = len(units[0])
    participations = min(spec.participations or rounds, rounds)
    worst = max(_dearest(spec, unit, participations) for unit in units)
    multiplier = spec.noise_multiplier or math.sqrt(worst) / mu_for(spec.epsilon, delta)
    plans = [Plan(spec, multiplier, delta, unit, participations) for unit in units]
    total = Spent(worst / multiplier**2).epsilon(delta)
    require(
        not spec.epsilon_max or total <= spec.epsilon_max * (1 + 1e-9),
        f"privacy.epsilon_max is {spec.epsilon_max:g}, and {participations} rounds would make epsilon {total:.4g} at "
        f"delta {delta:.3g}; add noise, take part in fewer rounds, or raise it",
    )
    return plans


def _dearest(spec: PrivacySpec, unit: tuple[float, ...], participations: int) -> float:
    """The most that so many of these rounds cost where the noise multiplier is 1."""
    if spec.mechanism == "tree":
        return spec.sensitivity**2 * sensitivity_squared(len(unit), participations)
    return math.fsum(sorted(unit, reverse=True)[:participations])
