"""Flat vectors: what is in them, and that nothing is copied that need not be."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from p2pfl.errors import ConfigError
from p2pfl.learn.params import Layout, as_buffer, bind, flatten, from_buffer, is_finite

layers = st.sampled_from(
    [
        lambda: nn.Linear(3, 5),
        lambda: nn.Linear(1, 1, bias=False),
        lambda: nn.Conv2d(3, 4, (2, 3)),
        lambda: nn.Conv2d(1, 2, 1),
        lambda: nn.Conv1d(2, 3, 2),
        lambda: nn.BatchNorm2d(4),
        lambda: nn.Embedding(7, 2),
        lambda: nn.LSTM(2, 3, num_layers=2),
        lambda: nn.PReLU(),
    ]
)


@given(st.lists(layers, min_size=1, max_size=5))
def test_any_module_survives_flatten_and_bind(makers: list) -> None:
    module = nn.ModuleList([make() for make in makers])
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    flat = flatten(module)
    bind(module, flat)
    for name, tensor in module.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    layout = Layout.of(module)
    places = sorted((entry.offset, entry.numel) for entry in layout.entries)
    assert all(start + size == after for (start, size), (after, _) in pairwise(places))
    assert flat.shape == (layout.numel,) == (sum(size for _, size in places),)
    assert torch.equal(flatten(module), flat)


def test_bound_modules_write_through_and_share_no_copy() -> None:
    module = nn.Linear(2, 2)
    flat = flatten(module)
    bind(module, flat)
    with torch.no_grad():
        module.bias.fill_(7.0)
    assert flat.tolist()[-2:] == [7.0, 7.0]
    flat.zero_()
    assert not module.weight.any()


def test_parameters_come_first_then_floating_point_buffers_and_counters_stay_out() -> None:
    layout = Layout.of(nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)))
    names = [entry.name for entry in layout.entries]
    assert names == ["0.weight", "0.bias", "1.weight", "1.bias", "1.running_mean", "1.running_var"]
    assert (layout.trainable, layout.trainable_numel, layout.numel) == (4, 15, 21)


def test_shared_parameters_are_stored_once_and_frozen_ones_not_at_all() -> None:
    module = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2))
    module[1].weight = module[0].weight
    module[2].requires_grad_(False)
    assert [entry.name for entry in Layout.of(module).entries] == ["0.weight", "0.bias", "1.bias"]


def test_convolution_weights_lie_channels_last() -> None:
    module = nn.Conv2d(3, 4, 2)
    bind(module, flatten(module))
    assert module.weight.is_contiguous(memory_format=torch.channels_last)


def test_the_digest_tells_architectures_apart() -> None:
    first, same, other = nn.Linear(2, 3), nn.Linear(2, 3), nn.Linear(3, 2)
    assert Layout.of(first) == Layout.of(same)
    assert Layout.of(first).digest == Layout.of(same).digest != Layout.of(other).digest
    assert Layout.of(first).schema == (("weight", (3, 2), (2, 1)), ("bias", (3,), (1,)))


def test_a_scalar_parameter_has_no_strides() -> None:
    class Scale(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.factor = nn.Parameter(torch.tensor(3.0))

    assert Layout.of(Scale()).schema == (("factor", (), ()),)
    assert flatten(Scale()).tolist() == [3.0]


@pytest.mark.parametrize(
    ("module", "words"),
    [
        (nn.Linear(2, 2).double(), r"'weight' is torch.float64; convert the module with .float\(\)"),
        (nn.ReLU(), "ReLU has no parameter that trains"),
    ],
)
def test_modules_that_have_no_layout(module: nn.Module, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Layout.of(module)


def test_a_mismatch_names_the_tensor() -> None:
    layout = Layout.of(nn.Linear(2, 3))
    with pytest.raises(ConfigError, match=r"'weight' has shape \(3, 4\) where the layout has \(3, 2\)"):
        layout.tensors(nn.Linear(4, 3))
    with pytest.raises(ConfigError, match="'bias' is missing"):
        layout.tensors(nn.Linear(2, 3, bias=False))
    with pytest.raises(ConfigError, match="'bias' is not in the layout"):
        Layout.of(nn.Linear(2, 3, bias=False)).tensors(nn.Linear(2, 3))
    with pytest.raises(ConfigError, match=r"needs torch.float32 of shape \(9,\)"):
        layout.views(torch.zeros(8))
    with pytest.raises(ConfigError, match=r"torch.float64"):
        layout.views(torch.zeros(9, dtype=torch.float64))


@given(st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=50))
def test_buffers_are_the_vectors_own_memory(values: list[float]) -> None:
    flat = torch.tensor(values, dtype=torch.float32)
    buffer = as_buffer(flat)
    assert buffer.readonly
    assert buffer.format == "B"
    assert bytes(buffer) == np.array(values, "<f4").tobytes()
    back = from_buffer(buffer, len(values))
    assert back.data_ptr() == flat.data_ptr()
    assert torch.equal(back, flat)


def test_buffers_need_not_be_aligned_and_outlive_their_name() -> None:
    memory = bytearray(1) + bytearray(np.arange(1000, dtype="<f4").tobytes())
    vector = from_buffer(memoryview(memory)[1:], 1000)
    del memory
    assert vector.sum().item() == 499500


def test_buffers_of_another_length_are_refused() -> None:
    with pytest.raises(ConfigError, match="the buffer has 8 bytes; 3 float32 take 12"):
        from_buffer(memoryview(bytes(8)), 3)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_one_bad_number_is_found(bad: float) -> None:
    good = torch.full((1000,), 3e38)  # the sum overflows, the numbers do not
    assert is_finite(good)
    worse: Tensor = good.clone()
    worse[617] = bad
    assert not is_finite(worse)
    assert is_finite(torch.empty(0))


def test_a_buffer_that_is_the_memory_of_a_tensor_is_that_tensor_again() -> None:
    vector = torch.arange(8.0)
    again = from_buffer(as_buffer(vector[2:7]), 5)
    assert again.data_ptr() == vector[2:7].data_ptr()
    assert again.tolist() == [2, 3, 4, 5, 6]
    part = from_buffer(as_buffer(vector)[8:], 6)
    assert part.tolist() == [2, 3, 4, 5, 6, 7]
    other = torch.arange(4, dtype=torch.int32)
    assert from_buffer(memoryview(other.numpy().data).cast("B").toreadonly(), 4).dtype == torch.float32
