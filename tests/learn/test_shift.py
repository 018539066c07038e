"""Feature shift by seat."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from p2pfl.errors import ConfigError
from p2pfl.learn.data import Dataset, Shard
from p2pfl.learn.shift import Shift, shift_of_seat
from p2pfl.learn.specs import PartitionSpec


@given(st.integers(1, 5), st.integers(1, 5))
def test_a_quarter_turn_is_exact_on_square_images(channels: int, size: int) -> None:
    x = torch.rand(2, channels, size, size)
    turned = Shift("rotation", 90).apply(x)
    assert torch.allclose(turned, torch.rot90(x, 1, (2, 3)), atol=1e-5)
    assert torch.allclose(Shift("rotation", 0).apply(x), x, atol=1e-6)


def test_a_half_turn_is_exact_on_oblong_images() -> None:
    x = torch.rand(1, 1, 4, 7)
    assert torch.allclose(Shift("rotation", 180).apply(x), x.flip(2, 3), atol=1e-5)


def test_a_turn_keeps_the_shape_of_what_is_seen() -> None:
    """A vertical bar in a wide image becomes a horizontal bar of the same length."""
    x = torch.zeros(1, 1, 5, 9)
    x[0, 0, 1:4, 4] = 1
    turned = Shift("rotation", 90).apply(x)
    expected = torch.zeros_like(x)
    expected[0, 0, 2, 3:6] = 1
    assert torch.allclose(turned, expected, atol=1e-5)


def test_noise_is_seeded_and_of_the_stated_size() -> None:
    x = torch.zeros(100, 100)
    noise = Shift("noise", 0.3, seed=5).apply(x)
    assert noise.std().item() == pytest.approx(0.3, rel=0.05)
    assert torch.equal(noise, Shift("noise", 0.3, seed=5).apply(x))
    assert not torch.equal(noise, Shift("noise", 0.3, seed=6).apply(x))


def test_strength_grows_from_the_first_seat_to_the_last() -> None:
    scale = PartitionSpec(shift="scale", shift_strength=0.5)
    amounts = [shift.amount for seat in range(3) if (shift := shift_of_seat(scale, seat, 3, 0, (4,)))]
    assert amounts == [1.0, 1.25, 1.5]
    assert Shift("scale", 1.5).apply(torch.tensor([2.0])).item() == 3.0
    noise = PartitionSpec(shift="noise", shift_strength=1.0)
    first, second = (shift_of_seat(noise, seat, 3, 0, (4,)) for seat in (1, 2))
    assert first is not None and second is not None and first.seed != second.seed
    assert shift_of_seat(PartitionSpec(), 1, 3, 0, (4,)) is None
    assert str(first) == "noise 0.5"


def test_only_images_turn() -> None:
    with pytest.raises(ConfigError, match=r"the examples have shape \(4,\); only images can be rotated"):
        shift_of_seat(PartitionSpec(shift="rotation", shift_strength=5), 1, 3, 0, (4,))


def test_a_shifted_shard_is_a_copy_of_its_own_rows() -> None:
    dataset = Dataset("six", torch.arange(6.0)[:, None], torch.arange(6), ("a",) * 6, torch.arange(6), torch.arange(0))
    shard = Shard(dataset, torch.tensor([1, 3]), Shift("scale", 10.0))
    x, y = shard.shifted().dataset.batch(shard.shifted().indices)
    assert (x.flatten().tolist(), y.tolist()) == ([10.0, 30.0], [1, 3])
    assert dataset.x[1].item() == 1.0
    plain = Shard(dataset, torch.tensor([1, 3]))
    assert plain.shifted() is plain
