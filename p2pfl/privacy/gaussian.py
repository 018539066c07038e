"""The Gaussian mechanism, exactly: (epsilon, delta) from mu, its sensitivity over its standard deviation, and back.

B. Balle, Y.-X. Wang: "Improving the Gaussian Mechanism for Differential Privacy: Analytical Calibration and Optimal
Denoising", ICML 2018, https://arxiv.org/abs/1805.06530. Mechanisms that follow each other, each of which may look at
what came before, are together one whose mu² is the sum of theirs: J. Dong, A. Roth, W. Su: "Gaussian Differential
Privacy", JRSS B 84 (2022), corollary 3.3, https://arxiv.org/abs/1905.02383.
"""

from __future__ import annotations

import math
from collections.abc import Callable

__all__ = ["delta_of", "epsilon_of", "mu_for", "noise_multiplier", "smallest"]

_FAR = -30.0  # below, the tail of the normal distribution is taken from its expansion
_STEPS = 200  # of a bisection: more than a float has bits


def delta_of(mu: float, epsilon: float) -> float:
    """The smallest delta that goes with an epsilon.

    >>> round(delta_of(1.0, 4.377178), 9)
    1e-05
    """
    if mu == 0:
        return 0.0
    return _normal(mu / 2 - epsilon / mu) - math.exp(epsilon + _log_normal(-mu / 2 - epsilon / mu))


def epsilon_of(mu: float, delta: float) -> float:
    """The smallest epsilon that goes with a delta in (0, 1); infinite where mu is.

    >>> round(epsilon_of(1.0, 1e-5), 6)
    4.377178
    """
    if not 0 < delta < 1:
        raise ValueError(f"delta is {delta}; it must lie in (0, 1)")
    if math.isinf(mu):
        return math.inf
    if delta_of(mu, 0.0) <= delta:
        return 0.0
    return smallest(lambda epsilon: delta_of(mu, epsilon) <= delta)


def mu_for(epsilon: float, delta: float) -> float:
    """The largest mu with (epsilon, delta)."""
    return 1 / smallest(lambda sigma: delta_of(1 / sigma, epsilon) <= delta)


def noise_multiplier(epsilon: float, delta: float, rounds: int) -> float:
    """The smallest one with which so many rounds, in each of which everybody takes part, have (epsilon, delta).

    >>> round(noise_multiplier(4.0, 1e-6, 100), 4)
    11.9352
    """
    return math.sqrt(rounds) / mu_for(epsilon, delta)


def smallest(holds: Callable[[float], bool]) -> float:
    """The smallest positive number for which something holds that holds for all larger ones: never less than that."""
    low, high = 0.0, 1.0
    while not holds(high):
        low, high = high, 2 * high
        if math.isinf(high):
            raise ValueError("it holds for no number")
    for _ in range(_STEPS):
        middle = (low + high) / 2
        if middle in (low, high):
            break
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high


def _normal(x: float) -> float:
    """The distribution function of the standard normal."""
    return math.erfc(-x / math.sqrt(2)) / 2


def _log_normal(x: float) -> float:
    """Its logarithm, also where it is too small for a float."""
    if x > _FAR:
        return math.log(_normal(x))
    inverse = 1 / (x * x)
    return -x * x / 2 - math.log(-x) - math.log(2 * math.pi) / 2 + math.log1p(-inverse + 3 * inverse * inverse)
