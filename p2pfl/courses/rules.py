"""What tells one algorithm with a coordinator from another, as two halves: the server's and the clients'.

The roles are those of fedavg.py whatever the algorithm. In each round the server sends what its half gives out, each
client's half makes an update of it, and the server's half takes in the mean of the updates:

    received = central.broadcast(params, round)
    update   = await local.train(learner, received, round)            # at each client of the cohort
    params   = central.absorb(params, mean of the updates, share, round)

To evaluate, and in the end, the server sends what clients are served by, and each makes its own model of that:

    model    = await local.personal(learner, central.serve(params))

A half may have a state; it is committed with the round, or kept with the update, and so survives a restart.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from p2pfl.courses.course import RoleState, as_tensor
from p2pfl.courses.diagnosis import Diagnosis
from p2pfl.courses.learner import Learner
from p2pfl.courses.messages import MODEL
from p2pfl.courses.parts import Parts
from p2pfl.learn.data import Shard
from p2pfl.learn.evaluate import Evaluation
from p2pfl.wire.tensor import Tensors

__all__ = ["Averaging", "Carrying", "Central", "Local", "Owning", "Rule", "Trained", "Training", "averaging"]


class Trained(NamedTuple):
    """What a client's half gives: a vector of the parts that go up, and how it came about."""

    vector: Tensor
    num_examples: int
    loss: float


class Central(Protocol):
    """The server's half. Vectors are flat, float32; `params` is the whole model, of shape (layout.numel,)."""

    def broadcast(self, params: Tensor, round: int) -> Tensor:
        """What the clients of a round (from 0) are sent: a vector of the parts that go down."""

    def absorb(self, params: Tensor, mean: Tensor, share: float, round: int) -> Tensor:
        """The next model. `mean` is that of the updates, `share` how many of all clients gave one, in (0, 1].

        `params` and `mean` may be written to by nobody: the next model is new memory, or `mean` itself.
        """

    def serve(self, params: Tensor) -> Tensor:
        """What clients are evaluated by, and end with, when the model is `params`: a vector of the parts served."""

    def state(self) -> RoleState:
        """What it has to remember between rounds. Names of its own: no slashes."""

    def resume(self, state: RoleState) -> None:
        """Go on from there."""


class Local(Protocol):
    """A client's half."""

    stateful: bool
    """Whether it remembers something from round to round: then a simulation cannot let its client sleep."""

    async def train(self, learner: Learner, received: Tensor, round: int) -> Trained:
        """The update of a round (from 0). Raises ComputeError."""

    async def personal(self, learner: Learner, served: Tensor) -> Tensor:
        """The model that serves this client, made of what the server serves: what it ends with.

        It may be trained for that, and nothing is remembered of it. Raises ComputeError.
        """

    async def evaluate(self, learner: Learner, served: Tensor, shard: Shard) -> Evaluation:
        """How well this client is served, on examples of its own. Raises ComputeError."""

    def state(self) -> RoleState:
        """What it has to remember between rounds."""

    def resume(self, state: RoleState) -> None:
        """Go on from there."""


@dataclass(frozen=True, slots=True)
class Rule:
    """An algorithm: what is sent, and both halves, which are made anew for each role."""

    down: Parts
    up: Parts
    central: Callable[[], Central]
    local: Callable[[], Local]
    served: Parts | None = None
    """What goes down for evaluations and in the end; None: the model."""
    relative: bool = False
    """Whether what an update has for the model is a difference to what was received, and not a model."""
    comparable: bool = True
    """Whether clients give updates of the same thing, so that it can be told how alike they are."""

    def update(self, vector: Tensor, received: Tensor) -> Tensor:
        """What an update, or a mean of updates, adds to the part of the model that goes up. Both as they are sent."""
        given = self.up.split(vector)[MODEL]
        return given if self.relative else given - self.down.split(received)[MODEL][: len(given)]

    def diagnosis(self, sent: Tensors) -> Diagnosis:
        """Of the updates that what was sent will bring."""
        received = self.down.vector(sent, finite=False)
        return Diagnosis(lambda vector: self.update(vector, received))


class Averaging:
    """Federated averaging's server: the next model is the mean. Others build on it and override what differs."""

    def broadcast(self, params: Tensor, round: int) -> Tensor:
        return params

    def absorb(self, params: Tensor, mean: Tensor, share: float, round: int) -> Tensor:
        return mean

    def serve(self, params: Tensor) -> Tensor:
        return params

    def state(self) -> RoleState:
        return {}

    def resume(self, state: RoleState) -> None:
        return None


class Training:
    """Federated averaging's client: it trains from the model that it is sent. Others override what differs."""

    stateful = False

    async def train(self, learner: Learner, received: Tensor, round: int) -> Trained:
        found = await learner.fit(received, round)
        return Trained(found.params, found.num_examples, found.loss)

    async def personal(self, learner: Learner, served: Tensor) -> Tensor:
        return served

    async def evaluate(self, learner: Learner, served: Tensor, shard: Shard) -> Evaluation:
        return await learner.evaluate(await self.personal(learner, served), shard)

    def state(self) -> RoleState:
        return {}

    def resume(self, state: RoleState) -> None:
        return None


class Carrying(Training):
    """Federated averaging's client whose optimizer goes on where it stood, with its momentum or its moments, instead of
    beginning anew in each round. Nobody else gets to see them.
    """

    stateful = True

    def __init__(self) -> None:
        self._memory = torch.empty(0)  # of the optimizer

    async def train(self, learner: Learner, received: Tensor, round: int) -> Trained:
        found = await learner.fit(received, round, memory=self._memory)
        if found.memory is not None:
            self._memory = found.memory
        return Trained(found.params, found.num_examples, found.loss)

    def state(self) -> RoleState:
        return {"memory": self._memory}

    def resume(self, state: RoleState) -> None:
        self._memory = as_tensor(state["memory"])


class Owning(Training):
    """A client that has a model of its own from its first training on, and is served by it. It sets `own`."""

    stateful = True

    def __init__(self) -> None:
        self.own: Tensor | None = None

    async def personal(self, learner: Learner, served: Tensor) -> Tensor:
        return served if self.own is None else self.own

    def state(self) -> RoleState:
        return {} if self.own is None else {"own": self.own}

    def resume(self, state: RoleState) -> None:
        self.own = as_tensor(state["own"]) if "own" in state else None


def averaging(learner: Learner) -> Rule:
    """Federated averaging."""
    return Rule(learner.parts, learner.parts, Averaging, Training)
