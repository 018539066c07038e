"""Federated averaging.

H. B. McMahan, E. Moore, D. Ramage, S. Hampson, B. Agüera y Arcas: "Communication-Efficient Learning of Deep Networks
from Decentralized Data", AISTATS 2017, https://arxiv.org/abs/1602.05629. Over-selection and the deadline follow
K. Bonawitz et al.: "Towards Federated Learning at Scale: System Design", MLSys 2019,
https://arxiv.org/abs/1902.01046.

Deviation: a cohort is drawn from the clients that are linked at the start of the round.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from p2pfl.council.council import Council
from p2pfl.courses.best import Best
from p2pfl.courses.coded import compressed
from p2pfl.courses.course import Course, Place, RoleState, as_tensor
from p2pfl.courses.durable import Durable
from p2pfl.courses.elected import Member
from p2pfl.courses.finetune import tuned
from p2pfl.courses.learner import Learner
from p2pfl.courses.messages import Evaluate, Finish, Finished, Score, Train, Update, number
from p2pfl.courses.noised import COORDINATED, noised
from p2pfl.courses.outbox import Outbox, score
from p2pfl.courses.rounds import Clients, Collected, RoundRules
from p2pfl.courses.rules import Rule, Training, averaging
from p2pfl.courses.samplers import SAMPLERS, SamplerSpec
from p2pfl.errors import CourseError, require
from p2pfl.journal.certificate import Certificate
from p2pfl.journal.journal import Journal
from p2pfl.learn.specs import TrainSpec
from p2pfl.node.events import CourseEnded, RoundEnded, RoundStarted
from p2pfl.node.node import Node
from p2pfl.node.peer import Peer, require_seat
from p2pfl.topology.graph import Topology
from p2pfl.wire.tensor import Tensors

__all__ = ["FEDAVG", "Elected", "FedAvgSettings", "Leader", "Server", "Trainer", "starred"]

_FIRST_TERM = 1
_CENTRAL = "central."  # before the names of what the server's half remembers
_SAMPLER = "sampler."  # before the names of what the sampler has learned


@dataclass(frozen=True, slots=True)
class FedAvgSettings:
    """The table [course] of a course file."""

    name: str = "fedavg"
    rounds: int = 30
    """Rounds at most."""
    fraction: float = 1.0
    """Share of the clients that makes up a round's cohort."""
    sampler: str = "uniform"
    """How a cohort is drawn: `uniform`; `responsiveness`, by the time that clients take; `grouped`, those together that
    are about as fast; `power-of-choice`, where the loss is high; `oort`, for both loss and time."""
    favour: str = "fast"
    """With `responsiveness`: `fast`, or `slow`, to hear of all as often."""
    candidates: float = 2.0
    """With `power-of-choice`: of so many times the cohort those are taken whose loss is highest."""
    groups: int = 10
    """With `grouped`: so many groups of clients that are about as fast."""
    over_selection: float = 0.0
    """So many more clients are asked, as a share of the cohort."""
    quorum: float = 1.0
    """Share of the cohort whose updates are enough; the others of the round are cancelled."""
    deadline_seconds: float = 0.0
    """A round's training ends after so long with what has arrived, and so does an evaluation; 0: no deadline."""
    grace_seconds: float = 0.0
    """Once the quorum is reached, the others have so long to be part of the round too."""
    rejoin_seconds: float = 30.0
    """A client that is cut off has so long to come back, and is asked again; 0: the round goes on without it."""
    exclude_after: int = 3
    """A client that fails so many rounds in succession is left out of the next, then of the next two, four ...; 0:
    never."""
    most_examples: int = 100_000_000
    """An update that claims to be of more examples is refused."""
    weights: str = "examples"
    """`examples`: an update weighs as many as its client has; `equal`: all weigh the same."""
    coordinator: str = "fixed"
    """`fixed`: seat 0 leads, and all wait while it is away; `elect`: when it is lost, the others elect one of them. A
    round is then committed once a majority of all seats has its model and has signed it."""
    min_clients: int = 0
    """The first round waits for so many clients; 0: for all seats."""
    evaluate: str = "server"
    """`server`: on the test part, `clients`: each client on its own, `both`, `none`."""
    evaluate_every: int = 1
    """Rounds between two evaluations."""
    unseen: float = 0.0
    """Share of the clients, drawn by seed, that never train: they are evaluated only, and what they find is told apart
    from what the others do, as `unseen_accuracy` and `unseen_loss`."""
    finetune_epochs: int = 0
    """Before a client is evaluated, and in the end, it trains its model for so many passes over its own examples; no
    update holds anything of that."""
    finetune_lr: float = 0.0
    """The learning rate of these passes; 0: train.lr."""
    patience: int = 0
    """Stop after so many evaluations without a better one; 0: never."""
    target_accuracy: float = 0.0
    """Stop as soon as this accuracy is reached; 0: never."""
    keep: str = "last"
    """The course's result: the model of the `last` round, or the `best` by accuracy (by loss, if there is none)."""

    def __post_init__(self) -> None:
        for name in ("rounds", "evaluate_every", "most_examples", "candidates", "groups"):
            require(getattr(self, name) >= 1, f"course.{name} is {getattr(self, name)}; it must be at least 1")
        for name in ("fraction", "quorum"):
            require(0 < getattr(self, name) <= 1, f"course.{name} is {getattr(self, name)}; it must lie in (0, 1]")
        require(0 <= self.unseen < 1, f"course.unseen is {self.unseen}; it must lie in [0, 1)")
        for name in _NOT_NEGATIVE:
            require(getattr(self, name) >= 0, f"course.{name} is {getattr(self, name)}; it must not be negative")
        for name, choices in _CHOICES.items():
            value = getattr(self, name)
            require(value in choices, f"course.{name} is {value!r}; it must be one of {', '.join(choices)}")
        idle = self.unseen > 0 and self.evaluate not in ("clients", "both")
        require(not idle, "course.unseen is set, and clients are not evaluated; set course.evaluate to clients or both")
        if self.coordinator == "elect":
            for name, only in _ELECTED.items():
                value = getattr(self, name)
                require(
                    value in only, f"course.{name} is {value!r}; with course.coordinator = 'elect' it must be {only}"
                )

    @property
    def hears_all(self) -> bool:
        """Whether every update that is asked for counts, and as much as every other."""
        return self.weights == "equal" and self.quorum == 1 and not (self.deadline_seconds or self.over_selection)

    @property
    def rules(self) -> RoundRules:
        return RoundRules(
            fraction=self.fraction,
            over_selection=self.over_selection,
            quorum=self.quorum,
            deadline_seconds=self.deadline_seconds,
            grace_seconds=self.grace_seconds,
            rejoin_seconds=self.rejoin_seconds,
            exclude_after=self.exclude_after,
            most_examples=self.most_examples,
            by_examples=self.weights == "examples",
            unseen=self.unseen,
            sampling=SamplerSpec(self.sampler, self.favour, self.candidates, self.groups),
        )

    def finetuning(self, train: TrainSpec) -> TrainSpec | None:
        """How clients who train as `train` says do so before they are evaluated; None: they do not."""
        if not self.finetune_epochs:
            return None
        return replace(train, epochs=self.finetune_epochs, steps=0, lr=self.finetune_lr or train.lr)


_NOT_NEGATIVE = (
    "over_selection", "deadline_seconds", "grace_seconds", "rejoin_seconds", "exclude_after", "min_clients", "patience",
    "target_accuracy", "finetune_epochs", "finetune_lr",
)  # fmt: skip
_CHOICES = {
    "sampler": SAMPLERS,
    "favour": ("fast", "slow"),
    "weights": ("examples", "equal"),
    "coordinator": ("fixed", "elect"),
    "evaluate": ("server", "clients", "both", "none"),
    "keep": ("last", "best"),
}
_ELECTED = {
    "keep": ("last",),
    "patience": (0,),
    "sampler": ("uniform",),
    "finetune_epochs": (0,),
    "unseen": (0,),
}  # what a successor can go on with


class Leader:
    """Draws cohorts, averages, evaluates, decides when it is over: what every coordinator of this course does."""

    def __init__(
        self,
        learner: Learner,
        settings: FedAvgSettings,
        clients: Clients,
        durable: Durable,
        stop: int | None = None,
        rule: Rule | None = None,
    ) -> None:
        """`stop`: the round, from 0, before which to pause; `rule`: federated averaging if there is none."""
        self.params: Tensor = learner.model.initial
        self._rule = averaging(learner) if rule is None else rule
        self._served = self._rule.served or learner.parts
        self._central = self._rule.central()
        self._round = 0  # the next one
        self._stop = settings.rounds if stop is None else min(stop, settings.rounds)
        self._updates = 0
        self._reason = ""  # why the course is over, once it is
        self._learner = learner
        self._settings = settings
        self._durable = durable
        self._clients = clients
        self._best = Best(settings.patience, settings.target_accuracy)

    @property
    def rule(self) -> Rule:
        """What is sent, and by which halves."""
        return self._rule

    async def lead(self, node: Node) -> str:
        """Play the rounds that are left. Why the course is over; nothing: it pauses."""
        while not self._reason and self._round < self._stop:
            await self._play_round(node, self._round)
        return self._reason

    async def _collect(self, node: Node, round: int) -> Collected:
        """Have a cohort train, and make the next model of it."""
        cohort = await self._clients.cohort(node, round)
        node.emit(RoundStarted(round + 1, len(cohort)))
        collected = await self._clients.train(node, cohort, self._ask(round))
        if collected.mean is not None:
            share = collected.count / self._clients.total
            self.params = self._central.absorb(self.params, collected.mean, share, round)
        return collected

    def _serve(self) -> Tensors:
        return self._served.tensors(self._central.serve(self.params))

    def _ask(self, round: int) -> Train:
        return Train(round, self._rule.down.tensors(self._central.broadcast(self.params, round)))

    async def _play_round(self, node: Node, round: int) -> None:
        collected = await self._collect(node, round)
        self._updates += collected.count
        found = {"train_loss": collected.loss, **collected.metrics, **await self._evaluate(node, round)}
        metrics = {name: value for name, value in found.items() if value is not None and number(value) is not None}
        self._best.note(self.params, metrics)
        certificate = await self._certificate(node, round, collected)
        self._round = round + 1
        self._reason = self._best.ended(metrics) or self._ended()
        await self._durable.commit(node, self._round, self.state(), metrics, certificate)
        node.emit(RoundEnded(self._round, collected.count, metrics))

    def _ended(self) -> str:
        return f"all {self._round} rounds are done" if self._round == self._settings.rounds else ""

    async def _evaluate(self, node: Node, round: int) -> dict[str, float | None]:
        """What is measured after a round, if it is time to measure."""
        found: dict[str, float | None] = {}
        if self._is_due(round, "server") and self._learner.test is not None:
            evaluation = await self._learner.evaluate(self.params, self._learner.test)
            found |= {"accuracy": evaluation.accuracy, "loss": evaluation.loss}
        if self._is_due(round, "clients"):
            ask = Evaluate(round, self._serve())
            scored = await self._clients.evaluate(node, ask)
            found |= {"client_accuracy": scored.accuracy, "client_loss": scored.loss}
            if self._clients.unseen:
                scored = await self._clients.evaluate(node, ask, unseen=True)
                found |= {"unseen_accuracy": scored.accuracy, "unseen_loss": scored.loss}
        return found

    def _is_due(self, round: int, where: str) -> bool:
        due = (round + 1) % self._settings.evaluate_every == 0 or round + 1 == self._settings.rounds
        return due and self._settings.evaluate in (where, "both")

    async def _certificate(self, node: Node, round: int, collected: Collected) -> Certificate | None:
        """What makes the round one that may be committed."""
        if self._durable.journal is None:
            return None
        aggregate = await self._learner.digest(self.params)
        return Certificate(self._durable.run, round, _FIRST_TERM, aggregate, collected.contributions)

    def state(self) -> RoleState:
        counts: RoleState = {"round": self._round, "updates": self._updates, "ended": self._reason}
        central = _prefixed(_CENTRAL, self._central.state())
        sampler = _prefixed(_SAMPLER, self._clients.sampler.state())
        return {"params": self.params, **counts, **self._best.state(), **central, **sampler}

    def resume(self, state: RoleState) -> None:
        self.params = as_tensor(state["params"])
        self._round, self._updates = int(state["round"]), int(state["updates"])
        self._reason = str(state["ended"])
        self._best.resume(state)
        self._central.resume(_below(_CENTRAL, state))
        self._clients.sampler.resume(_below(_SAMPLER, state))


class Server(Leader):
    """The coordinator that is fixed."""

    def __init__(
        self,
        learner: Learner,
        settings: FedAvgSettings,
        clients: Iterable[int],
        stop: int | None = None,
        journal: Journal | None = None,
        rule: Rule | None = None,
    ) -> None:
        """`clients`: the seats that are asked to train; `stop`: the round, from 0, before which to pause."""
        up = None if rule is None else rule.up
        asked = Clients(clients, settings.rules, learner, up=up, certify=journal is not None)
        super().__init__(learner, settings, asked, Durable(journal), stop, rule)

    async def run(self, node: Node) -> None:
        node.agree(self._served.schema, *self._rule.down.schemas, *self._rule.up.schemas)
        if self._round:
            await self._clients.reassemble(node)
        else:
            await self._clients.assemble(node, self._settings.min_clients or len(self._clients.seats))
        reason = await self.lead(node)
        if reason and self._settings.keep == "best" and self._best.params is not None:
            self.params = self._best.params
        await self._clients.finish(node, Finish(self._round, self._serve()))
        if not reason:
            return  # a pause
        if not self._updates:
            raise CourseError(f"none of {self._round} rounds brought an update: see what each client was missing for")
        node.emit(CourseEnded(self._round, reason))


class Elected(Leader):
    """The coordinator for as long as its seat is elected."""

    def __init__(self, member: Member, term: int) -> None:
        settings: FedAvgSettings = member.settings
        others = [seat for seat in member.clients if seat != member.learner.seat]
        own = member if member.trains else None
        clients = Clients(others, settings.rules, member.learner, own, certify=True)
        super().__init__(member.learner, settings, clients, member.durable)
        self._member = member
        self._term = term
        self.params, self._round = member.params, member.rounds
        self._reason = self._ended()

    async def lead(self, node: Node) -> str:
        if not self._round:
            await self._clients.assemble(node, self._settings.min_clients or len(self._clients.seats))
        return await super().lead(node)

    def state(self) -> RoleState:
        return self._member.state()

    async def _certificate(self, node: Node, round: int, collected: Collected) -> Certificate:
        """Once a quorum has signed it. Raises Deposed."""
        aggregate = await self._learner.digest(self.params)
        proposed = Certificate(self._member.run_name, round, self._term, aggregate, collected.contributions)
        return await self._member.certify(node, proposed, self.params)


class Candidate(Member):
    """Any seat of a course whose coordinator is elected."""

    def leader(self, term: int) -> Elected:
        return Elected(self, term)


class Trainer:
    """A client: trains when its server asks it to, until the course is over."""

    def __init__(self, learner: Learner, server: int, journal: Journal | None = None, rule: Rule | None = None) -> None:
        """`server`: the seat that it obeys, and no other; `rule`: federated averaging if there is none."""
        self.params: Tensor = learner.model.initial
        self.server = server
        self._learner = learner
        self._rule = averaging(learner) if rule is None else rule
        self._served = self._rule.served or learner.parts
        self._final: Tensor = self.params  # what is served in the end, after so many rounds
        self._rounds = 0
        self._outbox = Outbox(learner, self._rule, Durable(journal))
        self._over = asyncio.Event()

    @property
    def only_trains(self) -> bool:
        """Whether all that it does in a round is to train from a model, and to send the model that this gives."""
        whole = self._rule.down is self._rule.up is self._served is self._learner.parts
        return whole and type(self._outbox.local) is Training

    async def run(self, node: Node) -> None:
        node.agree(self._served.schema, *self._rule.down.schemas, *self._rule.up.schemas)
        try:
            with node.waiting("the end of the course"):
                await self._over.wait()
        finally:
            self._outbox.close()
        learner = self._learner.at(self._rounds)
        self.params = await self._outbox.local.personal(learner, self._final)  # the server waits no more

    def state(self) -> RoleState:
        """What its half remembers; nothing else of it lasts from round to round."""
        return self._outbox.local.state()

    def resume(self, state: RoleState) -> None:
        if state:
            self._outbox.local.resume(state)

    @Train.handler
    async def train(self, ask: Train, peer: Peer) -> Update:
        require_seat(peer, self.server)
        return await self._outbox.update(peer.node, ask.round, ask.params)

    @Evaluate.handler
    async def evaluate(self, ask: Evaluate, peer: Peer) -> Score:
        require_seat(peer, self.server)
        return await score(self._learner, self._outbox.local, self._served.vector(ask.params), ask.round)

    @Finish.handler
    async def finish(self, ask: Finish, peer: Peer) -> Finished:
        require_seat(peer, self.server)
        self._final, self._rounds = self._served.vector(ask.params), ask.rounds
        self._over.set()
        return Finished()


def _play(place: Place) -> tuple[object, ...]:
    if place.settings.coordinator == "elect":
        require(place.stop is None, "--checkpoint-every does not go with course.coordinator = 'elect'; leave it out")
        require(place.compress.plain, "[compress] does not go with course.coordinator = 'elect'; leave it out")
        require(place.privacy.plain, "[privacy] does not go with course.coordinator = 'elect'; leave it out")
        candidate = Candidate(place, _clients(place.topology.union))
        return candidate.council, candidate
    return _cast(place, averaging(place.learner))


def _cast(place: Place, plain: Rule, server: type[Server] = Server) -> tuple[object, ...]:
    """The server, or a client, of a rule."""
    settings = place.settings
    plain = noised(tuned(plain, settings.finetuning(place.learner.train)), place)
    rule = compressed(plain, place.learner, place.compress, place.tally)
    require(
        not place.compress.up.incremental or settings.hears_all,
        "compress.up.memory is 'ef21', which needs equal weights and every update; set course.weights to equal, "
        "course.quorum to 1, course.deadline_seconds and course.over_selection to 0",
    )
    if place.seat:
        return (Trainer(place.learner, 0, place.journal, rule),)
    clients = place.topology.union.neighbors(0)
    return (server(place.learner, settings, clients, place.stop, place.journal, rule),)


def _prefixed(prefix: str, state: RoleState) -> RoleState:
    return {prefix + name: value for name, value in state.items()}


def _below(prefix: str, state: RoleState) -> RoleState:
    return {name.removeprefix(prefix): state[name] for name in state if name.startswith(prefix)}


def _needs(topology: Topology) -> str | None:
    hub = topology.neighbors(0) == tuple(_clients(topology))
    return None if hub else "seat 0, the server, must be linked to every other seat, as in a star"


def _clients(topology: Topology) -> range:
    return range(1, topology.n)


def _sleepers(topology: Topology, settings: FedAvgSettings) -> Collection[int]:
    return _clients(topology) if settings.coordinator == "fixed" else ()  # who sleeps does not vote


def starred(
    name: str,
    settings: type[FedAvgSettings],
    rule: Callable[[Learner, Any], Rule],
    *,
    remembers: bool = False,
    server: type[Server] = Server,
    compresses: bool = True,
) -> Course:
    """The course of a server and its clients that goes by `rule(learner, settings)`.

    `remembers`: its clients' half has a state, so that clients do not sleep between rounds; `server`: one that does not
    go round by round; `compresses`: whether its updates have a linear mean, so that [compress] can be asked for.
    """

    def play(place: Place) -> tuple[object, ...]:
        elected = place.settings.coordinator == "elect"
        require(not elected, f"course.coordinator is 'elect', which {name} does not go with; set it to fixed")
        return _cast(place, rule(place.learner, place.settings), server)

    def sleepers(topology: Topology, _: object) -> Collection[int]:
        return () if remembers else _clients(topology)

    fits = compresses and server is Server  # then an update is made of the model that was sent last
    return Course(
        name, settings, (server, Trainer), play, _clients, "star", _needs, sleepers,
        compresses=fits, privacy=COORDINATED if fits else (),
    )  # fmt: skip


FEDAVG = Course(
    "fedavg", FedAvgSettings, (Server, Trainer), _play, _clients, "star", _needs, _sleepers,
    compresses=True, privacy=COORDINATED, elected=(Council, Candidate),
)  # fmt: skip
