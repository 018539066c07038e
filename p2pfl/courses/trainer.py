"""The client of a course with a coordinator, whatever its rule is."""

from __future__ import annotations

import asyncio

from torch import Tensor

from p2pfl.courses.course import RoleState
from p2pfl.courses.durable import Durable
from p2pfl.courses.learner import Learner
from p2pfl.courses.messages import Evaluate, Finish, Finished, Score, Train, Update
from p2pfl.courses.outbox import Outbox, score
from p2pfl.courses.rules import Rule, Training, averaging
from p2pfl.journal.journal import Journal
from p2pfl.node.node import Node
from p2pfl.node.peer import Peer, require_seat

__all__ = ["Trainer"]


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
