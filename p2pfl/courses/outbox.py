"""What a client owes: its update, trained once, however often it is asked for, and there after a restart; its score."""

from __future__ import annotations

import asyncio

from torch import Tensor

from p2pfl.courses.course import RoleState, as_tensor
from p2pfl.courses.durable import Durable
from p2pfl.courses.learner import Learner
from p2pfl.courses.messages import Rating, Score, Update, number
from p2pfl.courses.rules import Local, Rule
from p2pfl.node.connection import LINK_LOST
from p2pfl.node.node import Node
from p2pfl.wire.tensor import Tensors

__all__ = ["Outbox", "score"]

_NAME = "update"
_LOCAL = "local."  # before the names of what the client's half remembers


class Outbox:
    """The newest update only: a server asks for one round at a time.

    Whoever asks may be cut off, and ask again; training goes on meanwhile. With a journal the update is written before
    it leaves, so that who has got it once gets the same again. Without one it is not held for later, unless training
    twice would not be the same as once, because what is remembered from round to round would change twice.
    """

    def __init__(self, learner: Learner, rule: Rule, durable: Durable) -> None:
        self.local = rule.local()
        self._learner = learner
        self._rule = rule
        self._durable = durable
        self._key = ""  # of the round, and of the model that training starts from
        self._work: asyncio.Task[Update] | None = None
        self._askers = 0  # who wait for it
        self._closed = False
        kept = None if durable.journal is None else durable.journal.kept(_NAME)
        if kept is not None:
            self.local.resume({name.removeprefix(_LOCAL): kept[name] for name in kept if name.startswith(_LOCAL)})

    async def update(self, node: Node, round: int, params: Tensors) -> Update:
        """The update of a round, from what the server has sent for it, unless it was made before."""
        received = self._rule.down.vector(params)
        if self._durable.journal is None and not self.local.stateful:
            return await self._train(round, received)
        key = f"{round}/{await self._learner.digest(received)}"
        if key != self._key or self._work is None:
            self.drop()
            self._key = key
            self._work = asyncio.create_task(self._make(node, key, round, received))
        work = self._work
        self._askers += 1
        try:
            return await asyncio.shield(work)
        except asyncio.CancelledError as end:
            if LINK_LOST not in end.args or self._closed:  # nobody will ask again
                self._drop_if(work)
            raise
        except Exception:  # whatever it is, the asker gets it, and who asks again has a new try
            self._drop_if(work)
            raise
        finally:
            self._askers -= 1

    def close(self) -> None:
        """The node stops. Who has asked may yet get the update, in the time that a stopping node leaves to handlers."""
        self._closed = True
        if not self._askers:
            self.drop()

    def drop(self) -> None:
        """Nobody wants it any more."""
        if self._work is not None:
            self._work.cancel()
        self._work, self._key = None, ""

    def _drop_if(self, work: asyncio.Task[Update]) -> None:
        if work is self._work:
            self.drop()

    async def _make(self, node: Node, key: str, round: int, received: Tensor) -> Update:
        journal = self._durable.journal
        kept = None if journal is None else journal.kept(_NAME)
        if kept is not None and kept["key"] == key:
            return self._as_message(round, kept)
        update = await self._train(round, received)
        if journal is not None:
            await self._durable.keep(node, _NAME, self._as_state(key, update))
        return update

    async def _train(self, round: int, received: Tensor) -> Update:
        trained = await self.local.train(self._learner.at(round), received, round)
        return Update(round, self._rule.up.tensors(trained.vector), trained.num_examples, number(trained.loss))

    def _as_state(self, key: str, update: Update) -> RoleState:
        loss = {} if update.loss is None else {"loss": update.loss}
        vector = self._rule.up.packed(update.params)
        local = {_LOCAL + name: value for name, value in self.local.state().items()}
        return {"key": key, "vector": vector, "num_examples": update.num_examples, **loss, **local}

    def _as_message(self, round: int, kept: RoleState) -> Update:
        loss = float(kept["loss"]) if "loss" in kept else None
        return Update(round, self._rule.up.tensors(as_tensor(kept["vector"])), int(kept["num_examples"]), loss)


async def score(learner: Learner, local: Local, served: Tensor, round: int) -> Score:
    """How well a client is served in a round, on its own examples."""
    learner = learner.at(round)
    found = await local.evaluate(learner, served, learner.measured)
    return Score(Rating(found.figures, found.num_examples), {})
