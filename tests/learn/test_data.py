"""Data sets and shards: rows, and nothing copied."""

import pytest
import torch

from p2pfl.learn.data import Dataset, Shard

ROWS = torch.arange(20)
TWENTY = Dataset("twenty", ROWS.float()[:, None], ROWS % 2, ("even", "odd"), ROWS[:15], ROWS[15:])


def test_batches_are_of_the_types_that_layers_take() -> None:
    x, y = TWENTY.batch(torch.tensor([3, 8]))
    assert (x.tolist(), y.tolist(), x.dtype, y.dtype) == ([[3.0], [8.0]], [1, 0], torch.float32, torch.int64)
    codes = Dataset("text", ROWS.to(torch.uint8)[:, None], ROWS.to(torch.uint8), (), ROWS, ROWS[:0])
    x, y = codes.batch(torch.tensor([19]))
    assert (x.dtype, y.dtype, x.item(), y.item()) == (torch.int64, torch.int64, 19, 19)


def test_parts() -> None:
    assert TWENTY.input_shape == (1,)
    assert (TWENTY.train.indices.tolist(), TWENTY.test.indices.tolist()) == (list(range(15)), list(range(15, 20)))
    assert TWENTY.train.dataset is TWENTY
    assert repr(TWENTY) == "<Dataset twenty: 15 + 5 x (1,), 2 classes>"
    assert repr(TWENTY.test) == "<Shard of twenty: 5 examples>"


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_a_shard_splits_by_seed(share: float) -> None:
    shard = Shard(TWENTY, ROWS[5:15])
    first, second = shard.split(share, seed=1)
    assert (len(first), len(second)) == (10 - round(10 * share), round(10 * share))
    assert sorted([*first.indices.tolist(), *second.indices.tolist()]) == shard.indices.tolist()
    assert torch.equal(shard.split(share, seed=1)[1].indices, second.indices)
