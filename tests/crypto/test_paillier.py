"""Paillier by its algebra, by known answers, and by what is refused."""

from __future__ import annotations

import math
from contextlib import suppress
from functools import cache
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pfl.crypto.paillier import KEY_BITS, FixedPoint, PrivateKey, PublicKey, _passes, _small_primes, generate
from p2pfl.errors import ConfigError, RemoteProtocolError


@cache
def key() -> PrivateKey:
    return generate(512, Random(1).randbytes, insecure=True)


KEYED = settings(max_examples=40, deadline=None)
NUMBERS = st.integers(-(2**250), 2**250)


@KEYED
@given(NUMBERS)
def test_what_is_encrypted_is_decrypted(number: int) -> None:
    assert key().decrypt(key().public.encrypt(number)) == number


@KEYED
@given(NUMBERS, NUMBERS, st.integers(-(2**200), 2**200))
def test_sums_and_products_are_those_of_the_numbers(one: int, other: int, factor: int) -> None:
    public, private = key().public, key()
    first, second = public.encrypt(one), public.encrypt(other)
    assert private.decrypt(public.add(first, second)) == one + other
    assert private.decrypt(public.add_plain(first, other)) == one + other
    small = one % 1000 - 500
    assert private.decrypt(public.multiply(public.encrypt(small), factor)) == small * factor
    assert private.decrypt(public.refresh(first)) == one


@KEYED
@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=5), st.floats(-1, 1))
def test_a_weighted_sum_of_fixed_points_is_exact(values: list[float], factor: float) -> None:
    public, code, weight = key().public, FixedPoint(), FixedPoint(20, 1.0)
    total = public.encrypt(0)
    for value in values:
        total = public.add(total, public.multiply(public.encrypt(code.encode(value)), weight.encode(factor)))
    exact = sum(map(code.encode, values)) * weight.encode(factor)
    assert key().decrypt(total) == exact
    assert code.decode(exact, len(values), 20) == exact / 2**44


def test_a_known_answer() -> None:
    """p = 7, q = 11, m = 42, r = 23, with g = 78: 42 * 77 + 1 = 3235 and 23^77 = 606 modulo 5929."""
    private = PrivateKey(7, 11)
    public = private.public
    expected = (1 + 42 * 77) * pow(23, 77, 77**2) % 77**2
    assert public.encrypt(42 - 77, lambda size: (23).to_bytes(size, "big")) == expected == 3235 * 606 % 5929
    assert private.decrypt(expected) == 42 - 77
    assert {private.decrypt(public.encrypt(number)) for number in range(-38, 39)} == set(range(-38, 39))


def test_every_ciphertext_is_another() -> None:
    public = key().public
    assert len({public.encrypt(5) for _ in range(20)}) == 20
    assert public.multiply(public.encrypt(5), 0) == 1 != public.refresh(1)


def test_another_key_gives_another_number() -> None:
    other = generate(512, Random(2).randbytes, insecure=True)
    sealed = key().public.encrypt(1234)
    with suppress(RemoteProtocolError):  # it may be beyond what that key has
        assert other.decrypt(sealed) != 1234


@pytest.mark.parametrize("wrong", ["zero", "negative", "square", "beyond", "prime"])
def test_what_is_no_ciphertext_is_refused(wrong: str) -> None:
    public = key().public
    square = public.n**2
    number = {"zero": 0, "negative": -1, "square": square, "beyond": square + 5, "prime": key().p}[wrong]
    for use in (
        lambda: key().decrypt(number),
        lambda: public.add(public.encrypt(1), number),
        lambda: public.add(number, public.encrypt(1)),
        lambda: public.add_plain(number, 1),
        lambda: public.multiply(number, 2),
        lambda: public.refresh(number),
    ):
        with pytest.raises(RemoteProtocolError, match="no ciphertext under this key"):
            use()


def test_numbers_that_have_no_room_are_refused() -> None:
    public = key().public
    half = public.n // 2
    assert [key().decrypt(public.encrypt(number)) for number in (half, -half)] == [half, -half]
    for number in (half + 1, -half - 1):
        with pytest.raises(ValueError, match="no room"):
            public.encrypt(number)


def test_keys_have_their_size_and_small_ones_are_refused() -> None:
    for bits in (64, 128, 256):
        private = generate(bits, Random(bits).randbytes, insecure=True)
        assert private.public.n.bit_length() == bits
        assert private.p.bit_length() == private.q.bit_length() == bits // 2
    assert key().public.nbytes == 128 and KEY_BITS == 3072
    with pytest.raises(ConfigError, match="a key of 2048 bits is not safe; it must have at least 3072"):
        generate(2048)
    with pytest.raises(ConfigError, match="a key of 65 bits cannot be"):
        generate(65, insecure=True)
    with pytest.raises(ConfigError, match="primes of a key must differ"):
        PrivateKey(7, 7)
    with pytest.raises(ConfigError, match="primes of a key must differ"):
        PrivateKey(3, 7)


def test_nothing_shows_a_key() -> None:
    private = key()
    assert str(private.p) not in repr(private) and str(private.q) not in repr(private)
    assert repr(PublicKey(private.p * private.q)) == "<PublicKey of 512 bits>"


def test_primes_are_told_from_what_looks_like_them() -> None:
    """Carmichael numbers and strong pseudoprimes to many bases, and Mersenne's primes."""
    draw = Random(3).randbytes
    assert all(_passes(2**power - 1, draw) for power in (61, 89, 107, 127, 521))
    assert not any(_passes(2**power - 1, draw) for power in (67, 101, 257))
    assert not any(_passes(number, draw) for number in (561, 41041, 825265, 321197185, 3825123056546413051))
    assert [n for n in range(5, 2000, 2) if _passes(n, draw)] == [n for n in _small_primes() if n > 3]


def test_fixed_points_round_and_check_their_range() -> None:
    code = FixedPoint(fraction_bits=8, limit=10.0)
    assert [code.encode(value) for value in (0.0, 1.0, -1.0, 10.0, 0.001)] == [0, 256, -256, 2560, 0]
    for value in (10.01, -11.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="is not within 10 of 0"):
            code.encode(value)
    assert code.decode(3 * 2560, terms=3) == 30.0
    with pytest.raises(RemoteProtocolError, match="a sum of 3 numbers of at most 10 is out of range"):
        code.decode(3 * 2560 + 1, terms=3)
    with pytest.raises(ConfigError, match="fraction_bits is 65"):
        FixedPoint(65)
    with pytest.raises(ConfigError, match="limit is inf"):
        FixedPoint(limit=math.inf)
