"""Course files: TOML to frozen values, with every mistake named, and options of the command line on top."""

from __future__ import annotations

import dataclasses
import difflib
import tomllib
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Generic, TypeVar

import msgspec
import tyro

from p2pfl.app.joining import agreed_hash
from p2pfl.courses.adpsgd import ADPSGD
from p2pfl.courses.apfl import APFL
from p2pfl.courses.baselines import LOCAL, POOLED
from p2pfl.courses.choco import CHOCO
from p2pfl.courses.course import Course
from p2pfl.courses.d2 import D2
from p2pfl.courses.deepsqueeze import DEEPSQUEEZE
from p2pfl.courses.dfedavgm import DFEDAVGM
from p2pfl.courses.diloco import DILOCO
from p2pfl.courses.ditto import DITTO
from p2pfl.courses.dpsgd import DPSGD
from p2pfl.courses.epidemic import EPIDEMIC
from p2pfl.courses.fedavg import FEDAVG
from p2pfl.courses.fedbabu import FEDBABU
from p2pfl.courses.fedbuff import FEDASYNC, FEDBUFF
from p2pfl.courses.feddyn import FEDDYN
from p2pfl.courses.fedem import FEDEM
from p2pfl.courses.fednova import FEDNOVA
from p2pfl.courses.fedopt import FEDAVGM, FEDOPT
from p2pfl.courses.fedproto import FEDPROTO
from p2pfl.courses.fedprox import FEDPROX
from p2pfl.courses.fedrep import FEDREP
from p2pfl.courses.fedswa import FEDSWA
from p2pfl.courses.gossip_diloco import GOSSIP_DILOCO
from p2pfl.courses.gossiplearning import GOSSIP_LEARNING
from p2pfl.courses.gradtrack import GRADTRACK
from p2pfl.courses.hierarchical import HIERARCHICAL
from p2pfl.courses.ifca import IFCA
from p2pfl.courses.jwins import JWINS
from p2pfl.courses.partial import FEDBN, FEDPER, LGFEDAVG
from p2pfl.courses.pens import PENS
from p2pfl.courses.perfedavg import PERFEDAVG
from p2pfl.courses.pfedme import PFEDME
from p2pfl.courses.plexus import PLEXUS
from p2pfl.courses.powergossip import POWERGOSSIP
from p2pfl.courses.pushsum import PUSHSUM
from p2pfl.courses.qfedavg import QFEDAVG
from p2pfl.courses.qgm import QGM
from p2pfl.courses.relaysgd import RELAYSGD
from p2pfl.courses.scaffold import SCAFFOLD
from p2pfl.courses.swift import SWIFT
from p2pfl.courses.teleportation import TELEPORTATION
from p2pfl.errors import ConfigError
from p2pfl.learn.compression import CompressSpec
from p2pfl.learn.nodes import NodeSpec, TrainSpecs
from p2pfl.learn.specs import DataSpec, MetricsSpec, ModelSpec, Option, PartitionSpec, TrainSpec
from p2pfl.privacy.spec import PrivacySpec
from p2pfl.sim.availability import AvailabilitySpec
from p2pfl.sim.devices import DeviceSpec
from p2pfl.sim.network import NetworkSpec
from p2pfl.sim.profiles import PROFILES
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

COURSES: Mapping[str, Course] = {
    course.name: course
    for course in (
        FEDAVG,
        HIERARCHICAL,
        DPSGD,
        ADPSGD,
        PUSHSUM,
        D2,
        GRADTRACK,
        QGM,
        DFEDAVGM,
        GOSSIP_DILOCO,
        EPIDEMIC,
        GOSSIP_LEARNING,
        PENS,
        SWIFT,
        RELAYSGD,
        PLEXUS,
        TELEPORTATION,
        FEDBUFF,
        FEDASYNC,
        FEDPROX,
        SCAFFOLD,
        FEDDYN,
        FEDOPT,
        FEDAVGM,
        DILOCO,
        FEDNOVA,
        QFEDAVG,
        FEDSWA,
        FEDBN,
        FEDPER,
        LGFEDAVG,
        DITTO,
        FEDREP,
        FEDBABU,
        PERFEDAVG,
        IFCA,
        FEDEM,
        FEDPROTO,
        CHOCO,
        POWERGOSSIP,
        JWINS,
        DEEPSQUEEZE,
        PFEDME,
        APFL,
        LOCAL,
        POOLED,
    )
}


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
    """Rules all that is drawn: data split, initial model, cohorts, batches, network, devices, availability."""
    topology: TopologySpec = field(default_factory=TopologySpec)
    data: DataSpec = field(default_factory=DataSpec)
    partition: PartitionSpec = field(default_factory=PartitionSpec)
    model: ModelSpec = field(default_factory=ModelSpec)
    train: TrainSpec = field(default_factory=TrainSpec)
    nodes: Annotated[dict[str, NodeSpec], tyro.conf.Suppress] = field(default_factory=dict)
    """Seats that train otherwise; see p2pfl/learn/nodes.py."""
    metrics: MetricsSpec = field(default_factory=MetricsSpec)
    compress: CompressSpec = field(default_factory=CompressSpec)
    privacy: PrivacySpec = field(default_factory=PrivacySpec)
    network: NetworkSpec = field(default_factory=NetworkSpec)
    devices: DeviceSpec = field(default_factory=DeviceSpec)
    availability: AvailabilitySpec = field(default_factory=AvailabilitySpec)


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
    """The configuration with the text of its topology file, which is looked for in `folder` and on the shelf.

    The path of an availability trace, which is looked for in `folder` too, becomes absolute.
    """
    topology, availability = config.topology, config.availability
    if topology.file and not topology.text:
        beside = folder / topology.file
        found = load(beside if beside.is_file() else topology.file)
        topology = dataclasses.replace(topology, text=dumps(found))
    if availability.trace:
        availability = dataclasses.replace(availability, trace=str((folder / availability.trace).absolute()))
    return dataclasses.replace(config, topology=topology, availability=availability)


def from_mapping(given: Mapping[str, Any]) -> Config[Any]:
    """A Config of nested tables. `[world] profile` has the name of a profile, whose values are defaults.

    Raises ConfigError naming the field, and the nearest name for one that is unknown.
    """
    course = given.get("course")
    if not isinstance(course, Mapping) or not isinstance(course.get("name"), str):
        raise ConfigError(f'course.name is missing; write [course] and name = "..." (one of {", ".join(COURSES)})')
    name = course["name"]
    if name not in COURSES:
        raise ConfigError(f"course.name is {name!r}, which is no course{_nearest(name, COURSES)}")
    types: dict[str, Any] = typing.get_type_hints(Config) | {"course": COURSES[name].settings}
    _known("", given, [*types, "world"])
    given = _with_profile(given)
    values = {section: _section(section, types[section], value) for section, value in given.items()}
    config = Config(**values)
    _check_nodes(config)
    return config


def _check_nodes(config: Config[Any]) -> None:
    """Raises ConfigError for what [train] would not take either, and for seats that cannot be told."""
    for name, node in config.nodes.items():
        try:
            _section("train", TrainSpec, {**msgspec.to_builtins(config.train), **node.train})
        except ConfigError as error:
            raise ConfigError(f"nodes.{name}: {error}") from error
    TrainSpecs.of(config.train, config.nodes, config.metrics.groups)


def _with_profile(given: Mapping[str, Any]) -> dict[str, Any]:
    """Without the table [world]: the values of its profile are in the other tables, where these do not have them."""
    tables = dict(given)
    world = tables.pop("world", {"profile": ""})
    if not isinstance(world, Mapping) or list(world) != ["profile"] or not isinstance(world["profile"], str):
        raise ConfigError(f'world is {world!r}; write [world] and profile = "..." (one of {", ".join(PROFILES)})')
    profile = world["profile"]
    if profile and profile not in PROFILES:
        raise ConfigError(f"world.profile is {profile!r}, which is no profile{_nearest(profile, PROFILES)}")
    for section, values in PROFILES.get(profile, {}).items():
        own = tables.get(section, {})
        tables[section] = {**values, **own} if isinstance(own, Mapping) else own
    return tables


def _section(name: str, kind: Any, value: Any) -> Any:
    _tables(name, kind, value)
    try:
        return msgspec.convert(value, kind, strict=True)
    except msgspec.ValidationError as error:
        what, _, where = str(error).partition(" - at `$")
        raise ConfigError(f"{name}{where.rstrip('`')}: {what[:1].lower()}{what[1:]}") from error


def _tables(name: str, kind: Any, value: Any) -> None:
    """Raises ConfigError for a name that is not known, in a table or in one of the tables in it."""
    if typing.get_origin(kind) is dict and isinstance(value, Mapping):
        for key, inner in value.items():
            _tables(f"{name}.{key}", typing.get_args(kind)[1], inner)
    if not dataclasses.is_dataclass(kind):
        return
    if not isinstance(value, Mapping):
        raise ConfigError(f"{name} is {value!r}; it must be a table, [{name}]")
    types = typing.get_type_hints(kind)
    _known(f"{name}.", value, {field.name for field in dataclasses.fields(kind)})
    for key, inner in value.items():
        _tables(f"{name}.{key}", types[key], inner)


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
    """See agreed_hash."""
    return agreed_hash(to_mapping(config))
