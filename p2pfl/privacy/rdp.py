"""Rényi differential privacy at integer orders: what rounds of noise cost together, whatever the kind of noise.

I. Mironov: "Rényi Differential Privacy", CSF 2017, https://arxiv.org/abs/1702.07476. The sampled Gaussian: I. Mironov,
K. Talwar, L. Zhang: "Rényi Differential Privacy of the Sampled Gaussian Mechanism", 2019,
https://arxiv.org/abs/1908.10530. To (epsilon, delta): C. Canonne, G. Kamath, T. Steinke: "The Discrete Gaussian for
Differential Privacy", NeurIPS 2020, proposition 12, https://arxiv.org/abs/2004.00010.

A curve has a number for each of ORDERS. Curves of mechanisms that follow each other add up.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from p2pfl.privacy.gaussian import smallest

__all__ = ["ORDERS", "Curve", "curve", "epsilon", "gaussian", "noise_multiplier", "sampled_gaussian"]

ORDERS = range(2, 257)

Curve = tuple[float, ...]


def curve(at: Callable[[int], float]) -> Curve:
    """The curve of what a mechanism costs at one order."""
    return tuple(at(order) for order in ORDERS)


def gaussian(mu: float) -> Curve:
    """Of a Gaussian mechanism whose sensitivity is `mu` times its standard deviation."""
    return curve(lambda order: order * mu * mu / 2)


def sampled_gaussian(rate: float, sigma: float) -> Curve:
    """Of one round of the Gaussian mechanism on a secret Poisson sample: each takes part with probability `rate`.

    `sigma`: the noise multiplier. Adding or removing one. It holds for no other way to draw a cohort.

    log(1 + excess) / (order - 1), excess = sum_k C(order, k) (1 - q)^(order - k) q^k (e^((k² - k) / 2σ²) - 1): the
    published sum is 1 + excess, since the binomial terms sum to one. In this form nothing cancels at small rates.
    """
    if not 0 < rate <= 1 or sigma <= 0:
        raise ValueError(f"rate is {rate} and sigma {sigma}; they must lie in (0, 1] and above 0")
    if rate == 1:
        return gaussian(1 / sigma)
    order, k = np.array(ORDERS, dtype=float)[:, None], np.array(ORDERS, dtype=float)  # at k = 0 and 1, terms are zero
    exponent = (k * k - k) / (2 * sigma * sigma)
    terms = _log_binomials() + (order - k) * math.log1p(-rate) + k * math.log(rate)
    excess = np.logaddexp.reduce(terms + exponent + np.log(-np.expm1(-exponent)), axis=1)
    return tuple((np.logaddexp(0.0, excess) / (order[:, 0] - 1)).tolist())


@lru_cache(maxsize=1)
def _log_binomials() -> npt.NDArray[np.float64]:
    """log C(order, k) at [order, k], both from ORDERS: minus infinity where k is beyond the order."""
    rows = [[math.log(math.comb(order, k)) if k <= order else -math.inf for k in ORDERS] for order in ORDERS]
    return np.array(rows)


def epsilon(spent: Sequence[float], delta: float, orders: Sequence[float] = ORDERS) -> tuple[float, float]:
    """The smallest epsilon that follows from a curve, and the order that gives it.

    >>> round(epsilon(gaussian(1.0), 1e-5)[0], 9)
    4.752728337
    """
    candidates = (
        (cost + math.log1p(-1 / order) - (math.log(delta) + math.log(order)) / (order - 1), order)
        for cost, order in zip(spent, orders, strict=True)
    )
    least, order = min(candidates)
    return max(0.0, least), order


def noise_multiplier(target: float, delta: float, rounds: int, rate: float) -> float:
    """The smallest one with which so many rounds of the sampled Gaussian cost no more than epsilon = `target`."""
    return smallest(
        lambda sigma: epsilon([rounds * cost for cost in sampled_gaussian(rate, sigma)], delta)[0] <= target
    )
