"""What a run has left in its folder, read again to be compared with others. Needs no torch."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from p2pfl.app.lines import rows_of
from p2pfl.courses.goal import USUAL, Goal
from p2pfl.courses.scores import CLIENT
from p2pfl.errors import ConfigError
from p2pfl.learn.spread import spread_names, spreads

__all__ = ["Result", "Summary", "common_metric", "read_all", "summarise"]


@dataclass(frozen=True, slots=True)
class Result:
    """A run. A row is one round: `round`, `participants`, `metrics`; of a simulation `virtual_seconds` and `bytes`."""

    path: Path
    name: str
    course: str
    rows: Sequence[Mapping[str, Any]]
    figures: Mapping[str, Any]  # those of the whole run; empty if it has not ended
    run: str = ""  # that the nodes of one run on hosts have in common
    torn: int = 0  # lines of metrics.jsonl that cannot be read

    @classmethod
    def read(cls, path: Path, name: str = "") -> Result:
        """Under this name, or that of the folder. Raises ConfigError for what is no folder of a run, or of one that
        has had no round.
        """
        lines = path / "metrics.jsonl"
        try:
            content = lines.read_bytes()
        except OSError as error:
            raise ConfigError(f"{path} is no run: {_why(path, error)}") from error
        rows = [row for row in rows_of(content) if _is_whole(row)]
        if not rows:
            raise ConfigError(f"{path} has no round yet; report on it once its first round has ended")
        course = _object(path / "course.json").get("course")
        kind = str(course.get("name", "")) if isinstance(course, dict) else ""
        run = str(_object(path / "run.json").get("run", ""))
        torn = sum(bool(line.strip()) for line in content.splitlines()) - len(rows)
        return cls(path, name or path.name, kind, rows, _object(path / "report.json"), run, torn)

    @property
    def metrics(self) -> list[str]:
        """All that is in some round, but for how it is spread over clients."""
        names = dict.fromkeys(name for row in self.rows for name in row["metrics"])
        spread = spread_names(names)
        return [name for name in names if name not in spread]

    def points(self, y: str, x: Callable[[Mapping[str, Any]], float | None]) -> list[tuple[float, float]]:
        """One metric against something else, for the rounds that have both."""
        pairs = [(x(row), row["metrics"][y]) for row in self.rows if y in row["metrics"]]
        return [(at, float(value)) for at, value in pairs if at is not None]


@dataclass(frozen=True, slots=True)
class Summary:
    """A run in one line. What it does not tell is None."""

    run: str
    course: str
    metric: str
    best: float | None
    best_round: int | None
    last: float | None
    reached_round: int | None  # the first round that is good enough
    reached_bytes: int | None  # sent by then
    reached_virtual_seconds: float | None
    rounds: int
    updates: int
    bytes: int | None  # sent by all nodes of a simulation, or by this one on its host
    virtual_seconds: float | None
    seconds: float | None
    train_flops: float | None
    ended: bool
    spread: Mapping[str, float]  # of the metric over nodes, or as clients have found it; the last that there is


def read_all(paths: Sequence[Path]) -> list[Result]:
    """Runs, each by as much of its path as the others do not share. Raises ConfigError as `Result.read` does."""
    whole = [path.resolve() for path in paths]
    shared = os.path.commonpath([path.parent for path in whole])
    return [Result.read(path, str(at.relative_to(shared))) for path, at in zip(paths, whole, strict=True)]


def common_metric(results: Iterable[Result]) -> str:
    """What runs are compared by, if nothing else is wanted: what most of them have of accuracy and loss."""
    counts = [sum(name in result.metrics for result in results) for name in USUAL]
    return USUAL[counts.index(max(counts))]


def summarise(result: Result, goal: Goal, tolerance: float) -> Summary:
    """A run by the metric of `goal`: good enough is what reaches its target, or if it has none what is at most
    `tolerance` worse than the best.
    """
    name = goal.by
    measured = [row for row in result.rows if name in row["metrics"]]
    sign = -1.0 if goal.falls(name) else 1.0
    merits = [sign * row["metrics"][name] for row in measured]
    best = max(range(len(merits)), key=merits.__getitem__, default=None)
    enough = sign * goal.target if goal.target else max(merits, default=math.inf) - tolerance
    reached = next((row for row, merit in zip(measured, merits, strict=True) if merit >= enough), {})
    figures, last = result.figures, result.rows[-1]
    found = (spreads(row["metrics"]) for row in result.rows)
    spread = [each for one in found if (each := one.get(name) or one.get(f"{CLIENT}{name}"))]
    return Summary(
        run=result.name,
        course=result.course,
        metric=name,
        best=None if best is None else measured[best]["metrics"][name],
        best_round=None if best is None else measured[best]["round"],
        last=measured[-1]["metrics"][name] if measured else None,
        reached_round=reached.get("round"),
        reached_bytes=reached.get("bytes"),
        reached_virtual_seconds=reached.get("virtual_seconds"),
        rounds=last["round"],
        updates=sum(row["participants"] for row in result.rows),
        bytes=figures.get("bytes", figures.get("bytes_sent", last.get("bytes"))),
        virtual_seconds=figures.get("virtual_seconds", last.get("virtual_seconds")),
        seconds=figures.get("seconds"),
        train_flops=figures.get("train_flops"),
        ended=bool(figures),
        spread=spread[-1] if spread else {},
    )


def _object(path: Path) -> dict[str, Any]:
    """A JSON object; an empty one where there is none, as before a run has ended, or where it is damaged."""
    try:
        found = orjson.loads(path.read_bytes())
    except (OSError, orjson.JSONDecodeError):
        return {}
    return found if isinstance(found, dict) else {}


def _is_whole(row: Mapping[str, Any]) -> bool:
    metrics = row.get("metrics")
    numbers = isinstance(metrics, dict) and all(isinstance(value, int | float) for value in metrics.values())
    return numbers and isinstance(row.get("participants"), int)


def _why(path: Path, error: OSError) -> str:
    if not path.exists():
        return "there is no such folder; give one that p2pfl simulate or a node has made, such as runs/NAME"
    if any(path.glob("*/metrics.jsonl")):
        return f"it holds some; give these, as in p2pfl report {path}/*"
    return f"metrics.jsonl cannot be read ({error.strerror}); give a folder that p2pfl simulate or a node has made"
