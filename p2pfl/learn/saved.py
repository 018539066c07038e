"""Data sets of Hugging Face's library `datasets` as arrays: folders that `save_to_disk` has written, or in memory."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from p2pfl.errors import ConfigError, MissingPackage
from p2pfl.learn.files import as_pixels
from p2pfl.learn.specs import DataSpec

__all__ = ["Arrays", "arrays_of", "is_saved", "read_saved"]

_TESTS = ("test", "validation", "val")  # splits that are for testing, the first that there is


class Arrays(NamedTuple):
    """What an .npz file would hold."""

    members: dict[str, npt.NDArray[Any]]  # x, y; with a split for testing x_test, y_test; with data.group groups
    classes: tuple[str, ...]  # names of the classes, where the data set has some


def is_saved(folder: Path) -> bool:
    """Whether `save_to_disk` has written it."""
    return any((folder / name).is_file() for name in ("dataset_dict.json", "state.json"))


def read_saved(folder: Path, spec: DataSpec) -> Arrays:
    """Read a folder that `save_to_disk` has written. See `arrays_of`; raises MissingPackage without `datasets`."""
    try:
        from datasets import load_from_disk  # noqa: PLC0415 - optional: only such folders need it
    except ImportError as error:
        raise MissingPackage(f"the data set {folder}", "pip install datasets") from error
    try:
        found = load_from_disk(str(folder))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{folder} cannot be read by datasets.load_from_disk ({error}); save it anew") from error
    return arrays_of(found, spec)


def arrays_of(found: Any, spec: DataSpec) -> Arrays:
    """The arrays of a `Dataset`, or of a `DatasetDict` with `train` and perhaps `test` or `validation`.

    `data.label` and `data.group` name columns, `data.drop` those to leave out. What is left is x: one column as it is
    (images scaled to `data.image_size`), several numbers side by side. Raises ConfigError for columns that cannot be.
    """
    splits: Mapping[str, Any] = found if isinstance(found, Mapping) else {"train": found}
    if "train" not in splits:
        raise ConfigError(f"data.source has the splits {', '.join(splits)}; there must be one named train")
    train = splits["train"]
    members = {"groups": _column(train, spec.group, "data.group")} if spec.group else {}
    members["x"], members["y"] = _examples(train, spec)
    test = next((splits[name] for name in _TESTS if name in splits), None)
    if test is not None:
        members["x_test"], members["y_test"] = _examples(test, spec)
    return Arrays(members, tuple(getattr(train.features[spec.label], "names", ())))


def _examples(split: Any, spec: DataSpec) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    y = _column(split, spec.label, "data.label")
    left = [name for name in split.column_names if name not in (spec.label, spec.group, *spec.drop)]
    if not left:
        raise ConfigError("data.source has no column beside the label, the group and those of data.drop; keep one")
    if len(left) == 1 and type(split.features[left[0]]).__name__ == "Image":
        return np.stack([as_pixels(image, spec.image_size, colour=spec.colour) for image in split[left[0]]]), y
    columns = [_numbers(split, name) for name in left]
    if len(left) == 1 and columns[0].ndim > 1:
        return columns[0], y
    if deep := next((name for name, column in zip(left, columns, strict=True) if column.ndim > 1), None):
        raise ConfigError(f"data.source has a column {deep!r} of arrays beside others; list the others in data.drop")
    return np.stack(columns, 1).astype(np.float32), y


def _column(split: Any, name: str, setting: str) -> npt.NDArray[Any]:
    if name not in split.column_names:
        raise ConfigError(
            f"{setting} is {name!r}, and data.source has no such column; it has {', '.join(split.column_names)}"
        )
    column = np.asarray(split.with_format("numpy", columns=[name])[:][name])
    texts = column.dtype == object and all(isinstance(value, str) for value in column.flat)
    return column.astype(str) if texts else column


def _numbers(split: Any, name: str) -> npt.NDArray[Any]:
    column = _column(split, name, "data.source")
    if column.dtype.kind not in "biuf":
        raise ConfigError(f"data.source has a column {name!r} of {column.dtype}, no numbers; list it in data.drop")
    return column
