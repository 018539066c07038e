from itertools import combinations, product
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pfl.crypto.shares import PRIME, SharesInconsistent, add_up, combine, correct, evaluate, split, split_additively


def drawing(seed: int, prime: int = PRIME):
    rng = Random(seed)
    return lambda: rng.randrange(prime)


def test_the_example_of_wikipedia() -> None:
    shares = {x: evaluate([1234, 166, 94], x, 1613) for x in range(1, 7)}
    assert list(shares.values()) == [1494, 329, 965, 176, 1188, 775]
    for some in combinations(shares, 3):
        assert combine({x: shares[x] for x in some}, 1613) == 1234


def test_googles_shares_of_two_words() -> None:
    """From the tests of google/federated-compute: modulo 2^31 + 11, threshold 3, places 1 to 5, words of four bytes."""
    given_bytes = [
        [112, 207, 118, 46, 110, 212, 170, 28], [48, 160, 197, 172, 38, 235, 145, 204],
        [63, 115, 238, 144, 40, 68, 183, 71], [29, 72, 240, 207, 114, 224, 26, 141],
        [74, 31, 204, 116, 6, 189, 187, 136],
    ]  # fmt: skip
    prime = 2**31 + 11
    for word, secret in enumerate((0, 33)):
        shares = {x: int.from_bytes(bytes(given_bytes[x - 1][4 * word : 4 * word + 4]), "big") for x in range(1, 6)}
        for some in combinations(shares, 3):
            assert combine({x: shares[x] for x in some}, prime) == secret
        assert correct(shares, 3, prime) == (secret, ())


@settings(max_examples=40, deadline=None)
@given(st.integers(0, PRIME - 1), st.integers(1, 12), st.integers(0, 6), st.integers(0, 2**32))
def test_any_threshold_of_shares_give_the_secret(secret: int, threshold: int, more: int, seed: int) -> None:
    shares = split(secret, threshold, range(1, threshold + more + 1), drawing(seed))
    rng = Random(seed)
    some = rng.sample(sorted(shares), threshold)
    assert combine({x: shares[x] for x in some}) == secret
    assert combine(shares) == secret
    other = rng.choice(sorted(shares))
    assert combine({x: shares[x] for x in some}, at=other) == shares[other]


def test_fewer_shares_leave_every_secret_as_likely() -> None:
    """All polynomials over a field of 7: whatever two shares are, each secret has given them as often."""
    for places in combinations((1, 2, 3), 2):
        seen: dict[tuple[int, ...], list[int]] = {}
        for secret, first, second in product(range(7), repeat=3):
            drawn = iter((first, second))
            shares = split(secret, 3, (1, 2, 3), drawn.__next__, prime=7)
            seen.setdefault(tuple(shares[x] for x in places), []).append(secret)
        assert len(seen) == 49
        assert all(sorted(secrets) == list(range(7)) for secrets in seen.values())


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 7), st.integers(0, 7), st.data())
def test_wrong_shares_are_corrected_and_named(threshold: int, more: int, data: st.DataObject) -> None:
    secret = 2**200 + 5
    shares = split(secret, threshold, range(1, threshold + more + 1), drawing(more))
    wrong = data.draw(st.sets(st.sampled_from(sorted(shares)), max_size=more // 2))
    changed = {x: (y + 1 + x * x) % PRIME if x in wrong else y for x, y in shares.items()}
    assert correct(changed, threshold) == (secret, tuple(sorted(wrong)))


def test_too_many_wrong_shares_are_noticed() -> None:
    shares = split(9, 3, range(1, 7), drawing(1))
    rng = Random(2)
    broken = {x: rng.randrange(PRIME) if x <= 4 else y for x, y in shares.items()}
    with pytest.raises(SharesInconsistent, match="shares"):
        correct(broken, 3)
    with pytest.raises(SharesInconsistent, match="there are 2 shares, and it takes 3"):
        correct({1: 1, 2: 2}, 3)
    one_more = {1: shares[1] + 1, 2: shares[2], 3: shares[3], 4: shares[4]}  # which of them cannot be told
    with pytest.raises(SharesInconsistent):
        correct(one_more, 3)


def test_places_that_cannot_be() -> None:
    for places, threshold, secret in (
        ((0, 1), 1, 1),
        ((1, 1), 1, 1),
        ((1, PRIME + 1), 1, 1),
        ((1, 2), 3, 1),
        ((1,), 1, PRIME),
    ):
        with pytest.raises(ValueError, match="cannot be shared"):
            split(secret, threshold, places, drawing(0))


@given(st.integers(0, PRIME - 1), st.integers(1, 9))
def test_additive_shares_add_up(secret: int, count: int) -> None:
    shares = split_additively(secret, count, drawing(count))
    assert len(shares) == count and add_up(shares) == secret


def test_all_but_one_additive_share_tell_nothing() -> None:
    seen = [
        tuple(split_additively(secret, 3, iter(drawn).__next__, 7))
        for secret in range(7)
        for drawn in product(range(7), repeat=2)
    ]
    for left_out in range(3):
        views = {}
        for secret, shares in zip((s for s in range(7) for _ in range(49)), seen, strict=True):
            views.setdefault(shares[:left_out] + shares[left_out + 1 :], []).append(secret)
        assert all(sorted(secrets) == list(range(7)) for secrets in views.values())
