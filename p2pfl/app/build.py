"""From a configuration to what runs: topology, data, model, and the roles of every seat."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from p2pfl.app.budgets import Budgets, budgets_of
from p2pfl.app.config import COURSES, Config, TopologySpec
from p2pfl.compute.inline import Inline
from p2pfl.compute.job import Compute
from p2pfl.courses.course import Course, Place, Resumes
from p2pfl.courses.fedavg import Trainer
from p2pfl.courses.learner import Learner
from p2pfl.errors import ConfigError, require
from p2pfl.journal.journal import Journal
from p2pfl.learn.arrays import Laid
from p2pfl.learn.data import Dataset, Shard, load_dataset
from p2pfl.learn.entropy import Tally
from p2pfl.learn.metrics import own_metric
from p2pfl.learn.model import Model, build_model
from p2pfl.learn.nodes import TrainSpecs
from p2pfl.learn.partition import partition, partition_test
from p2pfl.learn.specs import MetricsSpec
from p2pfl.learn.tiers import Tier, tier_of
from p2pfl.learn.train import fit
from p2pfl.privacy.report import PrivacyReport
from p2pfl.privacy.secagg_client import Floors
from p2pfl.topology.families import build
from p2pfl.topology.file import loads
from p2pfl.topology.schedule import Schedule

__all__ = ["Setup", "build_topology", "prepare", "privacy_notes", "topology_notes"]

_ALL_AWAKE = 1000  # clients up to which a simulation holds all of them at once, as hosts would


class _BySeat(Mapping[int, Shard]):
    """Shards by the seats that hold them, each made when it is asked for."""

    def __init__(self, seats: Sequence[int], shards: Sequence[Shard]) -> None:
        self._seats = seats
        self._shards = shards
        # A range knows the place of a seat, and need not be written out: there may be a million.
        self._places = None if isinstance(seats, range) else {seat: place for place, seat in enumerate(seats)}

    def __getitem__(self, seat: int) -> Shard:
        if self._places is not None:
            return self._shards[self._places[seat]]
        if seat not in self._seats:
            raise KeyError(seat)
        return self._shards[self._seats.index(seat)]

    def __iter__(self) -> Iterator[int]:
        return iter(self._seats)

    def __len__(self) -> int:
        return len(self._seats)


@dataclass(frozen=True, slots=True)
class Setup:
    """A course that is ready to be filled with nodes. `shards` goes by seat; seats without examples are not in it."""

    config: Config[Any]
    course: Course
    topology: Schedule
    dataset: Dataset
    model: Model
    shards: Mapping[int, Shard]
    tests: Mapping[int, Shard] = field(default_factory=dict)
    """Each seat's own part of the test part, where that is dealt as well."""
    tally: Tally = field(default_factory=Tally, compare=False)
    """Of what has come to the seats that were filled."""
    budgets: Budgets | None = None  # where what is learned of the seats is bounded
    trains: TrainSpecs = field(init=False, compare=False)
    """How each seat trains."""

    def __post_init__(self) -> None:
        trains = TrainSpecs.of(self.config.train, self.config.nodes, self.config.metrics.groups)
        object.__setattr__(self, "trains", trains)

    @property
    def sleepers(self) -> Collection[int]:
        """Seats whose nodes a simulation makes only while they are needed."""
        if self.config.compress.up.stateful or not self.config.privacy.plain:
            return ()
        asleep = self.course.sleepers(self.topology.union, self.config.course)
        return asleep if len(asleep) > _ALL_AWAKE else ()

    @property
    def tier(self) -> Tier:
        """How the model is trained, and why not in a faster way."""
        return tier_of(self.model, self.config.train)

    @property
    def plain_layout(self) -> Laid:
        """How models lie in their vector, where a client does no more than to train from what seat 0 sends; else empty.

        That much can be done without torch: see p2pfl/courses/arrays.py.
        """
        seat = next(iter(self.course.learners(self.topology.union)))
        match self.roles(seat, Inline()):
            case (Trainer(only_trains=True, server=0),):
                return self.model.layout.schema
        return ()

    def report(self) -> PrivacyReport | None:
        """What was spent of the privacy of the seats that were filled, if anything is bounded."""
        return None if self.budgets is None else self.budgets.report()

    def learner(self, seat: int, compute: Compute) -> Learner:
        """The learning of one seat."""
        shard, validation = self.shards.get(seat), None
        config = self.config
        holdout, by_class = config.partition.holdout, config.partition.consistent
        if shard is not None and holdout > 0:
            shard, validation = shard.split(holdout, config.seed, by_class=by_class)
        test, own_test = self.dataset.test, self.tests.get(seat)
        return Learner(
            seat, config.seed, self.model, self.trains[seat], compute, shard, validation, test, own_test, config.metrics
        )

    def roles(
        self,
        seat: int,
        compute: Compute,
        stop: int | None = None,
        journal: Journal | None = None,
        floors: Floors | None = None,
    ) -> tuple[object, ...]:
        """The roles of one seat. `stop`: the round, from 0, before which they pause; `floors`: what this host asks.

        With a journal they commit their rounds there, and go on after the last that was committed.
        """
        account = None
        if self.budgets is not None:
            account = self.budgets.account(seat, self.shards.get(seat), "" if journal is None else journal.run)
        roles = self.course.play(
            Place(
                seat,
                self.topology,
                self.learner(seat, compute),
                self.config.course,
                stop,
                journal,
                self.config.compress,
                self.tally,
                floors or Floors(),
                self.config.privacy,
                account,
            )
        )
        if journal is not None and (last := journal.last()) is not None:
            (role,) = (role for role in roles if isinstance(role, Resumes))
            role.resume(last.state)
        return roles


def build_topology(spec: TopologySpec, course: Course) -> Schedule:
    """The graph of a course. Raises ConfigError where the course cannot run on it."""
    topology: Schedule
    if spec.file:
        topology = loads(spec.text).schedule
    else:
        topology = build(spec.family or course.family, spec.n, **spec.parameters)
    problem = course.needs(topology.union)
    if problem:
        raise ConfigError(f"topology: {course.name} cannot run on {topology!r}: {problem}")
    return topology


def topology_notes(config: Config[Any]) -> list[str]:
    """What a person should know of the topology before a long run, a line each."""
    if not config.topology.file:
        return []
    return list(loads(config.topology.text).notes(config.course.rounds))


def privacy_notes(config: Config[Any]) -> list[str]:
    """What a person should know before others get what is made of examples, a line each; none where that is hidden."""
    if not config.privacy.plain or getattr(config.course, "privacy", "plain") != "plain":
        return []
    return ["privacy is plain: links are encrypted, and who gets a node's updates can learn of its examples from them"]


def prepare(config: Config[Any], seat: int | None = None) -> Setup:
    """Load data, build model and topology. With `seat`, for a host that fills only this one.

    Raises UserError for whatever in the configuration cannot work.
    """
    course = COURSES[config.course.name]
    takes = config.compress.plain or course.compresses
    require(takes, f"compress: {course.name} does not compress what it sends; leave out [compress]")
    mode, modes = config.privacy.mode, ("plain", *course.privacy)
    require(
        mode in modes,
        f"privacy.mode is {mode!r}, which {course.name} does not do; it must be one of {', '.join(modes)}",
    )
    topology = build_topology(config.topology, course)
    seats = course.learners(topology.union)
    _check_metrics(config.metrics, seats)
    TrainSpecs.of(config.train, config.nodes, config.metrics.groups).check(seats)
    if config.partition.scheme == "own":
        setup = _own(config, course, topology, [s for s in seats if seat is None or s == seat], seat)
    else:
        dataset = load_dataset(config.data, config.seed)
        dealt = partition(dataset, config.partition, len(seats), config.seed)
        tests = partition_test(dataset, config.partition, dealt, config.seed) if config.partition.consistent else []
        shards, own_tests = _BySeat(seats, dealt), _BySeat(seats[: len(tests)], tests)
        setup = Setup(config, course, topology, dataset, _model(config, dataset), shards, own_tests)
    budgets = budgets_of(config, topology, seats, setup.model.layout.numel)
    return setup if budgets is None else _noised(setup, budgets)


def _noised(setup: Setup, budgets: Budgets) -> Setup:
    """Raises ConfigError for what does not go together with the privacy mode, all of which is found in any seat."""
    setup = replace(setup, budgets=budgets)
    setup.roles(0, Inline())
    budgets.accounts.clear()
    return setup


def _check_metrics(spec: MetricsSpec, seats: Sequence[int]) -> None:
    for path in spec.own:
        own_metric(path)  # raises if there is no such function
    for group, members in spec.groups.items():
        for seat in members:
            require(seat in seats, f"metrics.groups: {group} has seat {seat}, which holds no examples; leave it out")


def _model(config: Config[Any], dataset: Dataset) -> Model:
    model = build_model(config.model, dataset, config.seed)
    for train in TrainSpecs.of(config.train, config.nodes, config.metrics.groups).different:
        tier_of(model, train)  # raises if `train.tier` names one that cannot train it
        if train.optimizer != "sgd":  # one step, or every client would find out by itself that it is misspelt
            fit(model.initial, model, Shard(dataset, dataset.train_indices[:2]), replace(train, steps=1), seed=0)
    return model


def _own(config: Config[Any], course: Course, topology: Schedule, seats: list[int], seat: int | None) -> Setup:
    """Every seat has files of its own: all of its training part is its shard."""

    def read(at: int) -> Dataset:
        return load_dataset(replace(config.data, source=config.data.source.replace("{seat}", str(at))), config.seed)

    datasets = {at: read(at) for at in seats}
    first = next(iter(datasets.values()), None) or read(seat or 0)
    shards = {at: dataset.train for at, dataset in datasets.items()}
    tests = {at: dataset.test for at, dataset in datasets.items()} if config.partition.consistent else {}
    return Setup(config, course, topology, first, _model(config, first), shards, tests)
