"""A secret in shares: additive ones, all of which are needed, and Shamir's, of which any `threshold` are.

A. Shamir: "How to Share a Secret", Communications of the ACM 22(11), 1979, https://doi.org/10.1145/359168.359176.
Shares that were changed are found and corrected as L. R. Welch and E. R. Berlekamp do it: "Error Correction for
Algebraic Block Codes", US patent 4,633,470, 1986.

All arithmetic is modulo a prime, by default 2^255 - 19. The time that Python's integers take depends on their values:
shares are made and combined where nobody measures that.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache

__all__ = [
    "PRIME", "SharesInconsistent", "add_up", "combine", "correct", "evaluate", "split", "split_additively",
]  # fmt: skip

PRIME = 2**255 - 19
"""The field of the shares of 32-byte secrets."""

Draw = Callable[[], int]
"""Gives a uniformly random element of the field, secret and never the same again."""


class SharesInconsistent(ValueError):
    """Shares that no secret has given, and more of them are wrong than could be told apart."""


def split_additively(secret: int, count: int, draw: Draw, prime: int = PRIME) -> list[int]:
    """`count` shares whose sum is the secret; fewer of them tell nothing.

    >>> add_up(split_additively(5, 3, iter([1, 6]).__next__, prime=7), prime=7)
    5
    """
    shares = [draw() for _ in range(count - 1)]
    return [*shares, (secret - sum(shares)) % prime]


def add_up(shares: Sequence[int], prime: int = PRIME) -> int:
    """The secret of all additive shares."""
    return sum(shares) % prime


def evaluate(coefficients: Sequence[int], x: int, prime: int = PRIME) -> int:
    """The value at `x` of the polynomial with these coefficients, the constant one first.

    >>> evaluate([1234, 166, 94], 2, prime=1613)
    329
    """
    value = 0
    for coefficient in reversed(coefficients):
        value = (value * x + coefficient) % prime
    return value


def split(secret: int, threshold: int, at: Sequence[int], draw: Draw, prime: int = PRIME) -> dict[int, int]:
    """Shamir's shares of a secret, by the places `at` which they are: different ones, none of them 0.

    Any `threshold` of them give the secret; fewer leave every secret as likely as before. ValueError for places that
    repeat, or a threshold that cannot be.
    """
    if len({x % prime for x in at} - {0}) < len(at) or not 1 <= threshold <= len(at) or not 0 <= secret < prime:
        raise ValueError(f"a secret below {prime} cannot be shared at {len(at)} places with threshold {threshold}")
    coefficients = [secret, *(draw() for _ in range(threshold - 1))]
    return {x: evaluate(coefficients, x, prime) for x in at}


def combine(shares: Mapping[int, int], prime: int = PRIME, *, at: int = 0) -> int:
    """The secret of just as many shares as it takes, or another share `at` a place. More than it takes do no harm."""
    places = tuple(shares)
    return sum(weight * shares[x] for x, weight in zip(places, _weights(places, at, prime), strict=True)) % prime


def correct(shares: Mapping[int, int], threshold: int, prime: int = PRIME) -> tuple[int, tuple[int, ...]]:
    """The secret, and the places of shares that are wrong: up to half of those that there are beyond the threshold.

    Raises SharesInconsistent if more are wrong, or if there are too few.
    """
    if len(shares) < threshold:
        raise SharesInconsistent(f"there are {len(shares)} shares, and it takes {threshold}")
    places = tuple(shares)
    if _belongs(shares, threshold, prime):
        return combine(shares, prime), ()
    most = (len(places) - threshold) // 2
    errors = _locate(shares, threshold, most, prime)
    good = [x for x in places if evaluate(errors, x, prime)]
    agreeing = {x: shares[x] for x in good[:threshold]}
    wrong = (
        tuple(x for x in places if combine(agreeing, prime, at=x) != shares[x]) if len(good) >= threshold else places
    )
    if len(wrong) > most:
        raise SharesInconsistent(f"more than {most} of {len(places)} shares are wrong")
    return combine(agreeing, prime), wrong


def _belongs(shares: Mapping[int, int], threshold: int, prime: int) -> bool:
    """Whether a polynomial of degree below `threshold` has all these values: whether they are a Reed-Solomon code."""
    terms = [weight * y for weight, y in zip(_barycentric(tuple(shares), prime), shares.values(), strict=True)]
    for _ in range(len(shares) - threshold):
        if sum(terms) % prime:
            return False
        terms = [term * x % prime for term, x in zip(terms, shares, strict=True)]
    return True


@lru_cache(maxsize=1024)
def _barycentric(places: tuple[int, ...], prime: int) -> tuple[int, ...]:
    """For each place, one over the product of its distances to all others."""
    weights = []
    for x in places:
        product = 1
        for other in places:
            if other != x:
                product = product * (x - other) % prime
        weights.append(pow(product, -1, prime))
    return tuple(weights)


@lru_cache(maxsize=1024)
def _weights(places: tuple[int, ...], at: int, prime: int) -> tuple[int, ...]:
    """Lagrange's coefficients: what each value counts in that of the polynomial `at` another place."""
    if at in places:
        return tuple(int(x == at) for x in places)
    product = 1
    for x in places:
        product = product * (at - x) % prime
    return tuple(
        product * weight * pow(at - x, -1, prime) % prime
        for x, weight in zip(places, _barycentric(places, prime), strict=True)
    )


def _locate(shares: Mapping[int, int], threshold: int, most: int, prime: int) -> list[int]:
    """A polynomial E of degree `most` that is 0 where shares are wrong.

    With it goes an N such that N(x) = y E(x) for all shares (x, y). N = E P, for the polynomial P of the secret.
    """
    rows = []
    for x, y in shares.items():
        powers = [pow(x, power, prime) for power in range(threshold + most)]
        rows.append([*(-y * power % prime for power in powers[:most]), *powers, y * pow(x, most, prime) % prime])
    solution = _solve(rows, prime)
    return [*solution[:most], 1]


def _solve(rows: list[list[int]], prime: int) -> list[int]:
    """A solution of linear equations, each with its right side last: unknowns that are free are 0.

    Raises SharesInconsistent if there is none.
    """
    unknowns, rank, pivots = len(rows[0]) - 1, 0, []
    for column in range(unknowns):
        pivot = next((index for index in range(rank, len(rows)) if rows[index][column]), None)
        if pivot is None:
            continue
        rows[rank], rows[pivot] = rows[pivot], rows[rank]
        inverse = pow(rows[rank][column], -1, prime)
        rows[rank] = [value * inverse % prime for value in rows[rank]]
        for index, row in enumerate(rows):
            if index != rank and (factor := row[column]):
                rows[index] = [(value - factor * top) % prime for value, top in zip(row, rows[rank], strict=True)]
        pivots.append(column)
        rank += 1
    if any(row[-1] for row in rows[rank:]):
        raise SharesInconsistent("the shares belong to no secret")
    solution = [0] * unknowns
    for row, column in zip(rows, pivots, strict=False):
        solution[column] = row[-1]
    return solution
