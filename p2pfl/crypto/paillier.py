"""Paillier's encryption, under which numbers can be added, and multiplied by numbers that are known.

P. Paillier: "Public-Key Cryptosystems Based on Composite Degree Residuosity Classes", EUROCRYPT 1999,
https://doi.org/10.1007/3-540-48910-X_16, with g = n + 1, as I. Damgård and M. Jurik have it: "A Generalisation, a
Simplification and Some Applications of Paillier's Probabilistic Public-Key System", PKC 2001. Decryption is by the
Chinese remainder theorem. It is for small vectors: with 3072 bits an encryption takes some 0.3 s, and gives 768 bytes.

A modulus of 3072 bits has 128 bits of security (NIST SP 800-57 part 1 rev. 5, table 2). Who can change ciphertexts can
change what they hold: their sender must be known by other means.

Python's integers do not take the same time for all values, and nothing here does. Who can measure how long `decrypt`
takes for ciphertexts of its choice may learn of the key: decrypt sums whose parts came from several, and not at once
for whoever asks. Decryption is blinded, so that powers are taken of numbers that nobody chose. Keys cannot be wiped
from memory.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache, cached_property

from p2pfl.errors import ConfigError, RemoteProtocolError, require

__all__ = ["KEY_BITS", "FixedPoint", "PrivateKey", "PublicKey", "generate"]

KEY_BITS = 3072
_ROUNDS = 40  # of Miller-Rabin: a number that is no prime passes with probability 4^-40 at most, whoever chose it
_SPARE_BYTES = 16  # by which what is reduced is longer, so that it is uniform to 2^-128
_SMALL_BELOW = 2000

Draw = Callable[[int], bytes]
"""So many random bytes that nobody else knows."""


@dataclass(frozen=True, slots=True)
class FixedPoint:
    """Signed numbers as integers: multiples of 2^-fraction_bits, none of them larger than `limit`. Raises ConfigError.

    >>> FixedPoint(fraction_bits=4, limit=100.0).encode(-2.53)
    -40
    """

    fraction_bits: int = 24
    limit: float = 1e6

    def __post_init__(self) -> None:
        require(0 <= self.fraction_bits <= 64, f"fraction_bits is {self.fraction_bits}; it must be 0 to 64")
        require(0 < self.limit < math.inf, f"limit is {self.limit}; it must be a positive number")

    def encode(self, value: float) -> int:
        """The nearest multiple. Raises ValueError for what is no number, or beyond the limit."""
        if not abs(value) <= self.limit:
            raise ValueError(f"{value} is not within {self.limit:g} of 0")
        return round(math.ldexp(value, self.fraction_bits))

    def decode(self, number: int, terms: int = 1, factor_bits: int = 0) -> float:
        """The value of a sum of so many terms, each multiplied by a fixed-point factor of so many bits, below 1 or 1.

        Raises RemoteProtocolError for what is larger than they can be together.
        """
        most = terms * round(math.ldexp(self.limit, self.fraction_bits)) << factor_bits
        if abs(number) > most:
            raise RemoteProtocolError(f"a sum of {terms} numbers of at most {self.limit:g} is out of range")
        return number / (1 << (self.fraction_bits + factor_bits))


@dataclass(frozen=True)
class PublicKey:
    """What numbers are encrypted with. Plain numbers are signed: of less than half of `n` either way."""

    n: int

    @cached_property
    def square(self) -> int:
        """What ciphertexts are reduced by."""
        return self.n * self.n

    @property
    def nbytes(self) -> int:
        """Of a ciphertext."""
        return (2 * self.n.bit_length() + 7) // 8

    def encrypt(self, number: int, draw: Draw = os.urandom) -> int:
        """A ciphertext, another one each time. Raises ValueError for a number that is too large."""
        if not -self.n < 2 * number < self.n:
            raise ValueError(f"the number has {number.bit_length()} bits, which the key has no room for")
        return self._plain(number) * self._noise(draw) % self.square

    def add(self, one: int, other: int) -> int:
        """A ciphertext of the sum of two. It shows where it comes from: see `refresh`."""
        return self.check(one) * self.check(other) % self.square

    def add_plain(self, ciphertext: int, number: int) -> int:
        """A ciphertext of the sum with a known number."""
        return self.check(ciphertext) * self._plain(number) % self.square

    def multiply(self, ciphertext: int, factor: int) -> int:
        """A ciphertext of the product with a known integer, which may be negative. Its time tells of the factor.

        It can be 1, where the factor is 0: `refresh` what leaves.
        """
        return pow(self.check(ciphertext), factor, self.square)

    def refresh(self, ciphertext: int, draw: Draw = os.urandom) -> int:
        """Another ciphertext of the same number, of which nobody can tell what it was made of."""
        return self.check(ciphertext) * self._noise(draw) % self.square

    def check(self, ciphertext: int) -> int:
        """The same. Raises RemoteProtocolError for what no encryption with this key gives."""
        if not 0 < ciphertext < self.square or math.gcd(ciphertext, self.n) != 1:
            raise RemoteProtocolError("what came is no ciphertext under this key")
        return ciphertext

    def _plain(self, number: int) -> int:
        return (1 + number % self.n * self.n) % self.square

    def _noise(self, draw: Draw) -> int:
        return pow(_unit(self.n, draw), self.n, self.square)

    def __repr__(self) -> str:
        return f"<PublicKey of {self.n.bit_length()} bits>"


@dataclass(frozen=True)
class PrivateKey:
    """What numbers are decrypted with: the two primes. Neither is shown."""

    p: int = field(repr=False)
    q: int = field(repr=False)

    def __post_init__(self) -> None:
        n = self.p * self.q
        if self.p == self.q or math.gcd(n, (self.p - 1) * (self.q - 1)) != 1:
            raise ConfigError("the primes of a key must differ, and neither may divide what the other is one more than")

    @cached_property
    def public(self) -> PublicKey:
        """The public key that belongs to it."""
        return PublicKey(self.p * self.q)

    def decrypt(self, ciphertext: int, draw: Draw = os.urandom) -> int:
        """The signed number in a ciphertext. Raises RemoteProtocolError for what is none.

        With another key than it was encrypted with, the number is any.
        """
        blinded = self.public.refresh(ciphertext, draw)
        at_p, at_q = self._modulo(blinded, self.p, self.q), self._modulo(blinded, self.q, self.p)
        number = at_q + self.q * ((at_p - at_q) * self._q_inverse % self.p)
        return number - self.public.n if 2 * number > self.public.n else number

    @cached_property
    def _q_inverse(self) -> int:
        return pow(self.q, -1, self.p)

    def _modulo(self, ciphertext: int, prime: int, other: int) -> int:
        """The number modulo one of the primes: c^(p-1) = 1 + m (p-1) n modulo p^2."""
        power = pow(ciphertext % (prime * prime), prime - 1, prime * prime)
        return (power - 1) // prime * pow(-other, -1, prime) % prime


def generate(bits: int = KEY_BITS, draw: Draw = os.urandom, *, insecure: bool = False) -> PrivateKey:
    """A new key whose modulus has just so many bits, an even number. It takes seconds.

    Raises ConfigError for fewer than 3072, unless `insecure` says that it protects nothing: for tests.
    """
    require(bits >= KEY_BITS or insecure, f"a key of {bits} bits is not safe; it must have at least {KEY_BITS} bits")
    require(bits % 2 == 0 and bits >= 64, f"a key of {bits} bits cannot be; it must be an even number, at least 64")
    apart = 1 << (bits // 2 - min(100, bits // 4))  # as FIPS 186-5, A.1.3, so that nobody finds them from the root of n
    p = _prime(bits // 2, draw)
    q = _prime(bits // 2, draw)
    while abs(p - q) <= apart:
        q = _prime(bits // 2, draw)
    return PrivateKey(p, q)


def _prime(bits: int, draw: Draw) -> int:
    """A random prime with its two highest bits set, so that the product of two has twice as many bits."""
    while True:
        found = int.from_bytes(draw((bits + 7) // 8), "big") % (1 << bits) | 3 << (bits - 2) | 1
        if all(found % small for small in _small_primes()) and _passes(found, draw):
            return found


@cache
def _small_primes() -> tuple[int, ...]:
    """Odd ones, by which most numbers that are not prime can be divided."""
    return tuple(n for n in range(3, _SMALL_BELOW, 2) if all(n % d for d in range(3, math.isqrt(n) + 1, 2)))


def _passes(number: int, draw: Draw) -> bool:
    """Whether an odd number is prime, by Miller and Rabin."""
    odd = number - 1
    twos = (odd & -odd).bit_length() - 1
    odd >>= twos
    return all(_witnesses(2 + _below(number - 3, draw), odd, twos, number) for _ in range(_ROUNDS))


def _witnesses(base: int, odd: int, twos: int, number: int) -> bool:
    power = pow(base, odd, number)
    if power in (1, number - 1):
        return True
    for _ in range(twos - 1):
        power = power * power % number
        if power == number - 1:
            return True
    return False


def _below(bound: int, draw: Draw) -> int:
    """A uniformly random number below a bound, to 2^-128."""
    return int.from_bytes(draw((bound.bit_length() + 7) // 8 + _SPARE_BYTES), "big") % bound


def _unit(n: int, draw: Draw) -> int:
    """A random number that has an inverse modulo n."""
    while True:
        found = _below(n, draw)
        if math.gcd(found, n) == 1:
            return found
