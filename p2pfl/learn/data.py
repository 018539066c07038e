"""Data sets, and the parts of them that clients hold: tensors and indices, with nothing copied per client."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from p2pfl.learn.shift import Shift

__all__ = ["Dataset", "Shard"]


@dataclass(frozen=True, slots=True, eq=False)
class Dataset:
    """Examples, and which of them are for training and which for testing.

    Rows that are in neither part are not used (windows of text that would cross from one speaker to the next).
    """

    name: str
    x: Tensor  # (rows, ...) float32, or integer codes
    y: Tensor  # (rows,) integer classes, or (rows,) or (rows, outputs) float32
    classes: tuple[str, ...]  # names of the classes; empty for regression
    train_indices: Tensor  # int64
    test_indices: Tensor  # int64
    groups: Tensor | None = None  # (rows,) the number of each row's natural id
    group_names: tuple[str, ...] = ()

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one example."""
        return tuple(self.x.shape[1:])

    @property
    def train(self) -> Shard:
        """The whole training part."""
        return Shard(self, self.train_indices)

    @property
    def test(self) -> Shard:
        """The whole test part."""
        return Shard(self, self.test_indices)

    def batch(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs and targets of some rows: float32 as stored, any integers as int64, which torch's layers want."""
        x, y = self.x.index_select(0, rows), self.y.index_select(0, rows)
        return (x if x.is_floating_point() else x.long()), (y if y.is_floating_point() else y.long())

    def __repr__(self) -> str:
        parts = f"{len(self.train_indices)} + {len(self.test_indices)}"
        groups = f", {len(self.group_names)} groups" if self.groups is not None else ""
        return f"<Dataset {self.name}: {parts} x {self.input_shape}, {len(self.classes)} classes{groups}>"


@dataclass(frozen=True, slots=True, eq=False)
class Shard:
    """What one client holds: an index slice of a data set, and perhaps a shift of its features."""

    dataset: Dataset
    indices: Tensor  # int64 rows of the data set
    shift: Shift | None = None

    def __len__(self) -> int:
        return len(self.indices)

    def shifted(self) -> Shard:
        """This shard with its shift carried out, over a small data set of its own; itself if there is no shift."""
        if self.shift is None:
            return self
        x, y = self.dataset.batch(self.indices)
        rows = torch.arange(len(self.indices))
        small = replace(
            self.dataset, x=self.shift.apply(x), y=y, train_indices=rows, test_indices=rows[:0], groups=None
        )
        return Shard(small, rows)

    def split(self, share: float, seed: int) -> tuple[Shard, Shard]:
        """Two shards, the second with `share` of the examples, drawn by seed: a client's own validation part."""
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))
        cut = len(self) - round(share * len(self))
        first, second = order[:cut].sort().values, order[cut:].sort().values
        return replace(self, indices=self.indices[first]), replace(self, indices=self.indices[second])

    def __repr__(self) -> str:
        shift = f", {self.shift}" if self.shift is not None else ""
        return f"<Shard of {self.dataset.name}: {len(self)} examples{shift}>"
