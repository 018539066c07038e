"""The conformance kit of courses, and the small world in which they are tested.

A new course is one line in the list of test_course.py: the course, its settings, and a topology.
"""

from __future__ import annotations

import asyncio
import inspect
import typing
from collections.abc import Callable, Collection, Coroutine, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from p2pfl.compute.inline import Inline
from p2pfl.compute.job import Compute
from p2pfl.compute.threads import Threads
from p2pfl.courses.course import Course, HoldsModel, Place
from p2pfl.courses.learner import Learner, seed_of
from p2pfl.learn.data import Dataset, Shard, load_dataset
from p2pfl.learn.model import Model, build_model
from p2pfl.learn.partition import partition
from p2pfl.learn.specs import DataSpec, MetricsSpec, ModelSpec, PartitionSpec, TrainSpec
from p2pfl.learn.tiers import fit_one
from p2pfl.learn.train import Fit, FitResult
from p2pfl.node.events import CourseEnded, Event, RoundEnded, UpdateMissing
from p2pfl.node.node import Runs
from p2pfl.node.peer import Peer
from p2pfl.sim.devices import DeviceSpec
from p2pfl.sim.loop import run_virtual
from p2pfl.sim.network import NetworkSpec
from p2pfl.sim.world import World
from p2pfl.topology.families import AnySchedule
from p2pfl.wire.message import Request, handlers_of, reply_type

Roles = tuple[object, ...]
EventT = typing.TypeVar("EventT", bound=Event)


@cache
def dataset(share: float = 0.1) -> Dataset:
    """A tenth of the digits: 144 for training, 36 for testing."""
    return load_dataset(DataSpec(subsample=share), 0)


def fit(params: Tensor, model: Model, shard: Shard, spec: TrainSpec, seed: int, round: int = 0) -> FitResult:
    """What local training gives, in the tier that a course trains in."""
    return fit_one(Fit(params, model, shard, spec, seed, round))


@dataclass
class Played:
    """A course that was played, or is about to be."""

    course: Course
    settings: Any
    topology: AnySchedule
    seed: int = 0
    model_spec: ModelSpec = field(default_factory=lambda: ModelSpec("logistic"))
    train: TrainSpec = field(default_factory=lambda: TrainSpec(lr=0.5, batch_size=8))
    data: Dataset = field(default_factory=dataset)
    split: PartitionSpec = field(default_factory=lambda: PartitionSpec("dirichlet", alpha=1.0, min_examples=4))
    network: NetworkSpec = field(default_factory=NetworkSpec)
    devices: DeviceSpec = field(default_factory=DeviceSpec)
    compute: Compute = field(default_factory=Inline)
    metrics: MetricsSpec = field(default_factory=MetricsSpec)
    recast: Callable[[int, Roles], Sequence[object]] = lambda seat, roles: roles
    """Gives a seat other roles than the course would."""
    events: list[tuple[float, int, Event]] = field(default_factory=list)

    def __post_init__(self) -> None:
        seats = self.course.learners(self.topology.union)
        parts = partition(self.data, self.split, len(seats), self.seed)
        self.model: Model = build_model(self.model_spec, self.data, self.seed)
        self.shards: dict[int, Shard] = dict(zip(seats, parts, strict=True))
        self.world = World(self.topology.n, self._roles, self.compute, self.network, self.devices, self.seed)

    def learner(self, seat: int, compute: Compute | None = None) -> Learner:
        """What `app.build` would give to a seat."""
        shard = self.shards.get(seat)
        compute, test = compute or self.compute, self.data.test
        return Learner(seat, self.seed, self.model, self.train, compute, shard, None, test, metrics=self.metrics)

    def _roles(self, seat: int, compute: Compute) -> Sequence[object]:
        place = Place(seat, self.topology, self.learner(seat, compute), self.settings)
        return self.recast(seat, self.course.play(place))

    async def run(self) -> None:
        await self.world.run(lambda seconds, seat, event: self.events.append((seconds, seat, event)))

    def play(self, *weather: Coroutine[Any, Any, None]) -> Played:
        """Run it to the end, on virtual time, in such weather, which must not outlast it."""
        run_virtual(self._play(weather))
        return self

    async def _play(self, weather: Sequence[Coroutine[Any, Any, None]]) -> None:
        tasks = [asyncio.create_task(each) for each in weather]
        await self.run()
        for task in tasks:
            assert task.done(), "the course was over before"
            task.result()

    @property
    def params(self) -> list[Tensor]:
        """The models that the seats ended with, by seat."""
        roles = (role for seat in self.world.seats.values() for role in seat.roles)
        return [role.params for role in roles if isinstance(role, HoldsModel)]

    @property
    def bytes(self) -> bytes:
        """All models to the last bit."""
        return b"".join(vector.numpy().tobytes() for vector in self.params)

    def told(self, kind: type[EventT], seat: int | None = None) -> list[EventT]:
        """The events of one kind, of all seats or of one."""
        return [event for _, at, event in self.events if isinstance(event, kind) and seat in (None, at)]

    @property
    def missing(self) -> list[tuple[int, str]]:
        """Round and peer of each update that was missed."""
        return [(event.round, event.peer) for event in self.told(UpdateMissing)]

    def metric(self, name: str, seat: int = 0) -> list[float]:
        """One metric, by round."""
        return [event.metrics[name] for event in self.told(RoundEnded, seat) if name in event.metrics]


class Normalised(nn.Module):
    """A model of the digits with running statistics: buffers, which no step trains."""

    def __init__(self) -> None:
        super().__init__()
        self.normalise, self.last = nn.BatchNorm1d(64), nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        last: Tensor = self.last(self.normalise(x.flatten(1)))
        return last


class At:
    """A peer in a seat, and its node, which notes what it is told."""

    def __init__(self, seat: int) -> None:
        self.seat = seat
        self.label = self.name = f"seat {seat}"
        self.node = self
        self.told: list[Event] = []
        self.stirred = 0

    def emit(self, event: Event) -> None:
        self.told.append(event)

    def stir(self) -> None:
        self.stirred += 1


def check_course(course: Course, settings: Any, topology: AnySchedule, *, still: Collection[int] = ()) -> None:
    """Everything that holds for every course. `still`: the seats whose model stays as it began."""
    _is_in_order(course, settings, topology)
    _annotates_its_messages(course)
    first = Played(course, settings, topology).play()
    _ends(first)
    _everybody_holds_a_model(first, still)
    _is_reproducible(first)


def _is_in_order(course: Course, settings: Any, topology: AnySchedule) -> None:
    assert isinstance(settings, course.settings) and settings.name == course.name
    assert course.settings() == course.settings(name=course.name), "the settings have defaults"
    assert course.needs(topology.union) is None
    assert set(course.learners(topology.union)) <= set(range(topology.n))


def _annotates_its_messages(course: Course) -> None:
    """Every handler says what it takes and what it answers, so that the flow of messages can be drawn and checked."""
    for role in course.roles:
        handlers = handlers_of([_bare(role)])
        assert handlers or issubclass(role, Runs), f"{role.__name__} does nothing"
        for kind, method in handlers.items():
            hints = typing.get_type_hints(method)
            message, peer = list(inspect.signature(method).parameters)
            assert hints[message] is kind and hints[peer] is Peer
            assert hints["return"] is (reply_type(kind) if issubclass(kind, Request) else type(None))


def _bare(role: type) -> object:
    return role.__new__(role)


def _ends(played: Played) -> None:
    ended = played.told(CourseEnded)
    assert ended and all(event.rounds == played.settings.rounds for event in ended)
    rounds = {seat: [] for _, seat, _ in played.events}
    for _, seat, event in played.events:
        if isinstance(event, RoundEnded):
            rounds[seat].append(event.round)
    counted = [found for found in rounds.values() if found]
    if played.course.rotates:
        counted = [[event.round for event in played.told(RoundEnded)]]
    assert counted and all(found == list(range(1, played.settings.rounds + 1)) for found in counted)
    assert not played.missing
    assert not any(node.node.statistics().violations for node in played.world.seats.values())
    assert not any(node.node.statistics().handler_failures for node in played.world.seats.values())


def _everybody_holds_a_model(played: Played, still: Collection[int]) -> None:
    for seat in played.world.seats.values():
        assert all(isinstance(role, played.course.roles) for role in seat.roles)
    assert len(played.params) == played.topology.n
    for seat, params in enumerate(played.params):
        assert params.shape == played.model.initial.shape
        assert bool(params.isfinite().all()) and torch.equal(params, played.model.initial) is (seat in still)


def _is_reproducible(first: Played) -> None:
    again = replace(first, events=[]).play()
    assert again.bytes == first.bytes and again.world.wire.trace == first.world.wire.trace
    assert again.events == first.events
    threaded = replace(first, events=[], compute=Threads(2)).play()
    assert threaded.bytes == first.bytes and threaded.world.wire.trace == first.world.wire.trace
    other = replace(first, events=[], seed=first.seed + 1).play()
    assert other.bytes != first.bytes


def local_training(played: Played, x: npt.NDArray[np.float32], round: int) -> npt.NDArray[np.float32]:
    """What each seat's training in a round makes of its row of x, of shape (n, numel)."""
    rows = (
        fit(
            torch.from_numpy(x[seat]), played.model, played.shards[seat], played.train,
            seed_of(played.seed, "fit", round, seat), round,
        ).params.numpy()
        for seat in range(played.topology.n)
    )  # fmt: skip
    return np.stack(list(rows))


def first_models(played: Played) -> npt.NDArray[np.float32]:
    """What all begin with, a row for each seat."""
    return np.tile(played.model.initial.numpy(), (played.topology.n, 1))


def last_models(played: Played) -> npt.NDArray[np.float32]:
    """What the seats ended with, as rows."""
    return torch.stack(played.params).numpy()
