"""Feature shift by seat."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from p2pfl.errors import ConfigError
from p2pfl.learn.data import Dataset, Shard
from p2pfl.learn.shift import Examples, Shift, shift_of_seat
from p2pfl.learn.specs import PartitionSpec

TABLE = Examples((4,), 0)
CLASSES = Examples((4,), 7)


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
    amounts = [shift.amount for seat in range(3) if (shift := shift_of_seat(scale, seat, 3, 0, TABLE))]
    assert amounts == [1.0, 1.25, 1.5]
    assert Shift("scale", 1.5).apply(torch.tensor([2.0])).item() == 3.0
    noise = PartitionSpec(shift="noise", shift_strength=1.0)
    first, second = (shift_of_seat(noise, seat, 3, 0, TABLE) for seat in (1, 2))
    assert first is not None and second is not None and first.seed != second.seed
    assert shift_of_seat(PartitionSpec(), 1, 3, 0, TABLE) is None
    assert str(first) == "noise 0.5"


def test_only_images_turn() -> None:
    with pytest.raises(ConfigError, match=r"the examples have shape \(4,\); only images can be rotated"):
        shift_of_seat(PartitionSpec(shift="rotation", shift_strength=5), 1, 3, 0, TABLE)


def test_a_shifted_shard_is_a_copy_of_its_own_rows() -> None:
    dataset = Dataset("six", torch.arange(6.0)[:, None], torch.arange(6), ("a",) * 6, torch.arange(6), torch.arange(0))
    shard = Shard(dataset, torch.tensor([1, 3]), Shift("scale", 10.0))
    x, y = shard.shifted().dataset.batch(shard.shifted().indices)
    assert (x.flatten().tolist(), y.tolist()) == ([10.0, 30.0], [1, 3])
    assert dataset.x[1].item() == 1.0
    plain = Shard(dataset, torch.tensor([1, 3]))
    assert plain.shifted() is plain


@given(st.integers(2, 5), st.integers(0, 2**32), st.integers(2, 9))
def test_concepts_go_in_turn_and_call_the_same_classes_by_other_names(concepts: int, seed: int, classes: int) -> None:
    spec, examples = PartitionSpec(concepts=concepts), Examples((4,), classes)
    shifts = [shift_of_seat(spec, seat, 12, seed, examples) for seat in range(12)]
    y = torch.arange(classes).repeat(3)
    for seat, shift in enumerate(shifts):
        if seat % concepts == 0:
            assert shift is None, "the first concept calls them as they are"
            continue
        assert shift is not None
        own = shift_of_seat(spec, seat % concepts, 12, seed, examples)
        assert own is not None
        assert shift.names == own.names, "one concept, one set of names"
        named = shift.relabel(y)
        assert torch.equal(named.sort().values, y.sort().values), "as often as before"
        assert torch.equal(named[:classes], named[classes : 2 * classes]), "one name for each class"
        assert named.dtype == y.dtype
        assert torch.equal(shift.apply(y.float()), y.float()), "features stay as they are"


def test_without_classes_there_are_no_concepts() -> None:
    with pytest.raises(ConfigError, match=r"partition.concepts is 2, and there are no classes to call by other names"):
        shift_of_seat(PartitionSpec(concepts=2), 0, 3, 0, TABLE)


def test_a_drift_sets_in_round_by_round() -> None:
    scale = PartitionSpec(shift="scale", shift_strength=1.0, concepts=2, drift_rounds=4)
    shift = shift_of_seat(scale, 3, 4, 0, CLASSES)
    assert shift is not None
    assert str(shift) == "scale 2 and own names after 4 rounds"
    found = [shift.at(round) for round in (0, 1, 2, 4, 9)]
    assert [each.amount for each in found if each] == [1.0, 1.25, 1.5, 2.0, 2.0]
    assert [bool(each.names) for each in found if each] == [False, False, False, True, True]
    names = shift_of_seat(PartitionSpec(concepts=2, drift_rounds=4), 1, 4, 0, CLASSES)
    assert names is not None
    assert names.at(3) is None
    assert names.at(4) == Shift("none", 0.0, names.seed, names.names)


def test_a_shard_drifts_with_its_shift() -> None:
    dataset = Dataset("six", torch.ones(6, 1), torch.arange(6) % 3, ("a", "b", "c"), torch.arange(6), torch.arange(0))
    shard = Shard(dataset, torch.tensor([1, 3]), Shift("scale", 3.0, names=(2, 0, 1), onset=2))
    seen = [shard.at(round).shifted() for round in (0, 1, 2)]
    assert [each.dataset.x.flatten().tolist() for each in seen] == [[1.0, 1.0], [2.0, 2.0], [3.0, 3.0]]
    assert [each.dataset.y.tolist() for each in seen] == [[1, 0], [1, 0], [0, 2]]
    still = Shard(dataset, torch.tensor([1, 3]), Shift("scale", 3.0))
    assert still.at(0) is still
