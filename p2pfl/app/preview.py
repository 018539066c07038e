"""`p2pfl data` and `p2pfl check`: how data are dealt, and whether a course's messages fit together."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from rich.console import Console

from p2pfl.app.build import Setup, prepare, privacy_notes
from p2pfl.app.check import Flow, check_course, check_module, draw, draw_svg
from p2pfl.app.config import COURSES, load_config, with_topology
from p2pfl.app.console import table
from p2pfl.compute.inline import Inline
from p2pfl.errors import ConfigError
from p2pfl.learn.skew import PartitionReport

__all__ = ["check_command", "data_command"]


def data_command(arguments: list[str]) -> int:
    """Show how a course deals its data to the clients: a table of sizes, classes and skew, and a picture."""
    parser = argparse.ArgumentParser("p2pfl data", description=data_command.__doc__)
    show = parser.add_subparsers(dest="command", required=True).add_parser("show", help="the shards of a course")
    show.add_argument("course", type=Path, help="a course file")
    show.add_argument("--to", type=Path, help="draw it into this .svg")
    options = parser.parse_args(arguments)
    if options.to is not None and options.to.suffix != ".svg":
        raise ConfigError(f"--to is {options.to}; name a file that ends in .svg")
    setup = prepare(load_config(options.course))
    report = PartitionReport.of(list(setup.shards.values()))
    console = Console(highlight=False, soft_wrap=True)
    console.print(repr(setup.dataset), markup=False)
    rows = report.table()
    columns = list(rows[0])
    shown = [[f"{row[column]:g}" for column in columns] for row in rows]
    for seat, line in zip(setup.shards, shown, strict=True):
        line[0] = str(seat)
    for name, values in _more(setup).items():
        columns.append(name)
        for line, value in zip(shown, values, strict=True):
            line.append(value)
    console.print(table(f"{len(rows)} shards, by seat", columns, shown))
    console.print(
        f"mean total variation from the whole {report.total_variation:.3f}, Gini of sizes {report.quantity_gini:.3f}, "
        f"effective classes {report.effective_classes:.2f} of {len(report.classes)}"
    )
    if options.to is not None:
        report.picture(options.to)
        console.print(f"drawn in {options.to}", markup=False)
    return 0


def _more(setup: Setup) -> dict[str, list[str]]:
    """What else there is to tell of the clients: a column each, where it tells them apart from others."""
    learners = [setup.learner(seat, Inline()) for seat in setup.shards]
    columns = {
        "held out": [str(len(each.validation or ())) for each in learners],
        "test": [str(len(each.own_test or ())) for each in learners],
        "shift": [str((each.shard and each.shard.shift) or "") for each in learners],
    }
    return {name: values for name, values in columns.items() if set(values) - {"0", ""}}


def check_command(arguments: list[str]) -> int:
    """Check that every message of a course is sent, handled and answered as declared, and that the course can end."""
    parser = argparse.ArgumentParser("p2pfl check", description=check_command.__doc__)
    parser.add_argument("course", help="a course file, the name of a course, or a module (path.py or dotted name)")
    parser.add_argument("--to", type=Path, help="draw the flow into this .svg, or .mmd (Mermaid)")
    options = parser.parse_args(arguments)
    config = with_topology(load_config(Path(options.course))) if options.course.endswith(".toml") else None
    flow = _flow(options.course) if config is None else check_course(COURSES[config.course.name], config.course)
    for line in flow.lines():
        sys.stdout.write(f"{line}\n")
    if options.to is not None:
        if options.to.suffix not in (".svg", ".mmd"):
            raise ConfigError(f"--to is {options.to}; name a file that ends in .svg or .mmd")
        options.to.write_text(draw_svg(flow) if options.to.suffix == ".svg" else draw(flow), encoding="utf-8")
        sys.stdout.write(f"drawn in {options.to}\n")
    for note in () if config is None else privacy_notes(config):
        sys.stdout.write(f"note: {note}\n")
    for problem in flow.problems:
        sys.stderr.write(f"error: {problem}\n")
    if not flow.problems:
        sys.stdout.write("the message flow is sound\n")
    return 2 if flow.problems else 0


def _flow(name: str) -> Flow:
    if name in COURSES:
        return check_course(COURSES[name])
    return check_module(name)
