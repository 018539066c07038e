"""Course files: TOML to frozen values, with every mistake named, and options of the command line on top."""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import tomllib
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

import msgspec

from p2pfl.courses.adpsgd import ADPSGD
from p2pfl.courses.course import Course
from p2pfl.courses.dpsgd import DPSGD
from p2pfl.courses.fedavg import FEDAVG
from p2pfl.courses.hierarchical import HIERARCHICAL
from p2pfl.errors import ConfigError
from p2pfl.learn.specs import DataSpec, ModelSpec, Option, PartitionSpec, TrainSpec
from p2pfl.sim.devices import DeviceSpec
from p2pfl.sim.network import NetworkSpec
from p2pfl.topology.file import dumps, load

__all__ = [
    "COURSES",
    "Config",
    "TopologySpec",
    "course_hash",
    "from_mapping",
    "load_config",
    "to_mapping",
    "with_topology",
]

SettingsT = TypeVar("SettingsT")

COURSES: Mapping[str, Course] = {course.name: course for course in (FEDAVG, HIERARCHICAL, DPSGD, ADPSGD)}


@dataclass(frozen=True, slots=True)
class TopologySpec:
    """The table [topology] of a course file: a file, or a family with its parameters."""

    file: str = ""
    """A topology file, or the name of one that is shipped; empty: a family."""
    text: str = ""
    """The content of the file, filled in when it is read: so it travels with the course."""
    family: str = ""
    """Empty: the course's own, such as star for fedavg."""
    n: int = 9
    """Nodes, the coordinator included."""
    parameters: dict[str, Option] = field(default_factory=dict)
    """Of the family, such as degree or seed."""


@dataclass(frozen=True, slots=True)
class Config(Generic[SettingsT]):
    """A course file. Everything has a default, so that `[course] name = "fedavg"` is one."""

    course: SettingsT
    seed: int = 0
    """Rules all that is drawn: data split, initial model, cohorts, batches, network, devices."""
    topology: TopologySpec = field(default_factory=TopologySpec)
    data: DataSpec = field(default_factory=DataSpec)
    partition: PartitionSpec = field(default_factory=PartitionSpec)
    model: ModelSpec = field(default_factory=ModelSpec)
    train: TrainSpec = field(default_factory=TrainSpec)
    network: NetworkSpec = field(default_factory=NetworkSpec)
    devices: DeviceSpec = field(default_factory=DeviceSpec)


def load_config(path: Path) -> Config[Any]:
    """Read a course file: TOML, or the course.json of a run, or a run's folder. ConfigError names file, field, mend."""
    if path.is_dir():
        path = path / "course.json"
    try:
        given = _read(path)
    except FileNotFoundError:
        raise ConfigError(
            f"there is no course file {path}; give the path of one, such as examples/digits.toml"
        ) from None
    except OSError as error:
        raise ConfigError(f"the course file {path} cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not {'JSON' if path.suffix == '.json' else 'TOML'}: {error}") from error
    try:
        return with_topology(from_mapping(given), path.parent)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def _read(path: Path) -> dict[str, Any]:
    content = path.read_bytes()
    if path.suffix == ".json":
        return msgspec.json.decode(content, type=dict[str, Any])
    return tomllib.loads(content.decode())


def with_topology(config: Config[Any], folder: Path = Path()) -> Config[Any]:
    """The configuration with the text of its topology file, which is looked for in `folder` and on the shelf."""
    spec = config.topology
    if not spec.file or spec.text:
        return config
    beside = folder / spec.file
    found = load(beside if beside.is_file() else spec.file)
    return dataclasses.replace(config, topology=dataclasses.replace(spec, text=dumps(found)))


def from_mapping(given: Mapping[str, Any]) -> Config[Any]:
    """A Config of nested tables. Raises ConfigError naming the field, and the nearest name for one that is unknown."""
    course = given.get("course")
    if not isinstance(course, Mapping) or not isinstance(course.get("name"), str):
        raise ConfigError(f'course.name is missing; write [course] and name = "..." (one of {", ".join(COURSES)})')
    name = course["name"]
    if name not in COURSES:
        raise ConfigError(f"course.name is {name!r}, which is no course{_nearest(name, COURSES)}")
    types: dict[str, Any] = typing.get_type_hints(Config) | {"course": COURSES[name].settings}
    _known("", given, types)
    values = {section: _section(section, types[section], value) for section, value in given.items()}
    return Config(**values)


def _section(name: str, kind: Any, value: Any) -> Any:
    if dataclasses.is_dataclass(kind):
        if not isinstance(value, Mapping):
            raise ConfigError(f"{name} is {value!r}; it must be a table, [{name}]")
        _known(f"{name}.", value, {field.name for field in dataclasses.fields(kind)})
    try:
        return msgspec.convert(value, kind, strict=True)
    except msgspec.ValidationError as error:
        what, _, where = str(error).partition(" - at `$")
        raise ConfigError(f"{name}{where.rstrip('`')}: {what[:1].lower()}{what[1:]}") from error


def _known(prefix: str, given: Iterable[str], known: Iterable[str]) -> None:
    for key in given:
        if key not in set(known):
            raise ConfigError(f"{prefix}{key} is not known{_nearest(key, known)}")


def _nearest(name: str, choices: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(choices), 1)
    return f"; did you mean {close[0]}?" if close else f"; known are {', '.join(sorted(choices))}"


def to_mapping(config: Config[Any]) -> dict[str, Any]:
    """The whole configuration as nested tables of plain values; `from_mapping` gives it back."""
    plain: dict[str, Any] = msgspec.to_builtins(config)
    return plain


def course_hash(config: Config[Any]) -> str:
    """What all nodes of a course must agree on, as 32 hex digits. Not in it: where a host keeps its own files."""
    agreed = to_mapping(config)
    for simulated in ("network", "devices"):
        del agreed[simulated]
    if any(mark in config.data.source for mark in "/.{"):
        agreed["data"]["source"] = "local files"
    return hashlib.blake2b(
        msgspec.json.encode(agreed, order="sorted"), digest_size=16, person=b"p2pfl-course"
    ).hexdigest()
