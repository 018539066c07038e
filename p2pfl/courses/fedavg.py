"""Federated averaging.

H. B. McMahan, E. Moore, D. Ramage, S. Hampson, B. Agüera y Arcas: "Communication-Efficient Learning of Deep Networks
from Decentralized Data", AISTATS 2017, https://arxiv.org/abs/1602.05629. Over-selection and the deadline follow
K. Bonawitz et al.: "Towards Federated Learning at Scale: System Design", MLSys 2019,
https://arxiv.org/abs/1902.01046.

Deviation: a cohort is drawn from the clients that are linked at the start of the round.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from typing import Any

from torch import Tensor

from p2pfl.council.council import Council
from p2pfl.courses.additive import AdditiveClients
from p2pfl.courses.additive_trainer import AdditiveTrainer
from p2pfl.courses.best import Best
from p2pfl.courses.coded import compressed
from p2pfl.courses.course import Course, Place, RoleState, as_tensor, below, prefixed
from p2pfl.courses.diagnosis import Diagnosis
from p2pfl.courses.durable import Durable
from p2pfl.courses.elected import Member
from p2pfl.courses.finetune import tuned
from p2pfl.courses.learner import Learner
from p2pfl.courses.messages import Finish, Train, number
from p2pfl.courses.noised import COORDINATED, noised
from p2pfl.courses.rounds import Clients, Collected, RoundRules
from p2pfl.courses.rules import Rule, averaging
from p2pfl.courses.secagg import ADDITIVE, CONSISTENT, Secrecy
from p2pfl.courses.secagg_clients import SecretClients
from p2pfl.courses.secagg_trainer import PledgedTrainer, SecretTrainer
from p2pfl.courses.settings import FedAvgSettings
from p2pfl.courses.trainer import Trainer
from p2pfl.errors import CourseError, require
from p2pfl.journal.certificate import Certificate
from p2pfl.journal.journal import Journal
from p2pfl.node.events import CourseEnded, RoundEnded, RoundStarted
from p2pfl.node.node import Node
from p2pfl.topology.graph import Topology
from p2pfl.wire.tensor import Tensors

__all__ = ["FEDAVG", "Elected", "FedAvgSettings", "Leader", "SecretServer", "Server", "Trainer", "starred"]

_FIRST_TERM = 1
_CENTRAL = "central."  # before the names of what the server's half remembers
_SAMPLER = "sampler."  # before the names of what the sampler has learned


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
        self._best = Best(settings.aim)

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
        ask = self._ask(round)
        collected = await self._clients.train(node, cohort, ask, self._diagnosis(ask))
        if collected.mean is not None:
            share = collected.count / self._clients.total
            self.params = self._central.absorb(self.params, collected.mean, share, round)
        return collected

    def _serve(self) -> Tensors:
        return self._served.tensors(self._central.serve(self.params))

    def _ask(self, round: int) -> Train:
        return Train(round, self._rule.down.tensors(self._central.broadcast(self.params, round)))

    def _diagnosis(self, ask: Train) -> Diagnosis | None:
        """Of the updates that this will bring, if that is wanted."""
        return self._rule.diagnosis(ask.params) if self._settings.diagnose else None

    async def _play_round(self, node: Node, round: int) -> None:
        collected = await self._collect(node, round)
        self._updates += collected.count
        evaluated = await self._evaluate(node, round)
        found = {"train_loss": collected.loss, **collected.metrics, **evaluated}
        metrics = {name: value for name, value in found.items() if value is not None and number(value) is not None}
        if evaluated:
            self._settings.aim.check(metrics)
        self._best.note(self.params, metrics)
        certificate = await self._certificate(node, round, collected)
        self._round = round + 1
        self._reason = self._best.ended(metrics) or self._ended()
        await self._durable.commit(node, self._round, self.state(), metrics, certificate)
        node.emit(RoundEnded(self._round, collected.count, metrics))

    def _ended(self) -> str:
        return f"all {self._round} rounds are done" if self._round == self._settings.rounds else ""

    async def _evaluate(self, node: Node, round: int) -> dict[str, float]:
        """What is measured after a round, if it is time to measure."""
        found: dict[str, float] = {}
        if self._is_due(round, "server") and self._learner.test is not None:
            found |= (await self._learner.evaluate(self.params, self._learner.test)).figures
        if self._is_due(round, "clients"):
            found |= await self._clients.figures(node, round, self._serve())
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
        central = prefixed(_CENTRAL, self._central.state())
        sampler = prefixed(_SAMPLER, self._clients.sampler.state())
        return {"params": self.params, **counts, **self._best.state(), **central, **sampler}

    def resume(self, state: RoleState) -> None:
        self.params = as_tensor(state["params"])
        self._round, self._updates = int(state["round"]), int(state["updates"])
        self._reason = str(state["ended"])
        self._best.resume(state)
        self._central.resume(below(_CENTRAL, state))
        self._clients.sampler.resume(below(_SAMPLER, state))


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
        asked = self._clients_of(clients, learner, settings.rules, rule, certify=journal is not None)
        super().__init__(learner, settings, asked, Durable(journal), stop, rule)

    def _clients_of(
        self, seats: Iterable[int], learner: Learner, rules: RoundRules, rule: Rule | None, *, certify: bool
    ) -> Clients:
        return Clients(seats, rules, learner, up=None if rule is None else rule.up, certify=certify)

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


class SummingServer(Server):
    """The fixed coordinator that sees no update, but only what they come to together."""

    def __init__(
        self,
        secrecy: Secrecy,
        learner: Learner,
        settings: FedAvgSettings,
        clients: Iterable[int],
        stop: int | None = None,
        journal: Journal | None = None,
    ) -> None:
        self._secrecy = secrecy
        super().__init__(learner, settings, clients, stop, journal, secrecy.rule)


class SecretServer(SummingServer):
    """One whose clients mask their updates."""

    def _clients_of(
        self, seats: Iterable[int], learner: Learner, rules: RoundRules, rule: Rule | None, *, certify: bool
    ) -> Clients:
        return SecretClients(seats, rules, learner, self._secrecy, certify=certify)


class AdditiveServer(SummingServer):
    """One whose clients add up by shares."""

    def _clients_of(
        self, seats: Iterable[int], learner: Learner, rules: RoundRules, rule: Rule | None, *, certify: bool
    ) -> Clients:
        return AdditiveClients(seats, rules, learner, self._secrecy, certify=certify)


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


_SECRET_ROLES = {
    "secagg": (SecretServer, SecretTrainer),
    CONSISTENT: (SecretServer, SecretTrainer),
    ADDITIVE: (AdditiveServer, AdditiveTrainer),
}


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
    if settings.diagnose:
        require(place.compress.plain, "course.diagnose does not go with [compress]; leave one of them out")
        unlike = f"course.diagnose compares updates, and those of {settings.name} are of different things"
        require(plain.comparable, f"{unlike}; leave it out")
        exposed = "course.diagnose tells what noise is to hide, and privacy.mode is not plain; leave one of them out"
        require(place.privacy.mode == "plain", exposed)
    plain = noised(tuned(plain, settings.finetuning(place.learner.train)), place)
    if settings.privacy != "plain":
        unshared = (
            f"course.privacy is {settings.privacy!r}, and with privacy.mode = {place.privacy.mode!r} noise does not "
            "come in shares; set privacy.mode to 'ddp', or course.privacy to 'plain'"
        )
        require(place.privacy.mode in ("plain", "ddp"), unshared)
        in_rounds = f"course.privacy does not go with {settings.name}, which has no rounds; set it to 'plain'"
        require(server is Server, in_rounds)
        return (_secret(place, Secrecy.of(place, plain)),)
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


def _secret(place: Place, secrecy: Secrecy) -> SummingServer | PledgedTrainer[Any]:
    """The server, or a client, that adds up in secret."""
    if place.seat:
        kind = AdditiveTrainer if secrecy.additive else SecretTrainer
        return kind(place.learner, 0, place.journal, secrecy, place.floors)
    clients = place.topology.union.neighbors(0)
    lead = AdditiveServer if secrecy.additive else SecretServer
    return lead(secrecy, place.learner, place.settings, clients, place.stop, place.journal)


def _needs(topology: Topology) -> str | None:
    hub = topology.neighbors(0) == tuple(_clients(topology))
    return None if hub else "seat 0, the server, must be linked to every other seat, as in a star"


def _clients(topology: Topology) -> range:
    return range(1, topology.n)


def _sleepers(topology: Topology, settings: FedAvgSettings) -> Collection[int]:
    """All clients, unless they vote, or have to remember what they have given."""
    return _clients(topology) if settings.coordinator == "fixed" and settings.privacy == "plain" else ()


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

    def sleepers(topology: Topology, settings: FedAvgSettings) -> Collection[int]:
        return () if remembers else _sleepers(topology, settings)

    fits = compresses and server is Server  # then an update is made of the model that was sent last
    return Course(
        name, settings, (server, Trainer), play, _clients, "star", _needs, sleepers,
        compresses=fits, secret=_SECRET_ROLES if server is Server else {}, privacy=COORDINATED if fits else (),
    )  # fmt: skip


FEDAVG = Course(
    "fedavg",
    FedAvgSettings,
    (Server, Trainer),
    _play,
    _clients,
    "star",
    _needs,
    _sleepers,
    compresses=True,
    elected=(Council, Candidate),
    secret=_SECRET_ROLES,
    privacy=COORDINATED,
)
