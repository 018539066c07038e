"""What a person sees of a run: a progress bar and one line per event on a terminal, plain lines elsewhere, or JSON."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from types import TracebackType
from typing import Self

import orjson
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

__all__ = ["Display", "plain_console", "spread_table", "table"]

_WIDE = 240


class Display:
    """Where a command writes. With `as_json`, every line is an object on stdout, and nothing else is.

    `quiet`: nothing is said to a person, who reads a log instead.
    """

    def __init__(self, *, as_json: bool, total: int, quiet: bool = False) -> None:
        self._json = as_json
        self._human = not (as_json or quiet)
        self._console = plain_console(stderr=as_json)
        self._live = self._console.is_terminal and self._human
        self._progress = Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
            console=self._console, disable=not self._live,
        )  # fmt: skip
        self._task: TaskID | None = None
        self._total = total

    def line(self, text: str) -> None:
        """One line for a person."""
        if self._human:
            self._console.print(text, markup=False)

    def row(self, kind: str, **values: object) -> None:
        """One object for a machine."""
        if self._json:
            sys.stdout.write(orjson.dumps({"kind": kind, **values}).decode() + "\n")
            sys.stdout.flush()

    def step(self, done: int, text: str, total: int | None = None) -> None:
        """A round is over, or whatever else is counted. `total`: of how many, if that is not what it was before."""
        if self._live:
            if self._task is None:
                self._task = self._progress.add_task("rounds", total=self._total)
            self._progress.update(self._task, completed=done, description=text, total=total)

    def table(self, table: Table) -> None:
        """A table for a person."""
        if self._human:
            self._console.print(table)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()


def plain_console(*, stderr: bool = False) -> Console:
    """Text as it is. Where neither a terminal nor COLUMNS says how wide it is, tables have the room that they need."""
    console = Console(stderr=stderr, highlight=False, soft_wrap=True)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = _WIDE
    return console


def table(title: str, columns: list[str], rows: list[list[str]]) -> Table:
    """A table with numbers to the right."""
    made = Table(title=title, title_justify="left")
    for column in columns:
        made.add_column(column, justify="right")
    for row in rows:
        made.add_row(*row)
    return made


def spread_table(found: Mapping[str, Mapping[str, float]]) -> Table:
    """How metrics are spread over clients; see p2pfl.learn.spread."""
    figures = dict.fromkeys(figure for values in found.values() for figure in values)
    rows = [
        [figure, *(f"{values[figure]:.4f}" if figure in values else "" for values in found.values())]
        for figure in figures
    ]
    return table("over the clients, in the last round", ["", *found], rows)
