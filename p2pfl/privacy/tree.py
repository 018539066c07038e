"""Sums over rounds with noise by the nodes of a binary tree: DP-FTRL, which needs no sampling to be private.

P. Kairouz, B. McMahan, S. Song, O. Thakkar, A. Thakurta, Z. Xu: "Practical and Private (Deep) Learning without Sampling
or Shuffling", ICML 2021, https://arxiv.org/abs/2103.00039; the tree: C. Dwork, M. Naor, T. Pitassi, G. Rothblum:
"Differential Privacy under Continual Observation", STOC 2010.

The sum of rounds 0 .. t is released with one draw for each node of the tree that is in the binary expansion of t + 1.
A client is in one node of each level for each round that it takes part in.

Deviation: the plain estimate, not Honaker's.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from p2pfl.privacy.noise import Source, gaussian

__all__ = ["Tree", "sensitivity_squared"]


def sensitivity_squared(rounds: int, participations: int = 1, apart: int = 1) -> float:
    """How much a client with updates of norm 1 can change all nodes of the tree together, squared: an upper bound.

    It takes part at most `participations` times, any two of them at least `apart` rounds from each other. In one level,
    it is worst where as many as fit are in the same node.

    >>> sensitivity_squared(1000)
    10.0
    """
    total = 0.0
    for level in range(math.ceil(math.log2(rounds + 1))):
        most = min(participations, math.ceil(2**level / apart))
        nodes, rest = divmod(min(participations, math.ceil(rounds / apart)), most)
        total += nodes * most**2 + rest**2
    return total


class Tree:
    """The noise in the sum of the rounds so far, a step at a time. Its draws are never more than one for each level."""

    def __init__(self, numel: int, sigma: float) -> None:
        """`sigma`: the standard deviation in a node."""
        self._numel = numel
        self._sigma = sigma
        self._levels: dict[int, Tensor] = {}  # of the nodes that the present sum is made of
        self.rounds = 0

    def step(self, source: Source) -> Tensor:
        """What is to be added to the next round's sum, float64: the change of the noise in the total."""
        before = self._total()
        level = ((self.rounds + 1) & -(self.rounds + 1)).bit_length() - 1  # the only node that is new
        self._levels = {each: draw for each, draw in self._levels.items() if each > level}
        self._levels[level] = gaussian(source, self._numel, self._sigma)
        self.rounds += 1
        return self._total() - before

    def _total(self) -> Tensor:
        total = torch.zeros(self._numel, dtype=torch.float64)
        for draw in self._levels.values():
            total += draw
        return total
