"""What makes a file in this folder a course: a name, settings, and the roles that each seat plays."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from p2pfl.courses.learner import Learner
from p2pfl.journal.journal import Journal
from p2pfl.journal.state import State
from p2pfl.learn.compression import CompressSpec
from p2pfl.learn.entropy import Tally
from p2pfl.privacy.account import Account
from p2pfl.privacy.secagg_client import Floors
from p2pfl.privacy.spec import PrivacySpec
from p2pfl.topology.graph import Topology
from p2pfl.topology.schedule import Schedule

__all__ = ["Course", "HoldsModel", "Place", "Resumes", "RoleState", "as_tensor", "below", "prefixed"]


@dataclass(frozen=True, slots=True)
class Place:
    """A seat that is about to be filled. `settings` is of the course's own class."""

    seat: int
    topology: Schedule
    learner: Learner
    settings: Any  # of the course's own class; the file that wrote the class reads it
    stop: int | None = None  # the round, from 0, before which to pause: the role's state goes on elsewhere; None: never
    journal: Journal | None = None  # where what must outlive the process is kept; None: nothing need outlive it
    compress: CompressSpec = field(default_factory=CompressSpec)  # for a course that `compresses`
    tally: Tally = field(default_factory=Tally)  # of what comes to all seats that have it in common
    floors: Floors = field(default_factory=Floors)  # what this node asks of who wants its update
    privacy: PrivacySpec = field(default_factory=PrivacySpec)  # in one of the modes of the `privacy` of its course
    account: Account | None = None  # what this seat's noise is charged to, wherever it is not plain


RoleState = State
"""What a role is between two rounds, by name. Tensors are not written to afterwards."""


def as_tensor(value: Tensor | int | float | str) -> Tensor:
    """An entry of a state that is a tensor."""
    assert isinstance(value, Tensor), f"a tensor was kept here, not {value!r}"
    return value


def prefixed(prefix: str, state: RoleState) -> RoleState:
    """The state of a part of a role, with names that other parts do not have."""
    return {prefix + name: value for name, value in state.items()}


def below(prefix: str, state: RoleState) -> RoleState:
    """The state of that part, of that of the whole role."""
    return {name.removeprefix(prefix): state[name] for name in state if name.startswith(prefix)}


@runtime_checkable
class Resumes(Protocol):
    """A role that pauses between two rounds, and can go on from there."""

    def state(self) -> RoleState:
        """What it needs to go on, once `run` has ended."""

    def resume(self, state: RoleState) -> None:
        """Go on from there. To be called before `run`."""


@runtime_checkable
class HoldsModel(Protocol):
    """A role that ends with a model."""

    params: Tensor


@dataclass(frozen=True, slots=True)
class Course:
    """One algorithm. `play` gives the roles of a seat; `learners` the seats that hold examples."""

    name: str
    settings: type
    roles: tuple[type, ...]  # every role that `play` may give, for the check of the message flow
    play: Callable[[Place], tuple[object, ...]]
    learners: Callable[[Topology], Sequence[int]]
    family: str  # the topology if none is given
    needs: Callable[[Topology], str | None]  # why the course cannot run on a topology, or None
    sleepers: Callable[[Topology, Any], Collection[int]] = lambda topology, settings: ()
    """Seats that only answer what they are asked, and keep nothing in between: a simulation need not hold them."""
    compresses: bool = False  # whether it does what the table [compress] asks for
    rotates: bool = False  # whether each round is led, and told of, by another seat
    privacy: tuple[str, ...] = ()  # the modes of the table [privacy] that it can do
    elected: tuple[type, ...] = ()  # every role that `play` may give where the settings have the coordinator elected
    secret: Mapping[str, tuple[type, ...]] = field(default_factory=dict, hash=False)
    """Every role that `play` may give where the settings have `privacy`, by what that is."""

    def cast(self, settings: Any = None) -> tuple[type, ...]:
        """The roles that there are with these settings, or with the default ones."""
        if getattr(settings, "coordinator", "fixed") == "elect":
            return self.elected
        mode = getattr(settings, "privacy", "plain")
        return self.roles if mode == "plain" else self.secret.get(mode, ())
