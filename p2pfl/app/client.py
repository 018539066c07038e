"""`p2pfl client`: a host takes part in a course by a training function of its own over numpy arrays, without torch.

Course and seat it asks its peers for, as any host does; its examples are the function's own affair.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import msgspec
import orjson
import tyro
from safetensors.numpy import save_file

from p2pfl.app.exits import Exit
from p2pfl.app.joining import agreed_hash, fetch_course, take_seat
from p2pfl.app.options import parse
from p2pfl.app.registrar import Courier, CourseText, Join
from p2pfl.app.station import Station, StationOptions, run_player
from p2pfl.courses.arrays import ArrayTrainer
from p2pfl.errors import ConfigError, CourseError
from p2pfl.learn.arrays import ArrayLayout, vector_hash
from p2pfl.learn.lookup import load_callable
from p2pfl.learn.nodes import NodeSpec, TrainSpecs
from p2pfl.learn.specs import TrainSpec
from p2pfl.node.node import Node

__all__ = ["Client", "ClientOptions", "client_command"]


@dataclass(frozen=True, slots=True)
class ClientOptions:
    """Take part in a course by a training function of your own over numpy arrays. torch is not needed."""

    fit: str
    """Your training, package.module:function or ./file.py:function; p2pfl/courses/arrays.py says what it is given."""
    score: str = ""
    """Your evaluation, for courses whose clients evaluate: from the arrays of a model to loss, accuracy and number of
    examples."""
    model: Path | None = None
    """Write the course's model into this .safetensors file."""
    node: Annotated[StationOptions, tyro.conf.arg(name="")] = field(default_factory=StationOptions)


class Client:
    """One run of such a host."""

    def __init__(self, options: ClientOptions) -> None:
        """Raises ConfigError for functions that cannot be had, UserError for keys and trust that cannot work."""
        self._options = options
        self._fit = load_callable("--fit", options.fit)
        self._score = load_callable("--score", options.score) if options.score else None
        self._station = Station(options.node)
        self._display = self._station.display

    @property
    def node(self) -> Node:
        """The node that plays the course."""
        return self._station.node

    async def run(self) -> int:
        """Play the course to its end; the exit code."""
        async with self._station.up() as node:
            course = await fetch_course(node, self._display.line)
            tables = _checked(course)
            self._display.line(f"course {tables['course']['name']} {course.hash[:8]}: {course.text}")
            self._display.row("course", hash=course.hash, run=course.run, course=tables)
            trainer = self._trainer(course, tables)
            seat = await take_seat(node, course.registrar, Join(course.hash, node.name, self._options.node.seat))
            node.add(Courier(course), trainer)
            node.dispatch.expecting = False
            await node.members.announce(seat=seat)
            self._display.line(f"seat {seat}")
            await node.run()
        self._report(course, trainer, seat)
        return Exit.DONE

    def _trainer(self, course: CourseText, tables: Mapping[str, Any]) -> ArrayTrainer:
        if not course.layout:
            name = tables["course"]["name"]
            raise ConfigError(
                f"a client of this {name} course does more than to train from the model that it is sent; install torch "
                "and join with python -m p2pfl.node"
            )
        layout = ArrayLayout(course.layout)
        train, nodes = (
            msgspec.convert(tables["train"], TrainSpec),
            msgspec.convert(tables["nodes"], dict[str, NodeSpec]),
        )
        trains = TrainSpecs.of(train, nodes, tables["metrics"]["groups"])
        for name, shape in layout.shapes.items():
            self._display.line(f"weights {name!r} {shape}")
        return ArrayTrainer(self._fit, layout, trains, seed=tables["seed"], score=self._score)

    def _report(self, course: CourseText, trainer: ArrayTrainer, seat: int) -> None:
        if trainer.params is None or trainer.weights is None:
            raise CourseError("the node stopped before the course had a result")
        digest = vector_hash(trainer.params)
        self._display.row("report", course=course.hash, run=course.run, model_hash=digest, seat=seat)
        self._display.line(f"final model {digest}")
        if self._options.model is not None:
            _write(self._options.model, trainer, digest)


def _checked(course: CourseText) -> dict[str, Any]:
    """The course as nested tables, with the hash that its giver says it has."""
    try:
        tables = msgspec.convert(orjson.loads(course.text), dict[str, Any])
        agreed = agreed_hash(tables)
    except (orjson.JSONDecodeError, msgspec.ValidationError, KeyError, TypeError) as error:
        raise CourseError(f"the peer's course cannot be read here: {error}; both ends need the same p2pfl") from error
    if agreed != course.hash:
        raise CourseError("the peer's course does not have the hash that it says; both ends need the same p2pfl")
    return tables


def _write(path: Path, trainer: ArrayTrainer, digest: str) -> None:
    weights = trainer.weights or {}
    try:
        save_file({name: array.copy() for name, array in weights.items()}, path, {"hash": digest})
    except OSError as error:
        raise ConfigError(f"--model: {path} cannot be written ({error}); name another file") from error


def client_command(arguments: list[str]) -> int:
    """The whole command: parse, run, handle signals. Returns the exit code; raises UserError."""
    options = parse(ClientOptions, arguments, "p2pfl client")
    if not options.node.peers:
        raise ConfigError("give --peers ADDRESS, a node of the course that you want to join")
    return run_player(options.node, lambda: Client(options))
