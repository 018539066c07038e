import doctest

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import p2pfl.aggregators.mean
from p2pfl.aggregators.mean import WeightedMean
from tests.aggregators.kit import check_aggregator


def weighted_mean(rows, weights):
    return np.average(rows, axis=0, weights=weights)


@pytest.mark.parametrize(("constructor", "reference"), [(WeightedMean, weighted_mean)])
def test_conformance(constructor, reference):
    check_aggregator(constructor, reference)


numbers = st.floats(-1e6, 1e6, width=32)
updates = st.lists(st.tuples(st.lists(numbers, min_size=3, max_size=3), st.integers(1, 10**6)), min_size=1, max_size=8)


@given(updates, st.randoms(use_true_random=False))
def test_any_order_is_the_weighted_mean(updates, random):
    vectors = [torch.tensor(vector) for vector, _ in updates]
    weights = [weight for _, weight in updates]
    values = set()
    for _ in range(3):
        order = list(range(len(updates)))
        random.shuffle(order)
        mean = WeightedMean(range(len(updates)))
        for rank in order:
            mean.add(rank, vectors[rank], weights[rank])
        values.add(mean.value().numpy().tobytes())
        assert mean.weight == sum(weights)
    (value,) = values
    rows = torch.stack(vectors).double().numpy()
    bound = 1e-6 * np.average(abs(rows), axis=0, weights=weights)  # of a float32 sum, relative to what is summed
    error = abs(np.frombuffer(value, "<f4") - weighted_mean(rows, weights))
    assert (error <= 4 * bound + 1e-30).all()


def test_one_vector_is_kept_where_updates_come_in_order():
    mean = WeightedMean(range(3))
    for rank in range(3):
        mean.add(rank, torch.ones(2), 1)
        assert not mean._early
    assert repr(mean) == "<WeightedMean of 3, 0 to come>"


def test_the_largest_count_that_a_message_carries_is_a_weight():
    mean = WeightedMean("ab")
    mean.add("a", torch.ones(1), 1)
    mean.add("b", torch.ones(1), 2**64 - 1)
    assert mean.value().isfinite().all()


def test_the_docstring_is_true():
    names = vars(p2pfl.aggregators.mean) | {"torch": torch}
    assert doctest.testmod(p2pfl.aggregators.mean, globs=names).failed == 0
