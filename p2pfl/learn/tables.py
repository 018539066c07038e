"""A CSV file as numbers: numeric columns as they are, other columns one-hot, one column as the label."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from p2pfl.errors import ConfigError
from p2pfl.learn.specs import DataSpec

__all__ = ["Table", "read_csv"]

_EMPTY = {"", "?", "na", "n/a", "nan", "null", "none"}
_MENDS = "fill the cell, or set data.missing to drop or fill"


@dataclass(frozen=True, slots=True, eq=False)
class Table:
    """What was read."""

    x: npt.NDArray[np.float32]  # (rows, features)
    y: npt.NDArray[np.int64] | npt.NDArray[np.float32]  # (rows,)
    classes: tuple[str, ...]  # empty for regression
    features: tuple[str, ...]  # what each feature is: "age", "sex=male"
    groups: npt.NDArray[np.int64] | None  # (rows,)
    group_names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Column:
    """The cells of one column, and enough to name one of them in an error."""

    path: Path
    name: str
    cells: Sequence[str]  # stripped; empty where missing
    lines: Sequence[int]  # line number of each cell

    def error(self, row: int, problem: str, mend: str) -> ConfigError:
        return ConfigError(f"{self.path}, line {self.lines[row]}, column {self.name!r} {problem}; {mend}")

    def require(self) -> None:
        if "" in self.cells:
            raise self.error(self.cells.index(""), "is empty", _MENDS)

    def numbers(self) -> npt.NDArray[np.float64] | None:
        """The cells as finite numbers, NaN where missing; None if one of them is no number."""
        values = np.full(len(self.cells), np.nan)
        for row, cell in enumerate(self.cells):
            if cell:
                try:
                    values[row] = float(cell)
                except ValueError:
                    return None
                if not math.isfinite(values[row]):
                    raise self.error(row, f"is {cell}", "give a finite number or leave the cell empty")
        return values

    def codes(self, names: Sequence[str], setting: str) -> npt.NDArray[np.int64]:
        """The place of each cell in `names`, -1 where missing."""
        places = {name: place for place, name in enumerate(names)} | {"": -1}
        for row, cell in enumerate(self.cells):
            if cell not in places:
                raise self.error(row, f"is {cell!r}, which {setting} does not list", "add it there or mend the cell")
        return np.array([places[cell] for cell in self.cells], np.int64)

    def seen(self) -> tuple[str, ...]:
        """The values in order: as numbers if all are, else as text."""
        values = {cell for cell in self.cells if cell}
        return tuple(sorted(values, key=float) if self.numbers() is not None else sorted(values))


def read_csv(path: Path, spec: DataSpec) -> Table:
    """Read a table whose first line names the columns.

    Raises ConfigError naming line and column for a ragged row, an empty cell that `spec.missing` refuses, a number
    that is not finite, a value that `spec.labels` or `spec.categories` does not list, a column that is not there.
    """
    columns = _read_columns(path, spec)
    label = columns.pop(spec.label)
    label.require()
    y, classes = _label(label, spec)
    group = columns.pop(spec.group) if spec.group else None
    group_names = group.seen() if group is not None else ()
    if group is not None:
        group.require()
    blocks: list[npt.NDArray[np.float64]] = []
    features: list[str] = []
    for column in columns.values():
        if spec.missing != "fill":
            column.require()
        block, names = _encode(column, spec)
        blocks.append(block)
        features += names
    if not features:
        raise ConfigError(f"{path} has no feature columns beside the label and the group; give at least one")
    groups = group.codes(group_names, "data.group") if group is not None else None
    return Table(np.concatenate(blocks, 1).astype(np.float32), y, classes, tuple(features), groups, group_names)


def _read_columns(path: Path, spec: DataSpec) -> dict[str, _Column]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file)
            header = [name.strip() for name in next(reader, [])]
            named = [(reader.line_num, [_cell(cell) for cell in row]) for row in reader if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"{path} cannot be read as a CSV file in UTF-8 ({error}); save it anew") from error
    if twice := [name for place, name in enumerate(header) if name in header[:place]]:
        raise ConfigError(f"{path} has two columns {twice[0]!r}; rename one of them")
    wanted = [("data.label", spec.label), *[("data.group", spec.group)] * bool(spec.group)]
    wanted += [("data.drop", name) for name in spec.drop] + [("data.categories", name) for name in spec.categories]
    for setting, name in wanted:
        if name not in header:
            raise ConfigError(f"{setting} is {name!r}, and {path} has no such column; it has {', '.join(header)}")
    for line, row in named:
        if len(row) != len(header):
            raise ConfigError(
                f"{path}, line {line} has {len(row)} cells where the header has {len(header)}; mend the line"
            )
    kept = [place for place, name in enumerate(header) if name not in spec.drop]
    if spec.missing == "drop":
        named = [(line, row) for line, row in named if all(row[place] for place in kept)]
    if not named:
        raise ConfigError(f"{path} has no rows to learn from; check the file and data.missing")
    lines = [line for line, _ in named]
    return {header[place]: _Column(path, header[place], [row[place] for _, row in named], lines) for place in kept}


def _cell(text: str) -> str:
    text = text.strip()
    return "" if text.lower() in _EMPTY else text


def _label(column: _Column, spec: DataSpec) -> tuple[npt.NDArray[np.int64] | npt.NDArray[np.float32], tuple[str, ...]]:
    if spec.task == "classification":
        classes = spec.labels or column.seen()
        return column.codes(classes, "data.labels"), classes
    values = column.numbers()
    if values is None:
        raise ConfigError(f"{column.path}: label {column.name!r} is no number; set data.task to classification")
    return values.astype(np.float32), ()


def _encode(column: _Column, spec: DataSpec) -> tuple[npt.NDArray[np.float64], list[str]]:
    values = None if column.name in spec.categories else column.numbers()
    if values is None:
        names = spec.categories.get(column.name) or column.seen()
        codes = column.codes(names, f"data.categories.{column.name}")
        return (codes[:, None] == np.arange(len(names))).astype(np.float64), [f"{column.name}={name}" for name in names]
    missing = np.isnan(values)
    if missing.all():
        raise ConfigError(f"{column.path}: column {column.name!r} is empty throughout; list it in data.drop")
    return np.where(missing, values[~missing].mean(), values)[:, None], [column.name]
