"""Gossip in which a part of the model never leaves its node: neighbours average the rest.

What federated averaging does with such parts, `partial` says: the last layers as in FedPer, the first as in LG-FedAvg,
normalisation as in FedBN. Here they are named by patterns, and an algorithm of the D-PSGD family is wrapped: numbers
that neighbours do not give count as if these had given our own.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from torch import Tensor

from p2pfl.courses.course import Place, RoleState
from p2pfl.courses.gossip import consensus_distance
from p2pfl.courses.learner import Learner
from p2pfl.courses.parts import Parts
from p2pfl.courses.steps import Steps
from p2pfl.errors import ConfigError, require
from p2pfl.learn.model import Model
from p2pfl.learn.pieces import Pieces, matching
from p2pfl.learn.train import FitResult
from p2pfl.topology.graph import Topology

__all__ = ["Private", "keeping", "private_of"]


class Private:
    """One node's side of another algorithm, which is handed whole models, and gives neighbours only what is shared."""

    apart = False

    def __init__(self, inner: Steps, model: Model, private: Collection[str]) -> None:
        """`private`: names of the entries that stay. All that `inner` gives is as long as the model."""
        names = {entry.name for entry in model.layout.entries}
        self._inner = inner
        self._initial = model.initial
        self._private = Pieces(model.layout, private)
        self._shared = Pieces(model.layout, names.difference(private))
        self.parts = Parts(model, **dict.fromkeys(inner.parts.sizes, self._shared.numel))
        self._own = model.initial  # what `inner` has given of ours in this round

    async def fit(self, learner: Learner, params: Tensor, round: int) -> FitResult:
        return await self._inner.fit(learner, params, round)

    def give(self, params: Tensor, trained: Tensor) -> Tensor:
        self._own = self._inner.give(params, trained)
        given = self._inner.parts.split(self._own)
        return self.parts.join(**{name: self._shared.take(part) for name, part in given.items()})

    def to(self, shared: Tensor, seat: int) -> Tensor:
        return shared

    def row(self, graph: Topology, seat: int) -> dict[int, float]:
        return self._inner.row(graph, seat)

    def received(self, row: Mapping[int, float], heard: Collection[int]) -> dict[int, float]:
        return self._inner.received(row, heard)

    def own(self, row: Mapping[int, float]) -> float:
        return self._inner.own(row)

    def take(self, params: Tensor, trained: Tensor, mixed: Tensor, heard: Mapping[int, Tensor]) -> Tensor:
        whole = {seat: self._whole(vector) for seat, vector in heard.items()}
        return self._inner.take(params, trained, self._whole(mixed), whole)

    def check(self, vector: Tensor) -> None:
        return None

    def distance(self, shared: Tensor, heard: Mapping[int, Tensor]) -> float | None:
        return consensus_distance(self.shown(shared), map(self.shown, heard.values()))

    def shown(self, vector: Tensor) -> Tensor:
        """The shared part of the model in what a node gives."""
        return self.parts.split(vector)["params"]

    def public(self, params: Tensor) -> Tensor:
        return self._private.put(params, self._private.take(self._initial))

    def adopt(self, params: Tensor, theirs: Tensor) -> Tensor:
        return self._private.put(theirs, self._private.take(params))

    def restart(self) -> None:
        self._inner.restart()

    def state(self) -> RoleState:
        return self._inner.state()

    def resume(self, state: RoleState) -> None:
        self._inner.resume(state)

    def _whole(self, shared: Tensor) -> Tensor:
        """What a neighbour gave, with our own in the place of what it did not."""
        own, pieces = self._inner.parts.split(self._own), self.parts.split(shared)
        return self._inner.parts.join(**{name: self._shared.put(own[name], pieces[name]) for name in own})


def keeping(steps: Steps, place: Place) -> Steps:
    """`steps` of which what `course.private` names stays with its node; none, if that is empty.

    Raises ConfigError for patterns that fit nothing or everything, and where neighbours are not given plain models.
    """
    settings, model = place.settings, place.learner.model
    if not settings.private:
        return steps
    plain = type(steps.parts) is Parts and set(steps.parts.sizes.values()) == {model.layout.numel}
    problem = f"course.private is set, and {settings.name} gives more than models to neighbours"
    require(plain and not steps.apart, f"{problem}; leave it out, or take dpsgd")
    return Private(steps, model, private_of(model, settings.name, settings.private))


def private_of(model: Model, name: str, patterns: Sequence[str], by_default: Collection[str] = ()) -> frozenset[str]:
    """The names of what stays: what `course.private` names, or else `by_default`. `name`: that of the course.

    Raises ConfigError where that is nothing or everything, or a pattern fits nothing.
    """
    layout = model.layout
    for pattern in patterns:
        if not matching(layout, [pattern]):
            names = ", ".join(entry.name for entry in layout.entries)
            raise ConfigError(f"course.private has {pattern!r}, which fits no tensor of the model; it has {names}")
    found = matching(layout, patterns) if patterns else frozenset(by_default)
    hint = "name some of the model's tensors in course.private"
    require(bool(found), f"course.name is {name}, which keeps nothing of this model at its clients; {hint}")
    whole = len(found) == len(layout.entries)
    require(not whole, f"course.name is {name}, which shares nothing of this model; {hint}, but not all")
    return found
