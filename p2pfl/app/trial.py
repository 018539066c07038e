"""A course at the mercy of a schedule of faults: one run, as small and as fast as can be, and what is wrong with it."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from random import Random
from typing import Any

from torch import nn

from p2pfl.app.budgets import Budgets, budgets_of
from p2pfl.app.config import Config
from p2pfl.compute.inline import Inline
from p2pfl.compute.job import Compute
from p2pfl.courses.course import Course, HoldsModel, Place, Resumes
from p2pfl.courses.fedbuff import AsyncSettings
from p2pfl.courses.learner import Learner
from p2pfl.courses.partial import PartialSettings
from p2pfl.courses.pushsum import Pusher
from p2pfl.errors import ConfigError, require
from p2pfl.journal.journal import Journal
from p2pfl.learn.data import Dataset, Shard, load_dataset
from p2pfl.learn.model import Model, build_model
from p2pfl.learn.partition import partition
from p2pfl.learn.specs import DataSpec, MetricsSpec, ModelSpec, PartitionSpec, TrainSpec
from p2pfl.node.settings import NodeSettings
from p2pfl.privacy.account import Account
from p2pfl.privacy.encoding import MOST_BITS
from p2pfl.privacy.spec import PrivacySpec
from p2pfl.sim.checkers import Evidence, Violation, check
from p2pfl.sim.devices import DeviceSpec
from p2pfl.sim.disk import SimulatedDisk
from p2pfl.sim.history import History, WatchedDisk, WatchedLedger
from p2pfl.sim.loop import run_virtual
from p2pfl.sim.nemesis import FAULTS, Fault, Ground, haunt
from p2pfl.sim.network import NetworkSpec
from p2pfl.sim.process import wall_clocks
from p2pfl.sim.tracer import Tracer
from p2pfl.sim.world import World
from p2pfl.topology.families import AnySchedule

__all__ = ["Trial", "settled_memory"]

_ROUNDS = 3
_EXAMPLES = 4  # of each client
_PATIENCE_SECONDS = 300.0  # after the last fault, in which what can come to its end does
_FAULTY = 3.0  # faults happen for so many times what the course takes without any
_LINGER_SECONDS = 1.0  # after the end, in which tasks may still end
_RUN = "trial"


@cache
def _digits() -> Dataset:
    return load_dataset(DataSpec(subsample=0.05), 0)


@contextmanager
def settled_memory() -> Iterator[None]:
    """While the block lasts, collections look only at what is made in it: torch alone is 200,000 objects.

    Each run ends with a collection.
    """
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


class Layered(nn.Sequential):
    """A model of which a part can stay at its client: the first layer, the last, or the normalisation between them."""

    def __init__(self, outputs: int) -> None:
        super().__init__(nn.Flatten(), nn.Linear(64, 16), nn.LayerNorm(16), nn.Linear(16, outputs))


@dataclass(frozen=True, eq=False)
class Trial:
    """A course on a topology, with a tiny model, tiny shards and a few rounds. Training leaves traces; see Tracer."""

    course: Course
    settings: Any  # of the course's own class
    topology: AnySchedule
    invariants: tuple[str, ...]
    dataset: Dataset = field(default_factory=_digits)
    metrics: MetricsSpec = field(default_factory=MetricsSpec)
    privacy: PrivacySpec = field(default_factory=PrivacySpec)

    def __post_init__(self) -> None:
        """Raises ConfigError where the course cannot run on the topology."""
        problem = self.course.needs(self.topology.union)
        require(problem is None, f"topology: {self.course.name} cannot run on {self.topology!r}: {problem}")
        if (rounds := getattr(self.settings, "rounds", 0)) > _ROUNDS:
            object.__setattr__(self, "settings", replace(self.settings, rounds=min(rounds, _ROUNDS)))
        if _conceals(self.settings) and self.privacy.plain:
            finest = replace(self.settings.secagg, bits=MOST_BITS, clip=1.0, most_examples=_EXAMPLES)
            object.__setattr__(self, "settings", replace(self.settings, secagg=finest))  # a trace must not be rounded

    @property
    def n(self) -> int:
        """Seats."""
        return self.topology.n

    @property
    def numel(self) -> int:
        """Numbers of the model."""
        return self._model.layout.numel

    @property
    def bears(self) -> tuple[str, ...]:
        """The kinds of faults that it is to survive: whose disk must not forget has no part in its run if it does."""
        elects = getattr(self.settings, "coordinator", "fixed") == "elect"
        forgetful = elects or _conceals(self.settings)
        return tuple(kind for kind in FAULTS if not forgetful or kind != "rot")

    @cached_property
    def ground(self) -> Ground:
        """Where its faults happen."""
        union = self.topology.union
        links = tuple((seat, other) for seat in range(self.n) for other in union.neighbors(seat))
        return Ground(self.n, links, _FAULTY * self._plain.entries[-1].seconds)

    @cached_property
    def leading(self) -> tuple[int, ...]:
        """Seat 0, if it holds no examples."""
        return () if 0 in self._shards else (0,)

    @cached_property
    def _model(self) -> Model:
        partial = isinstance(self.settings, PartialSettings)
        return build_model(ModelSpec(f"{__name__}:Layered" if partial else "logistic"), self.dataset, 0)

    @cached_property
    def _shards(self) -> dict[int, Shard]:
        seats = self.course.learners(self.topology.union)
        spec = PartitionSpec("bootstrap", examples_per_client=_EXAMPLES)
        return dict(zip(seats, partition(self.dataset, spec, len(seats), 0), strict=True))

    @cached_property
    def _plain(self) -> History:
        """Raises ConfigError where the course refuses this model or these clients."""
        played = self.play(0, ())
        if isinstance(played.failure, ConfigError):
            raise ConfigError(f"with the small model that a course is tried with, {played.failure}")
        return played

    def violations(self, seed: int, faults: Sequence[Fault]) -> tuple[list[Violation], History]:
        """Let these faults happen, and see what does not hold. `seed` rules network, devices and disks."""
        history = self.play(seed, faults)
        equal = getattr(self.settings, "edge_rounds", 1) == 1  # who misses one of an edge's rounds weighs less
        equal &= not isinstance(self.settings, AsyncSettings)  # who is late does, too
        central = self.privacy.mode == "cdp"
        evidence = Evidence(history, self._model.initial, self.leading, equal, self._plain, central=central)
        return check(evidence, self.invariants), history

    def play(self, seed: int, faults: Sequence[Fault]) -> History:
        """One run. Equal arguments give equal histories."""
        history = History(self.n, self.numel)
        with wall_clocks():
            run_virtual(self.haunted(self.world(seed, history), history, faults))
        return history

    def world(self, seed: int, history: History) -> World:
        """The world of a run, which tells its history all but the faults."""
        disks = {seat: SimulatedDisk(Random(f"{seed}/disk/{seat}")) for seat in range(self.n)}
        accounts = {} if self._budgets is None else dict(self._accounts(self._budgets, history))

        def roles(seat: int, device: Compute) -> tuple[object, ...]:
            journal = Journal(WatchedDisk(disks[seat], seat, history), _RUN)
            return self._roles(seat, Tracer(device, seat, self.n), journal, accounts.get(seat))

        network = NetworkSpec(latency_ms=30.0, latency_spread=0.5, jitter=0.5)
        devices = DeviceSpec(examples_per_second=8.0, spread=0.5, coordinator_examples_per_second=100.0)
        world = World(
            self.n, roles, Inline(), network, devices, seed,
            coordinators=self.leading, settings=NodeSettings(), mortal=True, disks=disks,
        )  # fmt: skip
        world.memory.watch = history.packet
        return world

    @cached_property
    def _budgets(self) -> Budgets | None:
        seats = self.course.learners(self.topology.union)
        return budgets_of(Config(self.settings, privacy=self.privacy), self.topology, seats, self.numel)

    def _accounts(self, budgets: Budgets, history: History) -> Iterator[tuple[int, Account]]:
        """Of every seat; they outlive its processes."""
        for seat, plan in budgets.plans.items():
            yield seat, Account(WatchedLedger(seat, history), plan, _RUN, owner=seat in self._shards)

    def _roles(self, seat: int, compute: Compute, journal: Journal, account: Account | None) -> tuple[object, ...]:
        """As a host makes them: where the journal knows of rounds, they go on from there."""
        shard, test = self._shards.get(seat), self.dataset.test
        learner = Learner(seat, 0, self._model, TrainSpec(), compute, shard, None, test, metrics=self.metrics)
        place = Place(seat, self.topology, learner, self.settings, None, journal, privacy=self.privacy, account=account)
        roles = self.course.play(place)
        if (commit := journal.last()) is not None:
            for role in roles:
                if isinstance(role, Resumes):
                    role.resume(commit.state)
        return roles

    async def haunted(self, world: World, history: History, faults: Sequence[Fault]) -> None:
        """Run a world that these faults happen to, and note how it ends. On a VirtualLoop."""
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(history.unhandled)
        course = loop.create_task(world.run(history.event))
        nemesis = loop.create_task(haunt(world, faults, history.fault))
        well = max((fault.until for fault in faults), default=0.0)
        await asyncio.wait([course], timeout=well + _PATIENCE_SECONDS)
        if not course.done():
            history.waits = world.waits() or ["nobody says what for"]
        for task in (nemesis, course):
            task.cancel()
        await asyncio.wait([nemesis, course])
        history.failure = None if course.cancelled() else course.exception()
        if not nemesis.cancelled() and (error := nemesis.exception()) is not None:
            raise error
        for number, seat in world.seats.items():
            for role in seat.roles:
                if isinstance(role, Pusher):
                    history.purses[number] = role.purse
                if isinstance(role, HoldsModel) and seat.through:
                    history.models[number] = role.params
        await asyncio.sleep(_LINGER_SECONDS)
        gc.collect()  # errors that nobody has asked for are told when their tasks are freed
        left = asyncio.all_tasks() - {asyncio.current_task()}
        history.leftovers += sorted(f"the task {task.get_name()} is left" for task in left)


def _conceals(settings: Any) -> bool:
    """Whether updates are added up in secret."""
    return bool(getattr(settings, "privacy", "plain") != "plain")
