"""What tells one algorithm of the D-PSGD family from another: what a node gives to its neighbours in a round, and what
it makes of what comes.

The role is the Mixer of dpsgd.py whatever the algorithm. In each round

    trained = (await steps.fit(learner, params, round)).params
    shared  = steps.give(params, trained)                      # and steps.to(shared, seat) where neighbours differ
    mixed   = own weight * shared + the sum over j of w_ij * what j has given
    params  = steps.take(params, trained, mixed, heard)

Steps may have a state; it is committed with the round, and so survives a restart.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Protocol

from torch import Tensor

from p2pfl.courses.course import RoleState
from p2pfl.courses.gossip import consensus_distance
from p2pfl.courses.learner import Learner
from p2pfl.courses.parts import Parts
from p2pfl.learn.train import FitResult
from p2pfl.topology.graph import Topology
from p2pfl.topology.weights import Missing, own_weight, received_weights, topology_weights

__all__ = ["Adapt", "Combine", "Steps"]


class Steps(Protocol):
    """One node's side of an algorithm. Vectors are flat, float32; models of shape (layout.numel,), what is given and
    mixed of shape (parts.numel,). Nothing that is passed in may be written to, but for `mixed`.
    """

    parts: Parts
    """What is given."""
    apart: bool
    """Whether neighbours are given different vectors in one round."""

    async def fit(self, learner: Learner, params: Tensor, round: int) -> FitResult:
        """Local training in a round (from 0). Raises ComputeError; then the node goes on with trained = params."""

    def give(self, params: Tensor, trained: Tensor) -> Tensor:
        """What is mixed of this node's own."""

    def to(self, shared: Tensor, seat: int) -> Tensor:
        """What the neighbour in this seat is given, of what `give` gave."""

    def row(self, graph: Topology, seat: int) -> dict[int, float]:
        """What each of those who send to this seat weighs, in the graph of a round."""

    def received(self, row: Mapping[int, float], heard: Collection[int]) -> dict[int, float]:
        """What those of `row` weigh who were heard."""

    def own(self, row: Mapping[int, float]) -> float:
        """What this node's own weighs, where those of `row` were heard."""

    def take(self, params: Tensor, trained: Tensor, mixed: Tensor, heard: Mapping[int, Tensor]) -> Tensor:
        """The next model. `heard`: by seat, what the neighbours gave; some of it may have NaN or infinite numbers."""

    def check(self, vector: Tensor) -> None:
        """Raises RemoteProtocolError for what no honest neighbour gives. NaN and infinity are looked for elsewhere."""

    def distance(self, shared: Tensor, heard: Mapping[int, Tensor]) -> float | None:
        """How far the neighbours are that were heard in a round, after its `take`; None if none was."""

    def public(self, params: Tensor) -> Tensor:
        """What of our model is given to a neighbour that comes late, and goes on with it; as long as the model."""

    def adopt(self, params: Tensor, theirs: Tensor) -> Tensor:
        """The model to go on with where a neighbour is: of ours, and of what it has given as `public`."""

    def restart(self) -> None:
        """Begin anew, with the model of a neighbour: forget what belongs to one's own path."""

    def state(self) -> RoleState:
        """What it has to remember between rounds: other names than `params` and `round`, without slashes."""

    def resume(self, state: RoleState) -> None:
        """Go on from there; the state of the whole role, of which it takes its own."""


class Adapt:
    """Train, then mix what all have trained. Others build on it and override what differs."""

    apart = False

    def __init__(self, parts: Parts, missing: Missing = "self") -> None:
        """`missing`: who gets the weight of what did not come; see `received_weights`."""
        self.parts = parts
        self._missing = missing

    async def fit(self, learner: Learner, params: Tensor, round: int) -> FitResult:
        return await learner.fit(params, round)

    def give(self, params: Tensor, trained: Tensor) -> Tensor:
        return trained

    def to(self, shared: Tensor, seat: int) -> Tensor:
        return shared

    def row(self, graph: Topology, seat: int) -> dict[int, float]:
        return topology_weights(graph, seat)

    def received(self, row: Mapping[int, float], heard: Collection[int]) -> dict[int, float]:
        return received_weights(row, heard, self._missing)

    def own(self, row: Mapping[int, float]) -> float:
        return own_weight(row)

    def take(self, params: Tensor, trained: Tensor, mixed: Tensor, heard: Mapping[int, Tensor]) -> Tensor:
        return mixed

    def check(self, vector: Tensor) -> None:
        return None

    def distance(self, shared: Tensor, heard: Mapping[int, Tensor]) -> float | None:
        return consensus_distance(self.shown(shared), map(self.shown, heard.values()))

    def shown(self, vector: Tensor) -> Tensor:
        """The model in what a node gives."""
        return vector

    def public(self, params: Tensor) -> Tensor:
        return params

    def adopt(self, params: Tensor, theirs: Tensor) -> Tensor:
        return theirs

    def restart(self) -> None:
        return None

    def state(self) -> RoleState:
        return {}

    def resume(self, state: RoleState) -> None:
        return None


class Combine(Adapt):
    """Mix the models that training began with, and add to that what was learned."""

    def give(self, params: Tensor, trained: Tensor) -> Tensor:
        return params

    def take(self, params: Tensor, trained: Tensor, mixed: Tensor, heard: Mapping[int, Tensor]) -> Tensor:
        return mixed.add_(trained).sub_(params)
