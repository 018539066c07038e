"""Coordinators that cheat in a secure aggregation, to see one client's update instead of the sum. They play within the
true protocol, against true clients; what they should meet with is refusal.

    course = usurped(FEDAVG, InconsistentServer)     # a course like any other, for a simulation
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, replace

from torch import Tensor

from p2pfl.courses.course import Course, Place
from p2pfl.courses.fedavg import SecretServer
from p2pfl.courses.learner import Learner
from p2pfl.courses.messages import Train
from p2pfl.courses.rounds import Clients, RoundRules
from p2pfl.courses.rules import Rule, averaging
from p2pfl.courses.secagg import Enlist, Keys, Reveal, Secrecy, Seeds
from p2pfl.courses.secagg_clients import Play, SecretClients
from p2pfl.errors import AggregationAborted, RemoteError
from p2pfl.learn.model import Model
from p2pfl.node.events import Event
from p2pfl.privacy.secagg import Advert
from p2pfl.privacy.secagg_server import Aggregator

__all__ = ["DoubleRevealServer", "InconsistentServer", "SeedsTaken", "suppressed", "usurped"]

_DEAD = -1e4  # a bias that no input of ordinary size lifts above 0


def suppressed(model: Model, params: Tensor) -> Tensor:
    """A model whose ReLUs are dead, so that whoever trains it moves its last bias alone: (layout.numel,).

    D. Pasquini, D. Francati, G. Ateniese: "Eluding Secure Aggregation in Federated Learning via Model Inconsistency",
    CCS 2022, https://arxiv.org/abs/2111.07380, gradient suppression: given to all but one client, it leaves in the sum
    of the updates that of the one. Takes layers with biases, and ReLUs between them.
    """
    dead = params.clone()
    trained = model.layout.views(dead)[: model.layout.trainable]
    for bias in [view for view in trained if view.dim() == 1][:-1]:
        bias.fill_(_DEAD)
    return dead


def usurped(course: Course, server: type[SecretServer]) -> Course:
    """A course that averages, such as FEDAVG, in whose seat 0 sits a server that cheats."""

    def play(place: Place) -> tuple[object, ...]:
        if place.seat:
            return course.play(place)
        secrecy = Secrecy.of(place, averaging(place.learner))
        clients = place.topology.union.neighbors(0)
        return (server(secrecy, place.learner, place.settings, clients, place.stop, place.journal),)

    return replace(course, play=play)


class _Inconsistent(SecretClients):
    """Gives the model to one client of a cohort, the first, and to all others one that leaves no trace in the sum."""

    async def _advertise(self, play: Play[Aggregator], ask: Train) -> None:
        honest = play.aggregator
        play.aggregator = Aggregator(honest.session, self.up.numel, lambda peer, statement, signature: True)
        rule = self._secrecy.rule
        received = rule.down.vector(ask.params)
        dead = rule.down.tensors(suppressed(self.learner.model, received))
        for number, peer in enumerate(play.peers.values()):
            params = dead if number else ask.params
            keys: Keys = await peer.ask(Enlist(play.nonce, self._secrecy.run, ask.round, params))
            play.aggregator.enlist(peer.id, Advert(peer.id, keys.keys, keys.signature))


@dataclass(frozen=True, slots=True)
class SeedsTaken(Event):
    """What a double reveal has brought of the first client: shares of its own seed, and of its mask key."""

    own: int
    mask: int
    threshold: int

    @property
    def unmasked(self) -> bool:
        """Whether that is enough to take all masks off its update."""
        return min(self.own, self.mask) >= self.threshold

    def __str__(self) -> str:
        return (
            f"{self.own} shares of a client's own seed and {self.mask} of its mask key; it takes {self.threshold} each"
        )


class _DoubleReveal(SecretClients):
    """Tells each client that the first of them is still there, and that it is lost, every other client in turned order.

    K. Bonawitz et al.: "Practical Secure Aggregation for Privacy-Preserving Machine Learning", CCS 2017,
    https://arxiv.org/abs/1611.04482, section 6.1, has this attack: who gets shares of both of a client's seeds, takes
    all masks off its update. A confirmed set and a threshold of more than half of the holders stand against it.
    """

    async def _reveal(self, play: Play[Aggregator]) -> None:
        victim = min(play.survivors)
        owner = play.aggregator.roster.peers[victim]
        there, lost = play.survivors, [each for each in play.survivors if each != victim]
        own = mask = 0
        for number, peer in enumerate(play.of(play.aggregator.survivors)):
            for survivors in (there, lost) if number % 2 else (lost, there):
                with suppress(RemoteError):
                    ask = Reveal(play.nonce, survivors, play.aggregator.confirmations(peer.id))
                    seeds: Seeds = await peer.ask(ask)
                    own, mask = own + (owner in seeds.own), mask + (owner in seeds.mask)
        play.node.emit(SeedsTaken(own, mask, play.aggregator.roster.plan.threshold))
        raise AggregationAborted("the shares were taken for other things than the sum")


class InconsistentServer(SecretServer):
    """Gives all clients but one a model that keeps their updates out of the sum; see `suppressed`."""

    def _clients_of(
        self, seats: Iterable[int], learner: Learner, rules: RoundRules, rule: Rule | None, *, certify: bool
    ) -> Clients:
        return _Inconsistent(seats, rules, learner, self._secrecy, certify=certify)


class DoubleRevealServer(SecretServer):
    """Asks for shares of both seeds of one client; what it got is told by the event SeedsTaken."""

    def _clients_of(
        self, seats: Iterable[int], learner: Learner, rules: RoundRules, rule: Rule | None, *, certify: bool
    ) -> Clients:
        return _DoubleReveal(seats, rules, learner, self._secrecy, certify=certify)
