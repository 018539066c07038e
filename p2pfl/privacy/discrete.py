"""What sums of integers with discrete noise cost, whose shares are drawn by the clients: for secure aggregation.

N. Agarwal, P. Kairouz, Z. Liu: "The Skellam Mechanism for Differentially Private Federated Learning", NeurIPS 2021,
corollary 4.1, https://arxiv.org/abs/2110.04995. P. Kairouz, Z. Liu, T. Steinke: "The Distributed Discrete Gaussian
Mechanism for Federated Learning with Secure Aggregation", ICML 2021, theorem 1 and proposition 14,
https://arxiv.org/abs/2102.06387.

All is in the scaled domain: a vector of `dim` numbers is multiplied by `scale`, rounded at random, and what is added to
it are integers. Standard deviations are in that domain, too, unless said otherwise.
"""

from __future__ import annotations

import math

from p2pfl.privacy.rdp import Curve, curve

__all__ = ["BETA", "discrete_gaussian", "honest_share", "rounded_sensitivity", "skellam"]

BETA = math.e**-0.5
"""How likely it is, at most, that a vector is rounded once more since it came out too long."""


def rounded_sensitivity(clip: float, scale: float, dim: int, beta: float = BETA) -> tuple[float, float]:
    """The L1 and the L2 norm that a clipped vector can have once it is scaled and rounded.

    >>> round(rounded_sensitivity(1.0, 1000.0, 4096)[1] / 1000, 9)
    1.001027472
    """
    norm, root = clip * scale, math.sqrt(dim)
    likely = math.sqrt(norm**2 + dim / 4 + math.sqrt(2 * math.log(1 / beta)) * (norm + root / 2))
    l2 = min(norm + root, likely)
    return l2 * min(root, l2), l2


def skellam(l1: float, l2: float, variance: float) -> Curve:
    """Of one sum whose noise has this variance in all: the difference of two Poisson numbers."""

    def cost(order: int) -> float:
        linear = ((2 * order - 1) * l2**2 + 6 * l1) / (4 * variance**2)
        return order * l2**2 / (2 * variance) + min(linear, 3 * l1 / (2 * variance))

    return curve(cost)


def discrete_gaussian(l1: float, l2: float, dim: int, sigma: float, clients: int) -> Curve:
    """Of one sum with a discrete Gaussian from each client, of standard deviation `sigma`: their sum is nearly one."""
    closeness = 10 * math.fsum(math.exp(-2 * math.pi**2 * sigma**2 * k / (k + 1)) for k in range(1, clients))
    total = math.sqrt(clients) * sigma
    one, two = l1 / total, l2 / total

    def cost(order: int) -> float:
        return min(
            order / 2 * two**2 + closeness * dim,
            order / 2 * (two**2 + 2 * one * closeness + closeness**2 * dim),
            order / 2 * (two + math.sqrt(dim) * closeness) ** 2,
        )

    return curve(cost)


def honest_share(variance: float, clients: int, absent: float, dishonest: float) -> float:
    """The variance of each client's noise, if only those add theirs who are neither absent nor dishonest (shares).

    >>> honest_share(10.0, 10, 0.25, 0.25)
    2.0
    """
    return variance / math.ceil((1 - absent - dishonest) * clients - 1e-9)  # 0.7 * 10 is a little more than 7
