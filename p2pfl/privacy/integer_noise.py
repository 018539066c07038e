"""Noise that is an integer: for sums in a ring, and where floats are not to be trusted.

The discrete Gaussian is exact, in integer arithmetic only: C. Canonne, G. Kamath, T. Steinke: "The Discrete Gaussian
for Differential Privacy", NeurIPS 2020, algorithms 1 to 3, https://arxiv.org/abs/2004.00010; here for many numbers at a
time, and for variances that are integers. Skellam noise is the difference of two Poisson numbers, which are looked up
in a table of their distribution; the table is off by less than 1e-12 in all.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from p2pfl.privacy.noise import Source, uniform

__all__ = ["MOST_TABLED", "MOST_VARIANCE", "discrete_gaussian", "reach", "skellam"]

MOST_VARIANCE = 1 << 24
"""Beyond, squares do not fit into 64 bits."""

MOST_TABLED = 1 << 32
"""Beyond, the table of a distribution takes more than 10 MB."""

Integers = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]

_TAIL = 10.0  # standard deviations that the table goes to either side of the mean


def discrete_gaussian(source: Source, numel: int, variance: int) -> Tensor:
    """Integers x with probability proportional to exp(-x² / (2 variance)), (numel,), int64.

    Raises ValueError for a variance below 1 or beyond MOST_VARIANCE.
    """
    if not 1 <= variance <= MOST_VARIANCE:
        raise ValueError(f"the variance is {variance}; it must lie in [1, {MOST_VARIANCE}]")
    scale = math.isqrt(variance) + 1
    found = np.empty(0, dtype=np.int64)
    while len(found) < numel:
        drawn = _laplace(source, 2 * (numel - len(found)) + 16, scale)
        off = np.abs(drawn) * scale - variance
        kept = drawn[_chance_of_exp(source, off * off, np.full(len(off), 2 * variance * scale * scale))]
        found = np.concatenate((found, kept))
    return torch.from_numpy(found[:numel].copy())


def skellam(source: Source, numel: int, variance: float) -> Tensor:
    """Integers with a Skellam distribution of mean 0, (numel,), int64. Those of several sources add up to one.

    Raises ValueError for a variance that is not above 0, or beyond MOST_TABLED.
    """
    if not 0 < variance <= MOST_TABLED:
        raise ValueError(f"the variance is {variance}; it must lie in (0, {MOST_TABLED}]")
    table, first = _poisson_table(variance / 2)
    counts = np.searchsorted(table, uniform(source, 2 * numel).numpy(), side="right") + first
    return torch.from_numpy((counts[:numel] - counts[numel:]).astype(np.int64))


def reach(variance: float) -> int:
    """How far from 0 `skellam` goes at most."""
    return 2 * _reach(variance / 2)


def _reach(rate: float) -> int:
    """How far from its mode the table of a Poisson number goes."""
    return math.ceil(_TAIL * math.sqrt(rate)) + 40


@lru_cache(maxsize=4)
def _poisson_table(rate: float) -> tuple[npt.NDArray[np.float64], int]:
    """P(x <= first), P(x <= first + 1), ... of a Poisson number, but for the last; by ratios from its mode."""
    mode, most = math.floor(rate), _reach(rate)
    first = max(0, mode - most)
    below = np.cumprod(np.arange(mode, first, -1) / rate)[::-1]
    above = np.cumprod(rate / np.arange(mode + 1, mode + most + 1))
    weights = np.concatenate((below, [1.0], above))
    return np.cumsum(weights / math.fsum(weights))[:-1], first


def _laplace(source: Source, count: int, scale: int) -> Integers:
    """At most `count` integers x with probability proportional to exp(-|x| / scale); what is rejected is not there."""
    rest = _below(source, np.full(count, scale))
    rest = rest[_chance_of_exp(source, rest, np.full(count, scale))]
    whole = np.zeros(len(rest), dtype=np.int64)
    going = np.arange(len(rest))
    while len(going):
        going = going[_chance_of_exp_one(source, len(going))]
        whole[going] += 1
    size: Integers = rest + scale * whole
    negative = _below(source, np.full(len(size), 2)) == 1
    size[negative] *= -1
    kept: Integers = size[~(negative & (size == 0))]  # or 0 would come twice as often
    return kept


def _chance_of_exp(source: Source, over: Integers, under: Integers) -> Flags:
    """True with probability exp(-over / under) each."""
    lives = np.ones(len(over), dtype=np.bool_)
    whole = over // under
    left = np.flatnonzero(whole)
    while len(left):
        lives[left] = _chance_of_exp_one(source, len(left))
        whole[left] -= 1
        left = left[lives[left] & (whole[left] > 0)]
    at = np.flatnonzero(lives)
    lives[at] = _chance_of_exp_small(source, over[at] % under[at], under[at])
    return lives


def _chance_of_exp_one(source: Source, count: int) -> Flags:
    one = np.ones(count, dtype=np.int64)
    return _chance_of_exp_small(source, one, one)


def _chance_of_exp_small(source: Source, over: Integers, under: Integers) -> Flags:
    """The same where over <= under: whether the first k at which a chance of over / (under k) fails is odd."""
    odd = np.zeros(len(over), dtype=np.bool_)
    going, k = np.arange(len(over)), 1
    while len(going):
        lives = _below(source, under[going] * k) < over[going]
        odd[going[~lives]] = k % 2 == 1
        going, k = going[lives], k + 1
    return odd


def _below(source: Source, bounds: Integers) -> Integers:
    """Uniform integers from 0 to below each bound."""
    limits = bounds.astype(np.uint64)
    found = np.empty(len(bounds), dtype=np.int64)
    left = np.arange(len(bounds))
    while len(left):
        words = np.frombuffer(source.draw(8 * len(left)), dtype="<u8")
        most = np.uint64(2**64 - 1) // limits[left] * limits[left]  # a multiple of the bound: what is beyond is biased
        fair = words < most
        found[left[fair]] = (words[fair] % limits[left[fair]]).astype(np.int64)
        left = left[~fair]
    return found
