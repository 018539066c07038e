"""A vector as numpy arrays: what torch's layout says, without torch."""

from __future__ import annotations

import doctest

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from p2pfl.errors import ConfigError
from p2pfl.learn import arrays
from p2pfl.learn.arrays import ArrayLayout, vector_hash
from p2pfl.learn.params import Layout, model_hash


@given(st.integers(1, 3), st.integers(1, 4), st.integers(1, 3), st.booleans())
def test_arrays_lie_where_torch_has_them(channels: int, width: int, kernel: int, channels_last: bool) -> None:
    module = nn.Sequential(nn.Conv2d(channels, width, kernel), nn.BatchNorm2d(width), nn.Linear(3, width))
    layout = Layout.of(module, channels_last=channels_last)
    flat = torch.rand(layout.numel)
    same = ArrayLayout(layout.schema)
    assert same.numel == layout.numel
    found = same.views(flat.numpy())
    assert list(found) == [entry.name for entry in layout.entries]
    for array, view in zip(found.values(), layout.views(flat), strict=True):
        assert np.array_equal(array, view.numpy())
        array *= 2
        assert np.array_equal(array, view.numpy()), "they are one memory"


def test_arrays_in_rows() -> None:
    layout = ArrayLayout.of({"weight": (3, 2), "scale": (), "bias": (3,)})
    found = layout.views(np.arange(10, dtype=np.float32))
    assert found["weight"].tolist() == [[0, 1], [2, 3], [4, 5]]
    assert found["scale"].item() == 6
    assert found["bias"].tolist() == [7, 8, 9]
    assert layout.shapes == {"weight": (3, 2), "scale": (), "bias": (3,)}


@pytest.mark.parametrize(
    ("shape", "stride"),
    [((2, 2), (4, 1)), ((2, 2), (1, 1)), ((2,), (0,)), ((2,), (-1,)), ((2,), ()), ((-2,), (1,)), ((3, 2), (1000, 1))],
)
def test_strides_that_reach_elsewhere_are_refused(shape: tuple[int, ...], stride: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match=r"^layout: 'w' of shape .*; give dense ones$"):
        ArrayLayout((("w", shape, stride),))


def test_the_hash_is_that_of_the_model() -> None:
    vector = torch.rand(5)
    assert vector_hash(vector.numpy()) == model_hash(vector)
    assert vector_hash(vector.numpy()) != vector_hash(-vector.numpy())


def test_the_docstrings_are_true() -> None:
    assert doctest.testmod(arrays).failed == 0
