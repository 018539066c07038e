"""The options of `python -m p2pfl.node`, and how its command line is read."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Generic, TypeVar

import tyro

from p2pfl.app.computes import ComputeOptions
from p2pfl.app.config import Config, load_config, with_topology
from p2pfl.app.options import parse
from p2pfl.app.station import StationOptions
from p2pfl.errors import ConfigError, require
from p2pfl.privacy.secagg_client import Floors

__all__ = ["Hosting", "Joining", "LocalData", "NodeOptions", "host_command"]

SettingsT = TypeVar("SettingsT")


@dataclass(frozen=True, slots=True)
class NodeOptions(StationOptions):
    """Where this node listens, whom it dials, who it is, and whom it trusts."""

    code: tuple[str, ...] = ()
    """Import paths that a peer's course may name as model or loss, such as my_model:Net: code of this host only."""
    compute: ComputeOptions = field(default_factory=ComputeOptions)
    runs: Path = Path("runs")
    """Where run folders are made."""
    run: str = ""
    """Name of the run folder; by default course, hash and date."""
    fresh: bool = False
    """Begin a new run, even if there is one of this course and node that did not come to its end."""
    min_cohort: int = 3
    """Where updates are added up in secret, this node gives its own to no sum of fewer."""
    sessions_per_hour: int = 0
    """It takes part in so many sums within an hour at most; 0: in any number."""

    privacy_ledgers: Path = Path(".p2pfl/privacy")
    """Where it is kept what was spent of the privacy of this host's data, over all runs. Never delete it."""
    epsilon_max: float = 0.0
    """Release nothing of this host's data that would make its epsilon larger, whatever the course allows; 0: no limit
    but the course's."""

    def __post_init__(self) -> None:
        StationOptions.__post_init__(self)
        _ = self.floors  # which checks them
        require(self.epsilon_max >= 0, f"--epsilon-max is {self.epsilon_max}; it must not be negative")

    @property
    def floors(self) -> Floors:
        """What this node asks of who wants its update, whatever the course says."""
        return Floors(self.min_cohort, sessions_per_hour=self.sessions_per_hour)


@dataclass(frozen=True, slots=True)
class Hosting(Generic[SettingsT]):
    """Run a node that has the course file. Without --peers it is the first, which gives the seats."""

    config: Annotated[Config[SettingsT], tyro.conf.arg(name="")]
    node: Annotated[NodeOptions, tyro.conf.arg(name="")] = field(default_factory=NodeOptions)


@dataclass(frozen=True, slots=True)
class LocalData:
    source: str = ""
    """Where this host has its examples, if not where the course says."""


@dataclass(frozen=True, slots=True)
class Joining:
    """Run a node that asks its first peer for the course. With --course FILE, every field of it is an option too."""

    node: Annotated[NodeOptions, tyro.conf.arg(name="")] = field(default_factory=NodeOptions)
    data: LocalData = field(default_factory=LocalData)


def host_command(arguments: list[str]) -> tuple[NodeOptions, Config[Any] | None, LocalData]:
    """Parse the command line. Raises ConfigError."""
    rest, course = _without_course(arguments)
    program = "python -m p2pfl.node"
    if course is None:
        joining = parse(Joining, rest, program)
        if not joining.node.peers:
            raise ConfigError("give --course FILE to start a course, or --peers ADDRESS to join one")
        return joining.node, None, joining.data
    config = load_config(Path(course))
    kind: Any = Hosting[type(config.course)]  # type: ignore[misc]  # the class of settings is known only now
    hosting = parse(kind, rest, f"{program} --course {course}", Hosting(config))
    if not hosting.node.listen and not hosting.node.peers:
        raise ConfigError("nobody could reach this node: give --listen, such as --listen :7700, or --peers, or both")
    return hosting.node, with_topology(hosting.config), LocalData()


def _without_course(arguments: list[str]) -> tuple[list[str], str | None]:
    rest, course, given = [], None, iter(arguments)
    for argument in given:
        if argument == "--course":
            course = next(given, None)
            if course is None:
                raise ConfigError("--course needs a file: --course examples/digits.toml")
        elif argument.startswith("--course="):
            course = argument.removeprefix("--course=")
        else:
            rest.append(argument)
    return rest, course
