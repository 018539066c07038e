"""Gossip learning: models walk at random from node to node, are merged with those that they meet, and trained.

R. Ormándi, I. Hegedűs, M. Jelasity: "Gossip Learning with Linear Models on Fully Distributed Data", Concurrency and
Computation: Practice and Experience 25(4), 2013, https://doi.org/10.1002/cpe.2858. How often models are sent: the token
accounts of Danner and Jelasity; see `tokens`. The limit to merging: G. Danner, I. Hegedűs, M. Jelasity: "Improving
Gossip Learning via Limited Model Merging", ICCCI 2023, https://doi.org/10.1007/978-3-031-41774-0_28.

A model has an age a: the steps of training that made it. A node with the model (x, a) that gets (y, b) goes on with

    x <- (a x + b y) / (a + b),  a <- max(a, b)      or with the older, where they differ by more than `merge_limit`
    x <- local training of x,    a <- a + its steps

and sends the outcome to as many others, picked at random, as its account says. A round is a period of the account.

Deviations: a node trains once before it sends anything. Of what comes from one neighbour while a node is busy the last
counts. A training that takes longer than the period makes that round longer. A message is useful if its model is at
least as old as ours. What is sent at one time goes to different neighbours, and costs a token for each that is linked.
"""

from __future__ import annotations

import asyncio
import math
from contextlib import suppress
from dataclasses import dataclass
from random import Random

import torch
from torch import Tensor

from p2pfl.courses.course import RoleState
from p2pfl.courses.dpsgd import Model
from p2pfl.courses.gossip import GossipSettings, Lead
from p2pfl.courses.learner import Learner
from p2pfl.courses.paced import Letter, Mailbox, Paced, paced
from p2pfl.courses.tokens import Account, Generalized, Proactive, Randomized, Simple, Strategy
from p2pfl.errors import require
from p2pfl.journal.journal import Journal
from p2pfl.learn.train import FitResult
from p2pfl.node.events import RoundStarted
from p2pfl.node.node import Node
from p2pfl.node.peer import Peer

__all__ = ["GOSSIP_LEARNING", "AgedModel", "Forwarder", "GossipLearningSettings", "merged"]

_ACCOUNTS = ("proactive", "simple", "generalized", "randomized")
_MOST_STEPS = 1 << 53  # an age stays a number that everybody can read, whatever a neighbour claims


@dataclass(frozen=True, slots=True)
class GossipLearningSettings(GossipSettings):
    """The table [course] of a course file. A round is a period; in each, a node may send one model on average."""

    name: str = "gossip-learning"
    period_seconds: float = 5.0
    """A round lasts so long."""
    account: str = "proactive"
    """When models are sent: `proactive`, one at the end of each period; `simple`, `generalized` or `randomized`, when
    one has come, as long as tokens of earlier periods are left."""
    capacity: int = 4
    """A node saves up so many tokens."""
    reactivity: int = 2
    """With `generalized` and `randomized`: how slowly tokens are spent; 1: all at once."""
    merge_limit: int = -1
    """Where the ages of two models differ by more steps, the older takes the place of both; -1: they are merged."""

    def __post_init__(self) -> None:
        GossipSettings.__post_init__(self)
        require(self.period_seconds > 0, f"course.period_seconds is {self.period_seconds:g}; it must be above 0")
        kinds = ", ".join(_ACCOUNTS)
        require(self.account in _ACCOUNTS, f"course.account is {self.account!r}; it must be one of {kinds}")
        require(self.capacity >= 1, f"course.capacity is {self.capacity}; it must be at least 1")
        fits = 1 <= self.reactivity <= self.capacity
        require(fits, f"course.reactivity is {self.reactivity}; it must lie in 1 to course.capacity, {self.capacity}")
        require(self.merge_limit >= -1, f"course.merge_limit is {self.merge_limit}; it must be at least -1")

    @property
    def strategy(self) -> Strategy:
        match self.account:
            case "simple":
                return Simple(self.capacity)
            case "generalized":
                return Generalized(self.capacity, self.reactivity)
            case "randomized":
                return Randomized(self.capacity, self.reactivity)
        return Proactive()


class AgedModel(Model):
    """A model, and the steps of training that made it."""

    age: int

    def __post_init__(self) -> None:
        if not 0 <= self.age <= _MOST_STEPS:
            raise ValueError(f"age is {self.age}; it must lie in 0 to {_MOST_STEPS}")


def merged(own: Tensor, age: int, other: Tensor, others_age: int, limit: float = math.inf) -> tuple[Tensor, int]:
    """What becomes of two models, flat vectors, when they meet, and how old it is.

    >>> merged(torch.zeros(2), 1, torch.ones(2), 3)
    (tensor([0.7500, 0.7500]), 3)
    >>> merged(torch.zeros(2), 1, torch.ones(2), 3, limit=1)
    (tensor([1., 1.]), 3)
    """
    oldest = max(age, others_age)
    if abs(age - others_age) > limit:
        return (own if age == oldest else other), oldest
    return torch.lerp(own, other, others_age / (age + others_age) if oldest else 0.5), oldest


class Forwarder(Paced):
    """One node. Its neighbours are all whom it may send to, and get from."""

    _settings: GossipLearningSettings

    def __init__(
        self,
        learner: Learner,
        settings: GossipLearningSettings,
        neighbors: tuple[int, ...],
        stop: int | None = None,
        journal: Journal | None = None,
    ) -> None:
        super().__init__(learner, settings, neighbors, stop, journal)
        self.age = 0
        self.account = Account(settings.strategy)
        self._mail = Mailbox()

    def state(self) -> RoleState:
        return {**super().state(), "age": self.age, "tokens": self.account.tokens, **self._mail.state()}

    def resume(self, state: RoleState) -> None:
        super().resume(state)
        self.age, self.account.tokens = int(state["age"]), int(state["tokens"])
        self._mail = Mailbox.restored(state)

    def _follow(self, lead: Lead) -> None:
        """Go on in its round; a model of our own is as good as its age, and stays."""
        self._round = lead.round
        if not self.age:
            self.params = lead.params

    async def _play(self, node: Node, round: int) -> None:
        until = asyncio.get_running_loop().time() + self._settings.period_seconds
        node.emit(RoundStarted(round + 1, 1))
        draw, heard = self._draw("tokens", round), list[Tensor]()
        fitted = None if self.age else await self._update(node, round, 0)
        while (letter := await self._next(node, until)) is not None:
            heard.append(letter.params)
            useful = letter.age >= self.age
            self._merge(letter)
            fitted = await self._update(node, round, len(heard)) or fitted
            self.account.spend(await self._send(node, self.account.reaction(draw, useful=useful), draw))
        if self.account.grant(draw):
            await self._send(node, 1, draw)
        more = {"age": self.age, "tokens": self.account.tokens}
        await self._close(node, round, fitted, self.params, heard, more)

    async def _next(self, node: Node, until: float) -> Letter | None:
        """A model that has come, or that comes by then, on the loop's clock."""
        if asyncio.get_running_loop().time() < until:
            with suppress(TimeoutError):
                async with asyncio.timeout_at(until):
                    while not self._mail:
                        await node.change()
                    return self._mail.pop(next(iter(self._mail)))
        return None

    def _merge(self, letter: Letter) -> None:
        limit = self._settings.merge_limit
        most = math.inf if limit < 0 else limit
        self.params, self.age = merged(self.params, self.age, letter.params, letter.age, most)

    async def _update(self, node: Node, round: int, number: int) -> FitResult | None:
        """Train our model; None if that has failed. `number`: which training of the round it is."""
        training = self._learner.fit(self.params, round, use=f"fit {number}")
        fitted = await self._training.attempt(node, round, training)
        if fitted is not None:
            self.params, self.age = fitted.params, min(self.age + fitted.steps, _MOST_STEPS)
        return fitted

    async def _send(self, node: Node, many: int, draw: Random) -> int:
        """Our model to so many neighbours, or to all who are linked; to how many it went."""
        picked = self._picked(node, self._neighbors, many, draw)
        with suppress(TimeoutError):
            async with asyncio.timeout(self._settings.period_seconds):
                await node.tell_all(picked, AgedModel(self._round, self._learner.tensors(self.params), self.age))
        return len(picked)

    @AgedModel.handler
    def model(self, message: AgedModel, peer: Peer) -> None:
        seat = self._sender(message, peer)
        if (vector := self._sound(message, peer)) is not None:
            self._mail[seat] = Letter(vector, self._round, message.age)
            peer.node.stir()


GOSSIP_LEARNING = paced("gossip-learning", GossipLearningSettings, Forwarder)
