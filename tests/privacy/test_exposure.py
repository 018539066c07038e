"""Who can be solved for: cases by hand, complete graphs, rings, and a reference that solves with fractions."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pfl.errors import ConfigError
from p2pfl.privacy.exposure import Exposure, View, audit, gossiped, refuse_exposure, sums, view
from p2pfl.topology.families import build
from p2pfl.topology.mixing import mixing_matrix


def weights(family: str, n: int, **parameters: object) -> np.ndarray:
    return mixing_matrix(build(family, n, **parameters), "metropolis")


def rank(rows: list[list[int]]) -> int:
    """By elimination, with fractions."""
    left, found = [[Fraction(value) for value in row] for row in rows], 0
    for column in range(len(rows[0]) if rows else 0):
        pivot = next((row for row in left if row[column]), None)
        if pivot is None:
            continue
        found += 1
        left = [
            [a - b * row[column] / pivot[column] for a, b in zip(row, pivot, strict=True)]
            for row in left
            if row is not pivot
        ]
    return found


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_node_is_exposed_iff_its_unit_vector_adds_nothing_to_the_rows(data: st.DataObject) -> None:
    n = data.draw(st.integers(2, 6))
    rows = data.draw(st.lists(st.lists(st.integers(0, 3), min_size=n, max_size=n), min_size=1, max_size=5))
    coalition = data.draw(st.sets(st.integers(0, n - 1), max_size=2))
    others = [[0 if node in coalition else value for node, value in enumerate(row)] for row in rows]
    base = rank(others)
    exposed = [u for u in range(n) if rank([*others, [int(u == node) for node in range(n)]]) == base]
    assert view(np.array(rows, dtype=float), coalition) == View(base, tuple(exposed))


def test_one_node_of_a_ring_without_noise_solves_for_all_others_in_four_rounds() -> None:
    ring = weights("ring", 8)
    ranks = [view(gossiped(ring, [0], rounds), [0]).rank for rounds in (1, 2, 3, 4)]
    assert ranks == [2, 4, 6, 7]
    assert view(gossiped(ring, [0], 4), [0]) == View(7, (1, 2, 3, 4, 5, 6, 7))
    rows = gossiped(ring, [0], 4)
    secrets = np.random.default_rng(0).normal(size=8)
    known = np.eye(8)[:1]
    solved, *_ = np.linalg.lstsq(np.concatenate([rows, known]), np.append(rows @ secrets, secrets[0]), rcond=None)
    assert np.allclose(solved, secrets)


def test_a_ring_is_exposed_to_two_and_refused_for_one() -> None:
    """A sum of two neighbours hides each from the one between them, until that colludes with one of the two."""
    ring = weights("ring", 8)
    assert audit([ring], 1) is None
    assert audit([ring], 2) == Exposure(node=2, coalition=(0, 1), round=0, rounds=1)
    with pytest.raises(ConfigError, match="node 0 has 2 neighbours in round 0, and the sum of fewer than 3"):
        refuse_exposure([ring], 1)


@pytest.mark.parametrize("n", [4, 5, 8])
def test_a_complete_graph_hides_all_until_one_alone_is_honest(n: int) -> None:
    full = weights("full", n)
    for colluding in range(1, n - 1):
        assert audit([full], colluding, rounds=3) is None
    refuse_exposure([full], n - 2)
    found = audit([full], n - 1)
    assert found == Exposure(n - 1, tuple(range(n - 1)), 0, 1)
    with pytest.raises(ConfigError, match=f"node {n - 1} is exposed to 0 and .* by the sums of round 0; choose"):
        refuse_exposure([full], n - 1)


def test_two_sums_that_differ_in_one_node_tell_it() -> None:
    """Node 0 hears 1, 2, 3 and then 1, 2, 3, 4: in two rounds, not in one."""
    first, second = np.full((5, 5), 0.2), np.full((5, 5), 0.2)
    first[0] = [0.25, 0.25, 0.25, 0.25, 0.0]
    second[0] = [0.0, 0.25, 0.25, 0.25, 0.25]
    assert audit([first, second], 1) is None
    assert audit([first, second], 1, rounds=2) == Exposure(4, (0,), 0, 2)
    with pytest.raises(ConfigError, match="node 4 is exposed to 0 by the sums of rounds 0 to 1"):
        refuse_exposure([first, second], 1, rounds=2)


def test_only_what_is_received_counts() -> None:
    """Sums of others are not seen: a hub learns its leaves' sum alone, and a leaf learns its hub, which is alone."""
    star = weights("star", 5)
    assert view(sums([star], [0]), [0]) == View(1, ())
    assert audit([star], 1) == Exposure(0, (1,), 0, 1)


def test_windows_are_of_consecutive_rounds() -> None:
    calm, first = np.full((4, 4), 0.25), np.full((4, 4), 0.25)
    first[0] = [0.5, 0.5, 0.0, 0.0]
    assert audit([calm, calm, first], 1) == Exposure(1, (0,), 2, 1)
    assert audit([calm, calm, first], 1, rounds=2) == Exposure(1, (0,), 1, 2)


def test_nobody_colludes_is_a_mistake() -> None:
    with pytest.raises(ConfigError, match="it must be at least 1"):
        refuse_exposure([np.full((4, 4), 0.25)], 0)
