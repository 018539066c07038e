"""How a host comes into a course: it has the course file, or asks for it, and for a seat; or it was there before.

A host that was killed goes on with its run: it finds the folder of the run by the name of the run and its own identity,
and has the seat that it had.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import orjson

from p2pfl.app.build import Setup, prepare, topology_notes
from p2pfl.app.config import Config, course_hash, from_mapping, to_mapping
from p2pfl.app.console import Display
from p2pfl.app.joining import fetch_course, take_seat
from p2pfl.app.node_options import LocalData, NodeOptions
from p2pfl.app.registrar import Courier, CourseText, Join, Registrar
from p2pfl.app.run import RunFolder, RunMark, unfinished
from p2pfl.errors import ConfigError, CourseError, require
from p2pfl.journal.disk import Folder
from p2pfl.journal.journal import Journal
from p2pfl.journal.ledger import Ledger
from p2pfl.node.node import Node
from p2pfl.topology.file import loads

__all__ = ["Enrolled", "Enrolment", "refuse_foreign_code"]

_MOST_NAME = 64


@dataclass(frozen=True, slots=True)
class Enrolled:
    """A host that knows what to play."""

    setup: Setup
    courier: Courier
    mark: RunMark
    folder: RunFolder
    journal: Journal


@dataclass(frozen=True, slots=True)
class Enrolment:
    """What a host brings along. `config`: its own course file, if it has one."""

    node: Node
    options: NodeOptions
    config: Config[Any] | None
    data: LocalData
    display: Display

    async def enrol(self) -> Enrolled:
        """Become the first node of a course, or come to one that others have begun. Raises UserError, CourseError."""
        if self.config is not None and not self.options.peers:
            return await self._found(self.config)
        return await self._join()

    async def _found(self, config: Config[Any]) -> Enrolled:
        """Be the first: keep the course, give the seats."""
        named = _named_seats(config)
        seat = self.options.seat if self.options.seat is not None else named.get(self.options.name, 0)
        begun = self._begun(course=course_hash(config))
        if begun is not None:
            seat = begun[1].seat
        setup = await asyncio.to_thread(prepare, config, seat)
        if not 0 <= seat < setup.topology.n:
            raise ConfigError(f"--seat is {seat}; the course has seats 0 to {setup.topology.n - 1}")
        text = orjson.dumps(to_mapping(config)).decode()
        run = begun[1].run if begun is not None else secrets.token_hex(8)
        course = CourseText(text, course_hash(config), self.node.id, run, setup.plain_layout)
        enrolled = await asyncio.to_thread(self._open, setup, course, seat, begun)
        self.node.add(Registrar(course.hash, setup.topology.n, seat, named, enrolled.journal))
        for note in topology_notes(config):
            self.display.line(f"note: {note}")
        for address in self.node.addresses:
            self.display.line(f"others join with: python -m p2pfl.node --peers {address}")
        return enrolled

    async def _join(self) -> Enrolled:
        """Ask a peer for the course, and who keeps the seats for one; who was there before has a seat."""
        course = await fetch_course(self.node, self.display.line)
        config = self._own_part(course)
        begun = self._begun(course=course_hash(config), run=course.run)
        wish = Join(course_hash(config), self.options.name, self.options.seat)
        seat = begun[1].seat if begun is not None else await take_seat(self.node, course.registrar, wish)
        setup = await asyncio.to_thread(prepare, config, seat)
        return await asyncio.to_thread(self._open, setup, course, seat, begun)

    def _own_part(self, course: CourseText) -> Config[Any]:
        """The peers' course, with the data and the code of this host."""
        config = _checked(course)
        self.display.line(f"course {config.course.name} {course.hash[:8]}: {course.text}")
        self.display.row("course", hash=course.hash, run=course.run, course=to_mapping(config))
        if self.config is not None and course_hash(self.config) != course.hash:
            raise ConfigError(
                f"--course has the hash {course_hash(self.config)[:8]}, the peers' course {course.hash[:8]}; "
                "use the same file and options, or leave --course out to take theirs"
            )
        if self.data.source:
            return replace(config, data=replace(config.data, source=self.data.source))
        if self.config is not None:
            return self.config
        if _is_local(config):
            raise ConfigError(
                f"the course says data.source {config.data.source!r}; say --data.source PATH on this host"
            )
        refuse_foreign_code(config, self.options.code)
        return config

    # -- the folder of the run -------------------------------------------------------------------------------------

    def _begun(self, course: str, run: str | None = None) -> tuple[Path, RunMark] | None:
        """The run of this course that this node has begun and not ended, unless a fresh one is wanted."""
        if self.options.fresh:
            return None
        return unfinished(self.options.runs, self.node.id, course=course, run=run, name=self.options.run)

    def _open(self, setup: Setup, course: CourseText, seat: int, begun: tuple[Path, RunMark] | None) -> Enrolled:
        """A new folder, or that of the run that was begun."""
        mark = RunMark(course.run, course_hash(setup.config), self.node.id, seat)
        setup = self._bounded(setup, seat, course.run)
        if begun is None:
            folder = RunFolder(self.options.runs, setup.config, self.options.run)
            folder.mark(mark)
            journal = Journal(Folder(folder.path), course.run, Ledger(folder.path))
        else:
            path, mark = begun
            journal = Journal(Folder(path), course.run, Ledger(path))
            last = journal.last()
            rounds = 0 if last is None else last.rounds
            folder = RunFolder.reopen(path, rounds)
            self.display.line(f"going on with {path} after round {rounds}; --fresh would begin anew")
            self.display.row("resumed", run=course.run, round=rounds, folder=str(path))
            for sentence in journal.damage:
                self.display.line(f"WARNING: {sentence}")
                self.display.row("damage", text=sentence)
                folder.log(sentence)
        return Enrolled(setup, Courier(course), mark, folder, journal)

    def _bounded(self, setup: Setup, seat: int, run: str) -> Setup:
        """With the ledger of our data, which lasts. Raises ConfigError where there is none, and we have a limit."""
        most = self.options.epsilon_max
        if setup.budgets is None:
            require(not most, "--epsilon-max is given, and the course adds no noise: privacy.mode is 'plain'")
            return setup
        budgets = setup.budgets.kept(self.options.privacy_ledgers, most)
        budgets.account(seat, setup.shards.get(seat), run)
        return replace(setup, budgets=budgets)


def _checked(course: CourseText) -> Config[Any]:
    try:
        config = from_mapping(orjson.loads(course.text))
    except (orjson.JSONDecodeError, ConfigError) as error:
        raise CourseError(f"the peer's course cannot be read here: {error}; both ends need the same p2pfl") from error
    if course_hash(config) != course.hash:
        raise CourseError("the peer's course does not have the hash that it says; both ends need the same p2pfl")
    if not (course.run.isalnum() and course.run.isascii() and len(course.run) <= _MOST_NAME):
        raise CourseError("the peer's run has a name that none has; both ends need the same p2pfl")
    return config


def refuse_foreign_code(config: Config[Any], allowed: Collection[str]) -> None:
    """Raise ConfigError if a peer's course names a callable of this host that its user has not allowed.

    An import path can name anything that is installed here, `os:system` included.
    """
    for name, path in _callables(config):
        if ":" in path and path not in allowed:
            raise ConfigError(
                f"the peer's course has {name} {path!r}, code of this host; if it is yours, say --code {path}"
            )


def _callables(config: Config[Any]) -> tuple[tuple[str, str], ...]:
    """The fields of a course that may name code."""
    model, train = config.model, config.train
    own = (("metrics.own", path) for path in config.metrics.own)
    others = (
        (f"nodes.{name}.train.function", str(node.train.get("function", ""))) for name, node in config.nodes.items()
    )
    return (
        ("model.name", model.name), ("model.loss", model.loss), ("train.function", train.function), *others, *own
    )  # fmt: skip


def _is_local(config: Config[Any]) -> bool:
    return "/" in config.data.source or "{" in config.data.source or Path(config.data.source).suffix != ""


def _named_seats(config: Config[Any]) -> dict[str, int]:
    if not config.topology.file:
        return {}
    return {member.name: member.seat for member in loads(config.topology.text).members}
