import pytest
import torch

from p2pfl.learn.batches import Work, batches, orders
from p2pfl.learn.data import Dataset, Shard
from p2pfl.learn.shift import Shift
from p2pfl.learn.specs import TrainSpec


def shard(size: int) -> Shard:
    x = torch.arange(2.0 * size).reshape(-1, 1)
    return Shard(Dataset("numbers", x, x.flatten(), (), torch.arange(2 * size), torch.arange(0)), torch.arange(size))


@pytest.mark.parametrize(
    ("spec", "sizes"),
    [
        (TrainSpec(epochs=2, batch_size=4), [4, 4, 2, 4, 4, 2]),
        (TrainSpec(epochs=2, batch_size=4, drop_last=True), [4, 4, 4, 4]),
        (TrainSpec(batch_size=40, drop_last=True), [10]),
        (TrainSpec(steps=4, batch_size=4), [4, 4, 2, 4]),
        (TrainSpec(steps=2, epochs=9, batch_size=4), [4, 4]),
    ],
)
def test_sizes(spec: TrainSpec, sizes: list[int]) -> None:
    assert [len(y) for _, y in batches(shard(10), spec, 0)] == sizes
    work = Work.of(10, spec)
    assert (work.steps, work.size) == (len(sizes), max(sizes))


def test_a_pass_is_a_permutation_drawn_by_torch() -> None:
    seen = torch.cat([y for _, y in batches(shard(300), TrainSpec(epochs=2, batch_size=7), 5)])
    generator = torch.Generator().manual_seed(5)
    expected = torch.cat([torch.randperm(300, generator=generator) for _ in range(2)]).float()
    assert torch.equal(seen, expected)
    assert torch.equal(torch.cat(orders(300, 2, generator.manual_seed(5))).float(), expected)


def test_nothing_comes_of_nothing() -> None:
    assert list(batches(shard(0), TrainSpec(steps=3), 0)) == []
    assert Work.of(0, TrainSpec(steps=3)).passes == 0


def test_a_shift_is_carried_out() -> None:
    plain, shifted = shard(6), Shard(shard(6).dataset, torch.arange(6), Shift("scale", 3.0))
    for (x, y), (other, also) in zip(
        batches(plain, TrainSpec(batch_size=4), 1), batches(shifted, TrainSpec(batch_size=4), 1), strict=True
    ):
        assert torch.equal(3 * x, other)
        assert torch.equal(y, also)
