"""The Haar transform: back again, orthonormal, and the matrix that the recursion of Kronecker products gives."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from p2pfl.learn.wavelet import haar, padded, unhaar

numbers = st.floats(-1e6, 1e6, width=32)


def matrix(levels):
    """(2^levels, 2^levels): H_2n = [H_n x (1 1); I_n x (1 -1)] / sqrt 2."""
    found = np.ones((1, 1))
    for _ in range(levels):
        found = np.vstack([np.kron(found, [1, 1]), np.kron(np.eye(len(found)), [1, -1])]) / np.sqrt(2)
    return found


@given(st.lists(numbers, min_size=1, max_size=200), st.integers(0, 6))
def test_a_vector_comes_back_from_its_coefficients(given_numbers, levels):
    vector = torch.tensor(given_numbers)
    coefficients = haar(vector, levels)
    assert len(coefficients) == padded(len(vector), levels) and len(coefficients) % 2**levels == 0
    scale = float(vector.abs().max()) + 1e-6
    assert torch.allclose(unhaar(coefficients, levels, len(vector)) / scale, vector / scale, atol=1e-5)


@given(st.lists(numbers, min_size=1, max_size=64), st.integers(0, 5))
def test_lengths_stay_as_they_are(given_numbers, levels):
    vector = torch.tensor(given_numbers)
    assert float(haar(vector, levels).norm()) == pytest.approx(float(vector.norm()), rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("levels", range(6))
def test_it_is_the_matrix_of_haar(levels):
    size = 2**levels
    found = torch.stack([haar(row, levels) for row in torch.eye(size)]).T
    np.testing.assert_allclose(found, matrix(levels), atol=1e-6)


def test_nothing_that_was_given_is_written_to():
    vector = torch.randn(40)
    kept = vector.clone()
    coefficients = haar(vector, 3)
    again = coefficients.clone()
    unhaar(coefficients, 3, 40)
    assert torch.equal(vector, kept) and torch.equal(coefficients, again)
