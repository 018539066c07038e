"""Fewer numbers: the largest, a draw, factors of low rank."""

import math
from contextlib import suppress

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from p2pfl.learn.params import Layout, flatten
from p2pfl.learn.quantize import uniform
from p2pfl.learn.sparsify import Places, low_rank, random_k, top_k
from p2pfl.learn.transform import chain
from p2pfl.wire.tensor import schema_bytes
from tests.learn.test_transform import rng, there_and_back

SEEDS = st.integers(0, 10_000)


def test_top_k_by_hand():
    vector = torch.tensor([0.1, -5.0, 3.0, 0.0, -0.2])
    assert there_and_back(chain(5, top_k(0.4)), vector).tolist() == [0.0, -5.0, 3.0, 0.0, 0.0]


@given(seed=SEEDS, numel=st.integers(1, 60), fraction=st.floats(0.01, 1.0))
def test_top_k_keeps_those_numbers_exactly_and_contracts(seed, numel, fraction):
    """|Q(v) - v|^2 <= (1 - k/d) |v|^2."""
    vector = torch.randn(numel, generator=rng(seed))
    transform = chain(numel, top_k(fraction))
    found = there_and_back(transform, vector)
    kept = found != 0
    assert torch.equal(found[kept], vector[kept]) and int(kept.sum()) == transform.rest
    left = vector[~kept].abs()
    assert not len(left) or left.max() <= vector[kept].abs().min()
    error = (found - vector).square().sum()
    assert error <= (1 - transform.rest / numel) * vector.square().sum() * 1.00001


@pytest.mark.parametrize("unbiased", [True, False])
def test_random_k_is_right_in_the_mean_or_contracts(unbiased):
    """E|Q(v) - v|^2 = (1 - k/d) |v|^2 unscaled, (d/k - 1) |v|^2 scaled; both exactly."""
    vector, draws = torch.randn(20, generator=rng(1)), 4000
    transform = chain(20, random_k(0.25, unbiased=unbiased))
    many = torch.stack([there_and_back(transform, vector, seed) for seed in range(draws)])
    square, error = vector.square().sum(), (many - vector).square().sum(1).mean()
    assert error / square == pytest.approx(20 / 5 - 1 if unbiased else 1 - 5 / 20, rel=0.05)
    expected = vector if unbiased else vector / 4
    assert (many.mean(0) - expected).norm() <= 4 * math.sqrt(error / draws)
    assert ((many != 0).sum(1) == 5).all()
    assert ((many != 0).float().mean(0) - 0.25).abs().max() < 0.04, "every number is as likely"


def test_the_places_of_a_seed_are_the_same_for_ever():
    """On every host, and in every version of torch and numpy."""
    (stage,) = chain(30, random_k(0.2)).stages
    assert stage._places(torch.tensor(7)).tolist() == [3, 6, 20, 21, 23, 24]


def test_places_take_the_shorter_of_marks_and_the_code_of_elias_and_fano():
    """By hand: the low bits of each, and a one for each after a zero for each step of the high ones."""
    lengths = {(1000, 10): 8 + 4, (1000, 500): 125, (100_000, 1000): 750 + 321, (100, 1): 1 + 1}
    for (numel, count), nbytes in lengths.items():
        spec = Places(numel, count).spec
        assert (spec.dtype, spec.nbytes) == ("u8", nbytes), (numel, count)
        assert 8 * (nbytes - 2) <= count * (2 + math.log2(numel / count))


@given(data=st.data(), numel=st.integers(1, 5000))
def test_places_come_back_from_their_bytes(data, numel):
    chosen = sorted(data.draw(st.sets(st.integers(0, numel - 1), min_size=1, max_size=60)))
    places = Places(numel, len(chosen))
    sent = places.encode(torch.tensor(chosen))
    assert (sent.dtype, sent.nbytes) == (torch.uint8, places.spec.nbytes)
    assert places.decode(sent).tolist() == chosen


@given(data=st.data(), numel=st.integers(1, 300), share=st.floats(0.01, 1))
def test_bytes_of_a_stranger_are_places_in_order_or_refused(data, numel, share):
    places = Places(numel, max(1, int(share * numel)))
    sent = data.draw(st.binary(min_size=places.spec.nbytes, max_size=places.spec.nbytes))
    with suppress(ValueError):
        found = places.decode(torch.frombuffer(bytearray(sent), dtype=torch.uint8)).tolist()
        assert len(found) == places.count and found == sorted(set(found)) and 0 <= found[0] <= found[-1] < numel


def test_marks_of_another_number_are_refused():
    transform = chain(64, top_k(0.5))
    marks, values = transform.encode(torch.randn(64), {}, rng()).payload
    with pytest.raises(ValueError, match="in order"):
        transform.decode((marks | 255, values))


def test_a_seed_that_is_negative_is_refused():
    transform = chain(8, random_k(0.5))
    with pytest.raises(ValueError, match="negative"):
        transform.decode((torch.tensor([-1]), torch.zeros(4)))


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.convolution = nn.Conv2d(3, 12, 3)
        self.linear = nn.Linear(20, 10)


def test_low_rank_gives_back_what_is_of_low_rank_and_all_that_is_no_matrix():
    module = Small()
    layout = Layout.of(module)
    with torch.no_grad():
        module.linear.weight.copy_(torch.randn(10, 2) @ torch.randn(2, 20))
        module.convolution.weight.copy_((torch.randn(12, 2) @ torch.randn(2, 27)).view(12, 3, 3, 3))
    vector = flatten(module, layout)
    transform = chain(layout.numel, low_rank(2, layout))
    assert torch.allclose(there_and_back(transform, vector), vector, atol=1e-4)
    assert schema_bytes(transform.schema) == 4 * (2 * (10 + 20) + 2 * (12 + 27) + 10 + 12)


def test_low_rank_finds_the_best_factors_from_step_to_step():
    """Power iteration from the last factors: the error falls to that of the singular value decomposition."""
    layout = Layout.of(nn.Linear(20, 10, bias=False))
    vector = torch.randn(200, generator=rng(2))
    transform, state, errors = chain(200, low_rank(3, layout)), {}, []
    for _ in range(60):
        payload, state = transform.encode(vector, state, rng())
        errors.append((transform.decode(payload) - vector).square().sum().item())
    best = torch.linalg.svdvals(vector.view(10, 20))[3:].square().sum().item()
    assert errors[0] > best * 1.05 and errors[-1] == pytest.approx(best, rel=1e-3)
    assert errors[0] <= vector.square().sum()


def test_factors_are_floats_that_the_next_stage_can_quantize():
    layout = Layout.of(nn.Linear(40, 30))
    vector = torch.randn(layout.numel)
    coarse, fine = chain(layout.numel, low_rank(2, layout), uniform(8)), chain(layout.numel, low_rank(2, layout))
    assert schema_bytes(coarse.schema) < schema_bytes(fine.schema) / 3
    assert (there_and_back(coarse, vector) - there_and_back(fine, vector)).norm() < 0.05 * vector.norm()


def test_a_matrix_that_would_not_get_smaller_goes_as_it_is():
    layout = Layout.of(nn.Linear(4, 2))
    vector = torch.randn(layout.numel)
    assert torch.equal(there_and_back(chain(layout.numel, low_rank(2, layout)), vector), vector)
