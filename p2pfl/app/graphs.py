"""`p2pfl topology`: look at a graph before a course runs on it. Needs no torch."""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict
from pathlib import Path

import orjson
from rich.console import Console

from p2pfl.app.console import table
from p2pfl.errors import ConfigError
from p2pfl.topology.draw import save
from p2pfl.topology.families import FAMILIES, build, parameters
from p2pfl.topology.file import TopologyFile, load, shelf
from p2pfl.topology.report import describe

__all__ = ["topology_command"]


def topology_command(arguments: list[str]) -> int:
    """Show a topology: its table, spectral gap, rounds to consensus, and a drawing of it."""
    parser = argparse.ArgumentParser("p2pfl topology", description=topology_command.__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="the topology files that are shipped, and the families that files can name")
    show = commands.add_parser("show", help="one topology: a file, a shipped one by name, or FAMILY:N")
    show.add_argument("topology", help="my.toml, three-hospitals, or ring:16")
    show.add_argument("--to", type=Path, help="draw it into this .svg or .png")
    show.add_argument("--rounds", type=int, default=30, help="planned rounds, to be warned if they are too few")
    show.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    options = parser.parse_args(arguments)
    return _list() if options.command == "list" else _show(options)


def _list() -> int:
    console = Console(highlight=False, soft_wrap=True)
    for path in sorted(shelf().glob("*.toml")):
        found = load(path)
        console.print(f"{path.stem:26} {found.schedule!r}", markup=False)
    console.print("\nfamilies and their parameters:", markup=False)
    for name in FAMILIES:
        console.print(f"  {name:22} {', '.join(map(str, parameters(name).values()))}", markup=False)
    return 0


def _show(options: argparse.Namespace) -> int:
    found = _find(options.topology)
    report = describe(found.schedule)
    if options.to is not None:
        seats = [member.seat for member in found.members if member.address is None]
        save(found.schedule, options.to, title=Path(options.topology).stem, dial_only=seats)
    if options.json:
        sys.stdout.write(orjson.dumps(asdict(report)).decode() + "\n")
        return 0
    console = Console(highlight=False, soft_wrap=True)
    console.print(table(options.topology, ["", "value"], [list(row) for row in report.rows()]))
    if found.members:
        rows = [
            [str(m.seat), m.name, found.schedule.union.role(m.seat), m.address or "dials out"] for m in found.members
        ]
        console.print(table("members", ["seat", "name", "role", "address"], rows))
    for note in found.notes(options.rounds):
        console.print(f"note: {note}", markup=False)
    if options.to is not None:
        console.print(f"drawn in {options.to}", markup=False)
    return 0


def _find(name: str) -> TopologyFile:
    family, colon, number = name.partition(":")
    if colon and not Path(name).exists():
        if not number.isdigit():
            raise ConfigError(f"topology {name!r}: after the colon comes the number of nodes, as in ring:16")
        return TopologyFile(build(family, int(number)), family)
    return load(name)
