"""RelaySGD: on a tree, models are relayed instead of mixed, so that every node's reaches all with equal weight.

T. Vogels, L. He, A. Koloskova, S. P. Karimireddy, T. Lin, S. U. Stich, M. Jaggi: "RelaySum for Decentralized Deep
Learning on Heterogeneous Data", NeurIPS 2021, https://arxiv.org/abs/2110.04175 (RelaySGD/Model).

In each round a node sends to each neighbour j the sum of its own trained model and of what its other neighbours sent in
the round before, and how many models that sum has; what all have sent in this round, with its own, is divided by their
number. So the model of a node d hops away counts as much as one's own, d - 1 rounds late, whatever the examples are.

Deviation: the paper fills up to n models with the first one; here, as in its code for links that lose messages, the sum
is divided by the models that it has. What does not arrive in a round is left out on the way and in the average.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from p2pfl.courses.course import Place, RoleState, as_tensor
from p2pfl.courses.dpsgd import MixingSettings, mixing
from p2pfl.courses.parts import Parts
from p2pfl.courses.steps import Adapt
from p2pfl.errors import RemoteProtocolError, require
from p2pfl.learn.params import is_finite
from p2pfl.topology.graph import Topology

__all__ = ["RELAYSGD", "Relayed", "RelaysgdSettings"]

_FROM = "from-"  # and a seat


@dataclass(frozen=True, slots=True)
class RelaysgdSettings(MixingSettings):
    """The table [course] of a course file."""

    name: str = "relaysgd"


class Relayed(Adapt):
    """One node's side of RelaySGD. `parts`: the sum of some models, and the part `count`, which is their number."""

    apart = True

    def __init__(self, parts: Parts, n: int) -> None:
        """`n`: seats of the tree."""
        super().__init__(parts)
        self._most = n - 1
        self._heard: dict[int, Tensor] = {}  # in the last round, by seat

    def give(self, params: Tensor, trained: Tensor) -> Tensor:
        return self.parts.join(params=trained, count=torch.ones(1))

    def to(self, shared: Tensor, seat: int) -> Tensor:
        return sum((vector for other, vector in sorted(self._heard.items()) if other != seat), start=shared)

    def row(self, graph: Topology, seat: int) -> dict[int, float]:
        return dict.fromkeys(graph.neighbors(seat), 1.0)

    def own(self, row: Mapping[int, float]) -> float:
        return 1.0

    def take(self, params: Tensor, trained: Tensor, mixed: Tensor, heard: Mapping[int, Tensor]) -> Tensor:
        self._heard = {seat: vector for seat, vector in heard.items() if is_finite(vector)}
        return self.shown(mixed)

    def check(self, vector: Tensor) -> None:
        count = float(vector[-1])
        if not (count.is_integer() and 1 <= count <= self._most):
            raise RemoteProtocolError(f"a sum of {count:g} models came, where others have {self._most}")

    def shown(self, vector: Tensor) -> Tensor:
        parts = self.parts.split(vector)
        return parts["params"] / parts["count"]

    def restart(self) -> None:
        self._heard = {}

    def state(self) -> RoleState:
        return {f"{_FROM}{seat}": vector for seat, vector in self._heard.items()}

    def resume(self, state: RoleState) -> None:
        seats = {name: int(name.removeprefix(_FROM)) for name in state if name.startswith(_FROM)}
        self._heard = {seat: as_tensor(state[name]) for name, seat in seats.items()}


def _steps(place: Place) -> Relayed:
    require(
        place.topology.period == 1,
        f"topology: relaysgd cannot run on {place.topology!r}, which changes; choose one tree",
    )
    return Relayed(Parts(place.learner.model, count=1), place.topology.n)


def _needs(topology: Topology) -> str | None:
    return None if topology.is_tree else "the graph must be a tree, such as a chain, a star or a hierarchy"


RELAYSGD = mixing("relaysgd", RelaysgdSettings, _steps, _needs, "chain")
