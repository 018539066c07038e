"""Data sets of Hugging Face's library: by a stand-in for what is used of it, and by itself where it is installed."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from p2pfl.errors import ConfigError, MissingPackage
from p2pfl.learn.data import load_dataset
from p2pfl.learn.saved import arrays_of, is_saved, read_saved
from p2pfl.learn.specs import DataSpec

ROWS: dict[str, list[Any]] = {
    "age": [30, 41, 52, 63],
    "pressure": [1.1, 1.2, 1.3, 1.4],
    "note": ["a", "b", "c", "d"],
    "site": ["west", "east", "west", "east"],
    "label": [1, 0, 1, 1],
}
TABLE = DataSpec(group="site", drop=("note",))


class Split:
    """A `datasets.Dataset`, as far as it is used: strings come as objects, as they do there."""

    def __init__(self, rows: Mapping[str, list[Any]], **kinds: object) -> None:
        self.rows = rows
        self.column_names = list(rows)
        self.features = {name: SimpleNamespace() for name in rows} | kinds

    def __getitem__(self, key: str) -> list[Any]:
        return self.rows[key]

    def with_format(self, kind: str, columns: list[str]) -> Any:
        assert kind == "numpy"
        return Formatted(self, columns)

    def array(self, name: str) -> Any:
        array = np.array(self.rows[name])
        return array.astype(object) if array.dtype.kind == "U" else array


class Formatted:
    def __init__(self, split: Split, columns: list[str]) -> None:
        self.split, self.columns = split, columns

    def __getitem__(self, rows: slice) -> dict[str, Any]:
        assert rows == slice(None)
        return {name: self.split.array(name) for name in self.columns}


class Image:
    """The feature of that name."""


NAMED = SimpleNamespace(names=["well", "ill"])


def test_numbers_lie_side_by_side_and_labels_have_the_names_of_the_data_set() -> None:
    found = arrays_of(Split(ROWS, label=NAMED), TABLE)
    assert found.classes == ("well", "ill")
    assert found.members["x"].tolist() == np.array([[30, 1.1], [41, 1.2], [52, 1.3], [63, 1.4]], np.float32).tolist()
    assert found.members["y"].tolist() == [1, 0, 1, 1]
    assert found.members["groups"].tolist() == ROWS["site"]
    assert "x_test" not in found.members


def test_a_split_for_testing_is_the_test_part() -> None:
    splits = {"train": Split(ROWS), "validation": Split(ROWS), "test": Split({**ROWS, "label": [0, 0, 0, 0]})}
    found = arrays_of(splits, TABLE)
    assert found.members["y_test"].tolist() == [0, 0, 0, 0]
    assert len(arrays_of({"train": Split(ROWS), "validation": Split(ROWS)}, TABLE).members["x_test"]) == 4


def test_one_column_of_arrays_is_taken_as_it_is() -> None:
    found = arrays_of(Split({"signal": [[[1, 2]], [[3, 4]]], "label": [0, 1]}), DataSpec())
    assert found.members["x"].shape == (2, 1, 2)


@pytest.mark.parametrize(("colour", "channels"), [(False, 1), (True, 3)])
def test_images_are_scaled(colour: bool, channels: int) -> None:
    image = pytest.importorskip("PIL.Image", reason="pip install pillow")
    pictures = [image.new("L", (6, 4), 51), image.new("RGB", (3, 3), (51, 51, 51))]
    split = Split({"image": pictures, "label": [0, 1]}, image=Image())
    found = arrays_of(split, DataSpec(image_size=(4, 6), colour=colour)).members["x"]
    assert (found.shape, found.dtype, found.min(), found.max()) == ((2, channels, 4, 6), np.uint8, 51, 51)


@pytest.mark.parametrize(
    ("rows", "spec", "said"),
    [
        ({"train2": Split(ROWS)}, TABLE, "has the splits train2; there must be one named train"),
        (Split(ROWS), DataSpec(label="ill"), "data.label is 'ill', and data.source has no such column; it has age"),
        (Split(ROWS), DataSpec(group="town"), "data.group is 'town'"),
        (Split(ROWS), DataSpec(drop=("site",)), "has a column 'note' of <U1, no numbers; list it in data.drop"),
        (Split({"label": [0]}), DataSpec(), "has no column beside the label"),
        (Split({"a": [[1, 2]], "b": [1], "label": [0]}), DataSpec(), "has a column 'a' of arrays beside others"),
    ],
)
def test_mistakes(rows: Any, spec: DataSpec, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        arrays_of(rows, spec)
    assert said in str(caught.value)


def test_a_folder_that_was_saved_is_a_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not is_saved(tmp_path)
    (tmp_path / "state.json").write_text("{}")
    assert is_saved(tmp_path)
    stand_in = ModuleType("datasets")
    stand_in.load_from_disk = lambda path: Split(ROWS, label=NAMED)  # type: ignore[attr-defined]  # a module by hand
    monkeypatch.setitem(sys.modules, "datasets", stand_in)
    found = load_dataset(DataSpec(str(tmp_path), group="site", drop=("note",), test_share=0.5))
    assert found.classes == ("well", "ill")
    assert found.y.tolist() == [1, 0, 1, 1]
    assert found.group_names == ("east", "west")
    stand_in.load_from_disk = lambda path: Split(ROWS, label=SimpleNamespace(names=["well"]))  # type: ignore[attr-defined]  # as above
    with pytest.raises(ConfigError, match="has a row whose label is none of the 1 classes"):
        load_dataset(DataSpec(str(tmp_path), group="site", drop=("note",)))


def test_without_the_library_the_command_that_installs_it_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingPackage, match="pip install datasets"):
        read_saved(tmp_path, TABLE)


@pytest.mark.skipif(importlib.util.find_spec("datasets") is None, reason="pip install datasets")
def test_the_library_itself(tmp_path: Path) -> None:
    import datasets

    kinds = datasets.Features(
        age=datasets.Value("int64"),
        pressure=datasets.Value("float32"),
        note=datasets.Value("string"),
        site=datasets.Value("string"),
        label=datasets.ClassLabel(names=["well", "ill"]),
    )
    train = datasets.Dataset.from_dict(ROWS, features=kinds)
    datasets.DatasetDict(train=train, test=train).save_to_disk(str(tmp_path / "saved"))
    found = load_dataset(DataSpec(str(tmp_path / "saved"), group="site", drop=("note",)))
    assert (found.classes, len(found.train), len(found.test)) == (("well", "ill"), 4, 4)
    assert torch.equal(found.y[:4], torch.tensor([1, 0, 1, 1]))
    assert found.x[0].tolist() == pytest.approx([30, 1.1])
