"""Numbers that are drawn once from a seed and a name, in any order: no generator has to be kept for them."""

from __future__ import annotations

import hashlib
from math import exp
from statistics import NormalDist

__all__ = ["lognormal", "uniform"]


def uniform(*what: object) -> float:
    """A number between 0 and 1, both excluded. Equal arguments draw the same.

    >>> uniform(7, "latency", "a", "b") == uniform(7, "latency", "a", "b") != uniform(8, "latency", "a", "b")
    True
    """
    digest = hashlib.blake2b("/".join(map(str, what)).encode(), digest_size=8).digest()
    return ((int.from_bytes(digest) >> 12) + 0.5) / 2**52


def lognormal(deviation: float, *what: object) -> float:
    """A factor whose logarithm has mean 0 and this standard deviation."""
    return exp(deviation * NormalDist().inv_cdf(uniform(*what))) if deviation else 1.0
