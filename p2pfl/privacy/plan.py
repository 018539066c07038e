"""What a course's rounds cost, before the first: how much noise there is, and what each round is charged with."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from p2pfl.errors import require
from p2pfl.privacy.distributed import Distributed
from p2pfl.privacy.gaussian import mu_for
from p2pfl.privacy.spec import PrivacySpec
from p2pfl.privacy.spent import Spent
from p2pfl.privacy.tree import sensitivity_squared

__all__ = ["Plan", "plan_of", "shared_plan"]

_FINER = 1.01  # a step of the noise multiplier, where it is found by trying
_MOST_EXCESS = 4.0  # of it over that of Gaussian noise


@dataclass(frozen=True, slots=True)
class Plan:
    """Of one node. `unit` has for each round the mu² that it costs where the noise multiplier is 1."""

    spec: PrivacySpec
    multiplier: float
    delta: float
    unit: tuple[float, ...]
    participations: int
    """Rounds that it takes part in at most."""
    each: Spent | None = None
    """What every round costs, where that is no mu²; `unit` is not used then."""

    def cost(self, round: int, before: int) -> Spent:
        """What a round (from 0) costs a node that has taken part `before` times in this run.

        The nodes of a tree are shared by the rounds: all that is allowed is paid for with the first.
        """
        if self.spec.mechanism == "tree":
            return self.total if before == 0 else Spent()
        if self.each is not None:
            return self.each
        return Spent(self.unit[round] / self.multiplier**2)

    @property
    def total(self) -> Spent:
        """What the whole run costs at most."""
        if self.each is not None:
            return self.each * self.participations
        return Spent(_dearest(self.spec, self.unit, self.participations) / self.multiplier**2)


def plan_of(spec: PrivacySpec, nodes: int, units: Sequence[tuple[float, ...]]) -> list[Plan]:
    """The plans of all nodes; they share the noise multiplier with which even the one that is worst off is safe.

    `nodes`: how many hold data; `units`: for each, and each round, the mu² at a noise multiplier of 1.

    Raises ConfigError where no noise does it, or the budget is too small.
    """
    delta = _delta(spec, nodes)
    rounds = len(units[0])
    participations = min(spec.participations or rounds, rounds)
    worst = max(_dearest(spec, unit, participations) for unit in units)
    multiplier = spec.noise_multiplier or math.sqrt(worst) / mu_for(spec.epsilon, delta)
    plans = [Plan(spec, multiplier, delta, unit, participations) for unit in units]
    _check_total(spec, Spent(worst / multiplier**2), participations, delta)
    return plans


def shared_plan(spec: PrivacySpec, nodes: int, rounds: int, noise: Callable[[float], Distributed]) -> Plan:
    """The plan of every node where all add shares of noise to a sum. `noise`: with this noise multiplier.

    The multiplier is found to 1 percent, and has 6 digits, so that all hosts find the same. Raises ConfigError as
    `plan_of` does, and as `noise`.
    """
    delta, participations = _delta(spec, nodes), min(spec.participations or rounds, rounds)

    def whole(multiplier: float) -> Plan:
        each = noise(multiplier).cost(spec.sensitivity)
        return Plan(spec, multiplier, delta, (), participations, each)

    if spec.noise_multiplier:
        found = whole(spec.noise_multiplier)
    else:  # it costs no less than Gaussian noise
        found = whole(_six_digits(spec.sensitivity * math.sqrt(participations) / mu_for(spec.epsilon, delta)))
        most = _MOST_EXCESS * found.multiplier
        while found.total.epsilon(delta) > spec.epsilon:
            found = whole(_six_digits(found.multiplier * _FINER))
            require(
                found.multiplier < most,
                f"privacy.epsilon is {spec.epsilon:g}, and roundings alone cost more; raise course.secagg.bits",
            )
    _check_total(spec, found.total, participations, delta)
    return found


def _six_digits(number: float) -> float:
    return float(f"{number:.5e}")


def _delta(spec: PrivacySpec, nodes: int) -> float:
    delta = spec.delta or nodes**-1.1
    small = f"privacy.delta is {delta:g}; it must be less than one in the number of nodes, which is {nodes}"
    require(delta < 1 / nodes, small)
    return delta


def _check_total(spec: PrivacySpec, total: Spent, participations: int, delta: float) -> None:
    """Raise ConfigError where the rounds together cost more than is allowed."""
    epsilon = total.epsilon(delta)
    require(
        not spec.epsilon_max or epsilon <= spec.epsilon_max * (1 + 1e-9),
        f"privacy.epsilon_max is {spec.epsilon_max:g}, and {participations} rounds would make epsilon {epsilon:.4g} at "
        f"delta {delta:.3g}; add noise, take part in fewer rounds, or raise it",
    )


def _dearest(spec: PrivacySpec, unit: tuple[float, ...], participations: int) -> float:
    """The most that so many of these rounds cost where the noise multiplier is 1."""
    if spec.mechanism == "tree":
        return spec.sensitivity**2 * sensitivity_squared(len(unit), participations)
    return math.fsum(sorted(unit, reverse=True)[:participations])
