"""`p2pfl report`: runs side by side, as a table, a page with charts, CSV or JSON. Needs no torch."""

from __future__ import annotations

import argparse
import csv
import io
import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import orjson
from rich.console import Console
from rich.table import Table

from p2pfl.app.console import plain_console, spread_table, table
from p2pfl.app.page import page
from p2pfl.app.results import Result, Summary, common_metric, read_all, summarise
from p2pfl.courses.goal import BETTER, Goal
from p2pfl.errors import ConfigError, require
from p2pfl.learn.specs import MetricsSpec
from p2pfl.learn.spread import spreads, summaries

__all__ = ["report_command"]

_ANY_WIDTH = 10_000
_SHOWN = ("std", "min", "bottom10")  # of the spread over clients, in the table


def report_command(arguments: list[str]) -> int:
    """Compare runs by what they have left in their folders: how good, how soon, at what cost."""
    parser = argparse.ArgumentParser("p2pfl report", description=report_command.__doc__)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="the folder of a run, such as runs/NAME")
    parser.add_argument("--metric", default="", help="compare by this one; by default accuracy, or else loss")
    parser.add_argument("--best", choices=BETTER, default="auto", help="which is the best; auto: of a loss the lowest")
    parser.add_argument("--target", type=float, default=0.0, help="a run has converged when it reaches this; or else")
    parser.add_argument("--tolerance", type=float, default=0.01, help="when it is within this of its best (0.01)")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write a page with charts, which needs nothing else")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write all figures, a line for each run; - for stdout")
    parser.add_argument("--json", action="store_true", help="one JSON object for each run instead of the table")
    options = parser.parse_args(arguments)
    require(options.tolerance >= 0, f"--tolerance is {options.tolerance}; it must not be negative")
    results = read_all(options.runs)
    goal = Goal(options.metric or common_metric(results), options.best, target=options.target)
    _check(goal, results)
    _tell(options, results, [summarise(result, goal, options.tolerance) for result in results], goal)
    return 0


def _check(goal: Goal, results: Sequence[Result]) -> None:
    known = sorted({name for result in results for row in result.rows for name in row["metrics"]})
    require(goal.by in known, f"--metric is {goal.by!r}, which no round of these runs has; take one of {known}")


def _tell(options: argparse.Namespace, results: list[Result], summaries: list[Summary], goal: Goal) -> None:
    reached = f"reaches {goal.target:g}" if goal.target else f"within {options.tolerance:g} of best"
    columns, rows = _cells(summaries, reached)
    for result in results:
        if result.torn:
            sys.stderr.write(f"note: {result.torn} lines of {result.path / 'metrics.jsonl'} cannot be read\n")
    if options.html is not None:
        _write("--html", options.html, page(f"{goal.by} of {len(results)} runs", columns, rows, results, goal.by))
    if options.csv is not None:
        _write("--csv", options.csv, _csv(summaries))
    if options.json:
        for summary in summaries:
            sys.stdout.write(orjson.dumps(asdict(summary)).decode() + "\n")
    elif str(options.csv) != "-":
        console = plain_console()
        console.print(_fitting(console, f"by {goal.by}", columns, rows))
        for run, found in _over_nodes(results).items():
            console.print(f"run {run}, over its nodes that are here:", markup=False)
            console.print(spread_table(found))


def _fitting(console: Console, title: str, columns: list[str], rows: list[list[str]]) -> Table:
    """A line for each run, or a column where that is too wide."""
    flat = table(title, columns, rows)
    if console.measure(flat, options=console.options.update(width=_ANY_WIDTH)).maximum <= console.width:
        return flat
    head, *lines = (list(line) for line in zip(columns, *rows, strict=True))
    return table(title, head, lines)


def _cells(summaries: Sequence[Summary], reached: str) -> tuple[list[str], list[list[str]]]:
    """The columns that some run has something for, and their cells; and in any case that of what is to be reached."""
    made = [_row(one, reached) for one in summaries]
    told = [name for name in made[0] if name == reached or any(row[name] for row in made)]
    return told, [[row[name] for name in told] for row in made]


def _row(one: Summary, reached: str) -> dict[str, str]:
    return {
        "run": one.run if one.ended else f"{one.run} (goes on)",
        "course": one.course,
        "best": _number(one.best),
        "in round": _number(one.best_round, 0),
        "last": _number(one.last),
        reached: _number(one.reached_round, 0),
        "rounds": str(one.rounds),
        "updates": str(one.updates),
        "MB": _number(None if one.bytes is None else one.bytes / 1e6, 2),
        "virtual s": _number(one.virtual_seconds, 2),
        "real s": _number(one.seconds, 2),
        "GFLOP": _number(None if one.train_flops is None else one.train_flops / 1e9, 2),
        **{name: _number(one.spread.get(name)) for name in _SHOWN},
    }


def _number(value: float | None, digits: int = 4) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def _csv(summaries: Sequence[Summary]) -> str:
    rows = [asdict(summary) for summary in summaries]
    for row in rows:
        row |= {f"spread_{name}": value for name, value in row.pop("spread").items()}
    text = io.StringIO()
    columns = list(dict.fromkeys(name for row in rows for name in row))
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _over_nodes(results: Sequence[Result]) -> dict[str, dict[str, dict[str, float]]]:
    """How the last figures are spread over the nodes of one run on hosts, each of which has a folder of its own."""
    nodes: defaultdict[str, dict[int, dict[str, float]]] = defaultdict(dict)
    for number, result in enumerate(results):
        if result.run:
            last = {
                name: row["metrics"][name] for row in result.rows for name in result.metrics if name in row["metrics"]
            }
            nodes[result.run][number] = last
    spec = MetricsSpec(clients=("fairness",))
    return {run: spreads(summaries(found, spec)) for run, found in nodes.items() if len(found) > 1}


def _write(option: str, path: Path, text: str) -> None:
    if str(path) == "-":
        sys.stdout.write(text)
        return
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{option}: {path} cannot be written ({error.strerror}); name another file") from error
