"""Numbers in fewer bits: exact cases, bounds of the error, and means over many draws."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from p2pfl.learn.quantize import bfloat16, float16, qsgd, sign, uniform
from p2pfl.learn.transform import chain
from p2pfl.wire.tensor import schema_bytes
from tests.learn.test_transform import rng, there_and_back

SEEDS = st.integers(0, 10_000)


def drawn(seed, numel):
    """Of a heavy tail, as updates are."""
    return torch.randn(numel, generator=rng(seed)) * torch.randn(numel, generator=rng(seed + 1)).exp()


def test_halves_are_those_of_torch_and_saturate():
    vector = torch.tensor([1.0, 1 / 3, 1e6, -1e6, 1e-3])
    assert torch.equal(there_and_back(chain(5, float16), vector), vector.clamp(-65504, 65504).half().float())
    assert torch.equal(there_and_back(chain(5, bfloat16), vector), vector.bfloat16().float())


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@given(seed=SEEDS)
def test_uniform_is_at_most_half_a_step_away(bits, seed):
    vector = drawn(seed, 50)
    found = there_and_back(chain(50, uniform(bits, 50)), vector)
    step = (vector.max() - vector.min()) / (2**bits - 1)
    assert (found - vector).abs().max() <= step * 0.5001


def test_uniform_is_exact_on_its_grid():
    vector = torch.arange(16.0) / 4 - 1
    assert torch.equal(there_and_back(chain(16, uniform(4, 16)), vector), vector)


def test_each_bucket_has_its_own_scale():
    vector = torch.cat((torch.arange(16.0), torch.arange(16.0) * 1e-6, torch.tensor([7.0])))
    assert torch.allclose(there_and_back(chain(33, uniform(4, 16)), vector), vector, rtol=1e-6)


@given(seed=SEEDS, numel=st.integers(1, 40))
def test_signs_with_the_mean_magnitude_have_the_error_of_the_closed_form(seed, numel):
    """|Q(v) - v|^2 = |v|^2 - |v|_1^2 / d: a contraction with omega = |v|_1^2 / (d |v|^2), which is at least 1/d."""
    vector = drawn(seed, numel)
    error = (there_and_back(chain(numel, sign(64)), vector) - vector).square().sum()
    expected = vector.square().sum() - vector.abs().sum() ** 2 / numel
    assert error.item() == pytest.approx(expected.item(), rel=1e-3, abs=1e-4 * vector.square().sum().item())
    assert error <= (1 - 1 / numel) * vector.square().sum() * 1.0001 + 1e-6


def test_qsgd_by_hand_where_nothing_is_left_to_chance():
    """Nine times 3 has the norm 9: each is at 7/3 of 7 levels, so between the second and the third."""
    vector = torch.tensor([0.0, 3, -3, 3, 3, 3, 3, 3, -3, 0, -3])
    found = torch.stack([there_and_back(chain(11, qsgd(4, 16)), vector, seed) for seed in range(300)])
    assert set((found[:, 1] * 7 / 9).round(decimals=3).tolist()) == {2.0, 3.0}
    assert set((found[:, 2] * 7 / 9).round(decimals=3).tolist()) == {-2.0, -3.0}
    assert not found[:, 0].any() and not found[:, 9].any()
    (exact,) = there_and_back(chain(1, qsgd(4)), torch.tensor([-2.5])).tolist()
    assert exact == -2.5, "a single number is its own norm"


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_qsgd_is_unbiased_within_the_variance_of_the_paper(bits):
    vector, draws = drawn(3, 64), 3000
    (stage,) = chain(64, qsgd(bits, 64)).stages
    many = torch.stack([there_and_back(chain(64, qsgd(bits, 64)), vector, seed) for seed in range(draws)])
    square = vector.square().sum()
    second = (many - vector).square().sum(1).mean()
    assert second <= stage.variance * square
    assert (many.mean(0) - vector).norm() <= 4 * math.sqrt(second / draws)


@pytest.mark.parametrize("bits", [2, 4])
def test_qsgd_scaled_down_is_a_contraction(bits):
    """omega = 1 / (1 + min(d/s^2, sqrt(d)/s))."""
    vector = drawn(4, 64)
    transform = chain(64, qsgd(bits, 64, unbiased=False))
    (stage,) = transform.stages
    many = torch.stack([there_and_back(transform, vector, seed) for seed in range(500)])
    error = (many - vector).square().sum(1).mean()
    assert error <= (1 - 1 / (1 + stage.variance)) * vector.square().sum()


def test_bytes_are_as_few_as_bits_say():
    assert schema_bytes(chain(5120, uniform(4)).schema) == 2560 + 10 * 8
    assert schema_bytes(chain(5120, qsgd(2)).schema) == 1280 + 10 * 4
    assert schema_bytes(chain(5120, sign()).schema) == 640 + 10 * 4
    assert schema_bytes(chain(5120, float16).schema) == 10240


@pytest.mark.parametrize("stage", [uniform(4), qsgd(4), sign(), float16], ids=["uniform", "qsgd", "sign", "halves"])
def test_scales_that_are_no_numbers_are_refused(stage):
    transform = chain(8, stage)
    payload = list(transform.encode(torch.randn(8), {}, rng()).payload)
    payload[-1] = payload[-1] * math.nan
    with pytest.raises(ValueError, match="NaN"):
        transform.decode(tuple(payload))
