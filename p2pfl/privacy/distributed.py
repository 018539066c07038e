"""Updates as integers with a share of discrete noise, whose sum in a ring is differentially private: distributed DP.

N. Agarwal, P. Kairouz, Z. Liu: "The Skellam Mechanism for Differentially Private Federated Learning", NeurIPS 2021,
https://arxiv.org/abs/2110.04995; rotation, scaling and conditional rounding as in P. Kairouz, Z. Liu, T. Steinke: "The
Distributed Discrete Gaussian Mechanism for Federated Learning with Secure Aggregation", ICML 2021,
https://arxiv.org/abs/2102.06387.

    client    clip, rotate by random signs and Walsh and Hadamard, scale, round at random, add Skellam noise
    sum       of the integers, modulo 2^32: by secure aggregation, so that nobody sees less than the whole
    server    back to numbers about zero, scale and rotate back

A client's own noise is too little to protect it alone; only those are counted on who are there and honest. So a sum in
which fewer are than were counted on must not be revealed: see `least`.

Deviations: a rounded vector that is too long is rounded anew until it is not, as in the paper; its length is that of
the rotated one. `bits` are how many the sum takes, and the modulus is larger: no sum wraps around, whatever is drawn.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from p2pfl.errors import require
from p2pfl.privacy.clipping import clipped
from p2pfl.privacy.discrete import honest_share, rounded_sensitivity, skellam
from p2pfl.privacy.encoding import Mean, Ring, Words
from p2pfl.privacy.integer_noise import MOST_TABLED, reach
from p2pfl.privacy.integer_noise import skellam as skellam_noise
from p2pfl.privacy.noise import Keyed, Source, uniform
from p2pfl.privacy.spent import Spent

__all__ = ["Distributed", "rotated"]

_DEVIATIONS = 4.0  # of a sum's entries that its bits have room for
_RING_BITS = 32  # of the ring that sums are made in
_CHUNK = 1 << 16  # entries that noise is drawn for at once


@dataclass(frozen=True, slots=True)
class Distributed:
    """How the updates of at least so many clients, of `numel` numbers each, become integers and back.

    `multiplier`: of the noise in the sum of those who are counted on, as a multiple of `clip`. `absent`, `dishonest`:
    shares of the clients who are not. Raises ConfigError where sums of them cannot be told in so many bits.
    """

    numel: int
    clients: int
    clip: float
    multiplier: float
    bits: int = 20
    absent: float = 0.1
    dishonest: float = 0.1

    def __post_init__(self) -> None:
        require(
            self.absent + self.dishonest < 1,
            "nobody is counted on to add noise; lower course.secagg.dropouts or course.secagg.adversaries",
        )
        coarse = f"{self.clients} clients do not fit into {self.bits} bits; raise course.secagg.bits"
        require(self.scale * self.clip >= 1, coarse)
        fine = self.local_variance * self.scale**2 <= MOST_TABLED
        require(fine, f"noise in {self.bits} bits takes tables that are too large; lower course.secagg.bits")

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

    # -- as an encoding of a secure aggregation ----------------------------------------------------------------------

    def size(self, numel: int) -> int:
        """Entries of an encoded update. Weight and loss are not among them: they would tell of one client."""
        return self.dim

    def ring(self, most_clients: int) -> Ring:
        """Where sums are made. Raises ConfigError if one of so many clients could wrap around in it."""
        _, l2 = rounded_sensitivity(self.clip, self.scale, self.dim)
        most = most_clients * (l2 + reach(self.local_variance * self.scale**2))
        require(
            most < 1 << (_RING_BITS - 1),
            f"the sum of {most_clients} updates of {self.bits} bits with noise may not fit into the modulus, "
            f"2^{_RING_BITS}; lower course.secagg.bits",
        )
        return Ring(_RING_BITS)

    def least(self, listed: int) -> int:
        """How many updates a sum must have, of a list of so many clients: with fewer, noise is missing.

        >>> Distributed(100, clients=10, clip=1.0, multiplier=1.0, absent=0.2).least(12)
        10
        """
        return math.ceil((1 - self.absent) * max(listed, self.clients) - 1e-9)

    def encoding(self, words: Words, update: Tensor, key: bytes, source: Source) -> Iterator[None]:
        """The integers of an update (numel,) into `words` (dim,), in steps of some milliseconds.

        `key`: 32 bytes that all share in a round; `source`: of roundings and noise, which nobody else must know.
        """
        exact = torch.zeros(self.dim, dtype=torch.float64)
        exact[: self.numel] = clipped(update, self.clip)
        for turned in _turns(exact * _signs(self.dim, key)):
            exact = turned
            yield
        exact *= self.scale
        _, most = rounded_sensitivity(self.clip, self.scale, self.dim)
        chunks = [slice(start, start + _CHUNK) for start in range(0, self.dim, _CHUNK)]
        rounded, length = torch.empty_like(exact), math.inf
        while length > most:
            squares = 0.0
            for chunk in chunks:
                part = torch.floor(exact[chunk] + uniform(source, len(exact[chunk])))
                rounded[chunk] = part
                squares += float(part.square().sum())
                yield
            length = math.sqrt(squares)
        for chunk in chunks:
            noise = skellam_noise(source, len(rounded[chunk]), self.local_variance * self.scale**2)
            words[chunk] = (rounded[chunk].long() + noise).numpy().astype(words.dtype)  # modulo the ring
            yield

    def encode(self, update: Tensor, key: bytes, source: Source) -> Words:
        """`encoding` at once."""
        words: Words = np.empty(self.dim, dtype=Ring(_RING_BITS).dtype)
        for _ in self.encoding(words, update, key, source):
            pass
        return words

    def decode(self, total: Words, key: bytes) -> Tensor:
        """The sum of the updates, float64 (numel,), with its noise, of the sum of their integers (dim,).

        What lies beyond the middle of the ring is negative.
        """
        signed = torch.from_numpy(total.astype(np.uint32).view(np.int32).astype(np.float64))
        back = rotated(signed / self.scale) * _signs(self.dim, key)
        return back[: self.numel]

    def mean(self, total: Words, clients: int, key: bytes) -> Mean:
        """What the sum of so many tells: nothing of their losses, nor of what was clipped."""
        vector = (self.decode(total, key) / clients).numpy()
        return Mean(vector, float(clients), math.nan, math.nan)


def rotated(vector: Tensor) -> Tensor:
    """By the orthonormal Walsh-Hadamard matrix, which is its own inverse. The length is a power of two.

    >>> rotated(torch.tensor([1.0, 0.0, 0.0, 0.0]))
    tensor([0.5000, 0.5000, 0.5000, 0.5000])
    """
    found = vector
    for found in _turns(vector):  # noqa: B007 - the last is wanted
        pass
    return found


def _turns(vector: Tensor) -> Iterator[Tensor]:
    """`rotated` step by step; the last is it."""
    found, half = vector / math.sqrt(len(vector)), 1
    yield found
    while half < len(found):
        pairs = found.view(-1, 2, half)
        found = torch.stack((pairs[:, 0] + pairs[:, 1], pairs[:, 0] - pairs[:, 1]), 1).reshape(-1)
        half *= 2
        yield found


def _signs(dim: int, key: bytes) -> Tensor:
    bits = np.unpackbits(np.frombuffer(Keyed(key).draw(math.ceil(dim / 8)), dtype=np.uint8), count=dim)
    return 1 - 2 * torch.from_numpy(bits).double()
