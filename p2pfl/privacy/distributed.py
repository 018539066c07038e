"""Updates as integers with a share of discrete noise, whose sum in a ring is differentially private: distributed DP.

N. Agarwal, P. Kairouz, Z. Liu: "The Skellam Mechanism for Differentially Private Federated Learning", NeurIPS 2021,
https://arxiv.org/abs/2110.04995; rotation, scaling and conditional rounding as in P. Kairouz, Z. Liu, T. Steinke: "The
Distributed Discrete Gaussian Mechanism for Federated Learning with Secure Aggregation", ICML 2021,
https://arxiv.org/abs/2102.06387.

    client    clip, rotate by random signs and Walsh and Hadamard, scale, round at random, add Skellam noise
    sum       of the integers, modulo 2^bits: by secure aggregation, so that nobody sees less than the whole
    server    back to numbers about zero, scale and rotate back

A client's own noise is too little to protect it alone; only those are counted on who are there and honest. Deviation: a
rounded vector that is too long is rounded anew until it is not, as in the paper; its length is that of the rotated one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from p2pfl.errors import require
from p2pfl.privacy.clipping import clipped
from p2pfl.privacy.discrete import honest_share, rounded_sensitivity, skellam
from p2pfl.privacy.integer_noise import MOST_TABLED
from p2pfl.privacy.integer_noise import skellam as skellam_noise
from p2pfl.privacy.noise import Keyed, Source, uniform
from p2pfl.privacy.spent import Spent

__all__ = ["Distributed", "rotated"]

_DEVIATIONS = 4.0  # of a sum's entries that the ring has room for


@dataclass(frozen=True, slots=True)
class Distributed:
    """How the updates of so many clients, of `numel` numbers each, become integers and back.

    `multiplier`: of the noise in the sum of those who are counted on, as a multiple of `clip`. `absent`, `dishonest`:
    shares of the clients who are not.
    """

    numel: int
    clients: int
    clip: float
    multiplier: float
    bits: int = 20
    absent: float = 0.1
    dishonest: float = 0.1

    def __post_init__(self) -> None:
        require(self.absent + self.dishonest < 1, "nobody is counted on to add noise; lower the share of the absent")
        coarse = f"{self.clients} clients do not fit into {self.bits} bits; take more bits"
        require(self.scale * self.clip >= 1, coarse)
        fine = self.local_variance * self.scale**2 <= MOST_TABLED
        require(fine, f"noise in {self.bits} bits takes tables that are too large; take fewer bits")

    @property
    def dim(self) -> int:
        """Integers of an update: the next power of two."""
        return 1 << max(self.numel - 1, 0).bit_length()

    @property
    def local_variance(self) -> float:
        """Of one client's share of the noise, before scaling."""
        return honest_share((self.multiplier * self.clip) ** 2, self.clients, self.absent, self.dishonest)

    @property
    def scale(self) -> float:
        """How many integers there are to a unit."""
        largest = self.clients * self.clip / math.sqrt(self.dim) + math.sqrt(self.clients * self.local_variance)
        return 2.0 ** (self.bits - 1) / (_DEVIATIONS * largest)

    def cost(self, sensitivity: float = 1.0) -> Spent:
        """Of one sum, to each client. `sensitivity`: 2 where a client may be replaced."""
        l1, l2 = rounded_sensitivity(self.clip, self.scale, self.dim)
        variance = (self.multiplier * self.clip * self.scale) ** 2
        return Spent(curve=skellam(sensitivity * l1, sensitivity * l2, variance))

    def encode(self, update: Tensor, key: bytes, source: Source) -> Tensor:
        """The integers of an update (numel,), (dim,), in [0, 2^bits). `key`: 32 bytes that all share in a round."""
        whole = torch.zeros(self.dim, dtype=torch.float64)
        whole[: self.numel] = clipped(update, self.clip)
        exact = rotated(whole * _signs(self.dim, key)) * self.scale
        _, most = rounded_sensitivity(self.clip, self.scale, self.dim)
        while True:
            rounded = torch.floor(exact + uniform(source, self.dim))
            if float(rounded.norm()) <= most:
                break
        noise = skellam_noise(source, self.dim, self.local_variance * self.scale**2)
        return (rounded.long() + noise) % (1 << self.bits)

    def decode(self, total: Tensor, key: bytes) -> Tensor:
        """The sum of the updates, float64 (numel,), with its noise, of the sum of their integers (dim,), modulo 2^bits.

        What lies beyond the middle of the ring is negative.
        """
        middle = 1 << (self.bits - 1)
        signed = (total + middle) % (1 << self.bits) - middle
        back = rotated(signed.double() / self.scale) * _signs(self.dim, key)
        return back[: self.numel]


def rotated(vector: Tensor) -> Tensor:
    """By the orthonormal Walsh-Hadamard matrix, which is its own inverse. The length is a power of two.

    >>> rotated(torch.tensor([1.0, 0.0, 0.0, 0.0]))
    tensor([0.5000, 0.5000, 0.5000, 0.5000])
    """
    found, half = vector.clone(), 1
    while half < len(found):
        pairs = found.view(-1, 2, half)
        found = torch.stack((pairs[:, 0] + pairs[:, 1], pairs[:, 0] - pairs[:, 1]), 1).reshape(-1)
        half *= 2
    return found / math.sqrt(len(found))


def _signs(dim: int, key: bytes) -> Tensor:
    return 1 - 2 * (uniform(Keyed(key), dim) < 1 / 2).double()
