"""Wait-free gossip: every node keeps the last model of each neighbour, and averages with what is there.

M. Bornstein, T. Rabbani, E. Wang, A. S. Bedi, F. Huang: "SWIFT: Rapid Decentralized Federated Learning via Wait-Free
Model Communication", ICLR 2023, https://arxiv.org/abs/2210.14026.

A node goes at its own speed, and never waits for another. In each round it posts its model x_i to its neighbours and
trains; what it has learned is then added to the average of x_i and of the models x_j that are in its mailboxes:

    x_i <- x_i + sum_j w_ij s(t_j) (x_j - x_i) + (y_i - x_i)        y_i = what training has made of x_i

t_j is how many of its own rounds ago x_j came. The row of w sums to one; what is late, or has not come, leaves its
weight with the receiver.

Deviations: a round has several local steps, as is usual. The paper has no s, which is `discount = "constant"`, and
weighs neighbours by how much each node is to count; here these are the weights of the topology (Metropolis, where it
has none). Where a link is slower than the rounds, the newest model takes the place of those that still wait for it. The
model of a neighbour that is gone, or through with its rounds, counts no more: it would hold back who goes on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from p2pfl.courses.course import Course, Place, RoleState
from p2pfl.courses.dpsgd import Model, symmetric
from p2pfl.courses.gossip import GossipSettings, Lead, Standing, part
from p2pfl.courses.learner import Learner
from p2pfl.courses.paced import Letter, Mailbox, Paced
from p2pfl.courses.staleness import Staleness
from p2pfl.journal.journal import Journal
from p2pfl.node.events import RoundStarted
from p2pfl.node.node import Node
from p2pfl.node.peer import Peer, require_seat
from p2pfl.topology.weights import own_weight, topology_weights

__all__ = ["SWIFT", "Poster", "SwiftSettings"]


@dataclass(frozen=True, slots=True)
class SwiftSettings(GossipSettings):
    """The table [course] of a course file."""

    name: str = "swift"
    discount: str = "polynomial"
    """What a neighbour's model keeps of its weight that came t rounds ago: `polynomial`, (1 + t)^-a; `hinge`, all until
    t = b, then 1 / (a (t - b) + 1); `exponential`, e^(-a t); `constant`, all."""
    discount_a: float = 0.5
    discount_b: float = 4.0

    def __post_init__(self) -> None:
        GossipSettings.__post_init__(self)
        Staleness(self.discount, self.discount_a, self.discount_b)  # which checks them

    @property
    def staleness(self) -> Staleness:
        return Staleness(self.discount, self.discount_a, self.discount_b)


class Poster(Paced):
    """One node of the graph."""

    _settings: SwiftSettings

    def __init__(
        self,
        learner: Learner,
        settings: SwiftSettings,
        row: dict[int, float],
        stop: int | None = None,
        journal: Journal | None = None,
    ) -> None:
        """`row`: what each neighbour's model weighs, by seat, if it is fresh."""
        super().__init__(learner, settings, tuple(row), stop, journal)
        self._row = row
        self._staleness = settings.staleness
        self._mail = Mailbox()
        self._posted: dict[int, Model] = {}  # by receiver, the newest that waits for its link
        self._ended: set[int] = set()  # neighbours that are through
        self._busy: set[int] = set()  # receivers that something is being sent to

    def state(self) -> RoleState:
        return {**super().state(), **self._mail.state()}

    def resume(self, state: RoleState) -> None:
        super().resume(state)
        self._mail = Mailbox.restored(state)

    async def _part(self, node: Node) -> None:
        """Stay for those who are slower: they may come late, and ask where we are."""
        await part(node, self._neighbors, self._settings.rejoin_seconds, standing=Standing(self._round))

    async def _behind(self, node: Node) -> Lead | None:
        """Never mind: who is slow keeps what it has learned."""
        return None

    async def _play(self, node: Node, round: int) -> None:
        node.emit(RoundStarted(round + 1, 1))
        before = self.params
        self._post(node, Model(round, self._learner.tensors(before)))
        fitted = await self._training.fit(node, self._learner, before, round)
        there = [seat for seat in sorted(self._mail) if seat not in self._ended and node.hears(seat)]
        letters = {seat: self._mail[seat] for seat in there}
        averaged = self._average(before, round, letters)
        self.params = averaged if fitted is None else averaged.add_(fitted.params).sub_(before)
        await self._close(node, round, fitted, before, [letter.params for letter in letters.values()])

    def _average(self, own: Tensor, round: int, letters: Mapping[int, Letter]) -> Tensor:
        """Of ours and of these, by seat."""
        weights = {seat: self._row[seat] * self._staleness(round - letter.round) for seat, letter in letters.items()}
        mean = own * own_weight(weights)
        for seat, weight in weights.items():
            mean.add_(letters[seat].params, alpha=weight)
        return mean

    def _post(self, node: Node, model: Model) -> None:
        """Have it sent to all neighbours that are linked, without waiting for any."""
        for seat in self._neighbors:
            self._posted[seat] = model
            if seat not in self._busy:
                self._busy.add(seat)
                node.spawn(self._deliver(node, seat))

    async def _deliver(self, node: Node, seat: int) -> None:
        """Tell a neighbour the newest model, as long as there is one. Who is not linked is told a later one."""
        while (model := self._posted.pop(seat, None)) is not None:
            if (peer := node.at(seat)) is not None:
                await node.tell_all([peer], model)
        self._busy.discard(seat)

    @Model.handler
    def model(self, message: Model, peer: Peer) -> None:
        seat = self._sender(message, peer)
        if (vector := self._sound(message, peer)) is not None:
            self._mail[seat] = Letter(vector, self._round)

    @Standing.handler
    def standing(self, message: Standing, peer: Peer) -> None:
        seat = require_seat(peer, *self._neighbors)
        if message.round >= self._settings.rounds:
            self._ended.add(seat)


def _play(place: Place) -> tuple[object, ...]:
    row = topology_weights(place.topology.union, place.seat)
    return (Poster(place.learner, place.settings, row, place.stop, place.journal),)


SWIFT = Course("swift", SwiftSettings, (Poster,), _play, lambda topology: range(topology.n), "ring", symmetric)
