"""Topologies as TOML files: a family with its parameters, or a deployment with named members.

    family = "torus"                        [[member]]
    n = 16                                  name = "amsterdam"
    rows = 2                                address = "amsterdam.example.org:7700"
                                            [[member]]
                                            name = "berlin"            # no address: it only dials out
                                            [links]
                                            amsterdam = ["berlin"]

The README of `topologies/` explains every key. Unknown keys, wrong types and graphs that cannot work raise ConfigError.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_type_hints

from p2pfl.errors import ConfigError
from p2pfl.topology.checks import refuse_unknown, typed, unknown
from p2pfl.topology.families import AnySchedule, build, parameters
from p2pfl.topology.graph import Topology

__all__ = ["Member", "TopologyFile", "dumps", "load", "loads", "shelf"]


@dataclass(frozen=True, slots=True)
class Member:
    """A named participant. Without an address it cannot be dialled: it sits behind NAT and only dials out."""

    name: str
    seat: int
    address: str | None = None
    role: str | None = None  # None: what the family says of the seat, else "peer"


@dataclass(frozen=True)
class TopologyFile:
    """The content of a file, checked: everybody is connected, and every link has an end that can be dialled.

    `family` is None if the links are written out. `members` is empty or has one entry per seat, in order of seats.
    """

    schedule: AnySchedule
    family: str | None = None
    parameters: Mapping[str, object] = field(default_factory=dict)
    members: tuple[Member, ...] = ()
    about: str = ""

    def __post_init__(self) -> None:
        union = self.schedule.union
        if not union.is_connected:
            start, lost = next((a, b) for a in range(union.n) for b in range(union.n) if b not in union.distances(a))
            way = "a one-way link" if union.directed else "a link"
            raise ConfigError(
                f"{self._called(lost)} cannot be reached from {self._called(start)}: add {way} between the two parts"
            )
        for a, b in union.edges if self.members else ():
            if self.members[a].address is None and self.members[b].address is None:
                raise ConfigError(
                    f"members {self.members[a].name!r} and {self.members[b].name!r} are linked and both only dial out: "
                    "give one of them an address, or link each to a member that has one"
                )

    def _called(self, seat: int) -> str:
        return f"member {self.members[seat].name!r}" if self.members else f"seat {seat}"

    def member(self, name: str) -> Member:
        """The member of that name. Raises ConfigError with the nearest name."""
        for member in self.members:
            if member.name == name:
                return member
        raise unknown("member", name, [member.name for member in self.members])

    @property
    def dial_only(self) -> tuple[int, ...]:
        """The seats of the members without an address."""
        return tuple(member.seat for member in self.members if member.address is None)

    def dials(self, name: str) -> tuple[Member, ...]:
        """Whom this member dials: for every link one of the two ends does, the later seat if both have an address."""
        me = self.member(name)
        others = (self.members[seat] for seat in sorted(self._linked(me.seat)))
        return tuple(m for m in others if m.address is not None and (me.address is None or me.seat > m.seat))

    def _linked(self, seat: int) -> set[int]:
        union = self.schedule.union
        return {*union.neighbors(seat), *union.senders(seat)}

    def notes(self, rounds: int | None = None) -> list[str]:
        """What the user should know before a run of so many rounds. Needs numpy; O(n³)."""
        from p2pfl.topology.mixing import keeps_mean  # noqa: PLC0415 - numpy, which loading a file does without
        from p2pfl.topology.report import describe  # noqa: PLC0415 - the same

        report = describe(self.schedule)
        notes = []
        if not all(keeps_mean(self.schedule.at(t)) for t in range(self.schedule.period or 5)):
            notes.append(f"the one-way links of {report.family!r} move the mean of all: only push-sum corrects for it")
        if rounds is not None and report.rounds > rounds:
            notes.append(
                f"a disagreement shrinks to 1e-3 only after {report.rounds:g} rounds on this topology (spectral gap "
                f"{report.gap:.4f}), and {rounds} are planned: add rounds or links, or choose another family"
            )
        return notes


def shelf() -> Path:
    """The folder of the topologies that come with p2pfl: in the package, or beside it in a checkout."""
    package = Path(__file__).resolve().parents[1]
    inside = package / "topologies"
    return inside if inside.is_dir() else package.parent / "topologies"


def load(source: str | Path) -> TopologyFile:
    """Read a file by its path, or one that comes with p2pfl by its name: `load("torus-16")`.

    Raises ConfigError in one sentence, with the file's name, for whatever is wrong with it.
    """
    path = Path(source)
    if isinstance(source, str) and path.name == source and not path.is_file():
        known = {file.stem: file for file in shelf().glob("*.toml")}
        if path.name.removesuffix(".toml") not in known:
            raise unknown("topology", source, known)
        path = known[path.name.removesuffix(".toml")]
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ConfigError(f"topology file {path} cannot be read: {reason}") from error
    try:
        return loads(text)
    except ConfigError as error:
        raise ConfigError(f"{path.name}: {error}") from error


def loads(text: str) -> TopologyFile:
    """Read the text of a file. Raises ConfigError.

    >>> loads('family = "ring"\\nn = 5').schedule
    <Topology ring: 5 seats, 5 edges, degree 2>
    """
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"this is no TOML: {error}") from error
    about = typed("topology", "about", table.pop("about", ""), str)
    members = _members(table.pop("member", []))
    if "links" in table:
        refuse_unknown("beside [links], the key", table.keys(), ["about", "links", "member"])
        return TopologyFile(_linked_graph(table["links"], members), None, {}, members, about)
    if "family" not in table:
        refuse_unknown("key", table.keys(), ["about", "family", "links", "member", "n"])
        raise ConfigError('family is missing: write one, as family = "ring", or a table [links] between members')
    family = typed("topology", "family", table.pop("family"), str)
    refuse_unknown("key", table.keys(), ["about", "family", "member", "n", *parameters(family)])
    n = table.pop("n", len(members) or None)
    if n is None:
        raise ConfigError(f"n is missing: say how many seats family {family!r} has")
    if members and n != len(members):
        raise ConfigError(
            f"n = {n} contradicts the {len(members)} members: leave n out, or list a member for each seat"
        )
    schedule = build(family, n, **table)
    if members:
        schedule = schedule.with_members([m.name for m in members], _roles(members, schedule.union))
    return TopologyFile(schedule, family, table, members, about)


def _members(entries: object) -> tuple[Member, ...]:
    """The members in order of their seats; those who name none take the free seats in the order of the file."""
    kinds = get_type_hints(Member)
    tables = typed("topology", "member", entries, list[dict[str, Any]])
    for number, table in enumerate(tables, 1):
        where = f"member {table.get('name', number)!r}"
        refuse_unknown(f"{where}: key", table, kinds)
        for key, value in table.items():
            typed(where, key, value, kinds[key])
        if not table.get("name") or "" in table.values():
            raise ConfigError(f"{where}: name must be there, and neither name, address nor role may be empty")
        if not 0 <= table.get("seat", 0) < len(tables):
            raise ConfigError(
                f"{where}: seat = {table['seat']} must be from 0 to {len(tables) - 1}, one seat per member"
            )
    chosen = {table["seat"]: table for table in tables if "seat" in table}
    free = iter([table for table in tables if "seat" not in table])
    if len(chosen) + sum("seat" not in table for table in tables) < len(tables):
        raise ConfigError("two members have the same seat: give each its own, or leave seat out")
    return tuple(Member(**((chosen.get(seat) or next(free)) | {"seat": seat})) for seat in range(len(tables)))


def _roles(members: Sequence[Member], graph: Topology) -> list[str]:
    return [member.role or graph.role(seat) for seat, member in enumerate(members)]


def _linked_graph(links: object, members: Sequence[Member]) -> Topology:
    if not members:
        raise ConfigError("links join members, and there is none: add a [[member]] table for each end")
    seats = {member.name: seat for seat, member in enumerate(members)}
    edges = []
    for name, others in typed("topology", "links", links, dict[str, Any]).items():
        for other in (name, *typed("links", name, others, list[str])):
            if other not in seats:
                raise unknown("links: member", other, seats)
            if other != name:
                edges.append((seats[name], seats[other]))
    graph = Topology.from_edges(len(members), edges, family="links")
    return graph.with_members(seats, _roles(members, graph))


def dumps(content: TopologyFile | Topology) -> str:
    """Write what `loads` reads back to an equal value. A bare topology is written by its edges alone.

    >>> print(dumps(Topology.from_edges(3, [(0, 1), (1, 2)])))
    family = "edges"
    n = 3
    edges = [[0, 1], [1, 2]]
    <BLANKLINE>
    """
    if isinstance(content, Topology):
        more = {"edges": content.edges} | ({"directed": True} if content.directed else {})
        content = TopologyFile(content, "edges", more)
    lines = [f"about = {_toml(content.about)}"] if content.about else []
    if content.family is not None:
        lines += [f"family = {_toml(content.family)}"] + ([] if content.members else [f"n = {content.schedule.n}"])
        lines += [f"{key} = {_toml(value)}" for key, value in content.parameters.items()]
    for member in content.members:
        lines += ["", "[[member]]"]
        given = {"name": member.name, "address": member.address, "role": member.role}
        lines += [f"{key} = {_toml(value)}" for key, value in given.items() if value is not None]
    if content.family is None:
        lines += ["", "[links]"]
        graph = content.schedule.union
        later = {seat: [graph.name(other) for a, other in graph.edges if a == seat] for seat in range(graph.n)}
        lines += [f"{_toml(graph.name(seat))} = {_toml(others)}" for seat, others in later.items() if others]
    return "\n".join(lines).lstrip("\n") + "\n"


def _toml(value: object) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_toml(key)} = {_toml(entry)}" for key, entry in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_toml, value))}]"
    # JSON's strings, numbers and booleans are TOML's too, but for DEL, which TOML wants escaped.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
