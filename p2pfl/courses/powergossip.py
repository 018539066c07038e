"""PowerGossip: each edge sends how its two models differ as matrices of low rank, found by power iteration in passing.

T. Vogels, S. P. Karimireddy, M. Jaggi: "Practical Low-Rank Communication Compression in Decentralized Deep Learning",
NeurIPS 2020, https://arxiv.org/abs/2008.01425 (with one power iteration a round).

For each parameter that is a matrix both ends of an edge have the same basis v with r orthonormal columns. In a round i
sends X_i v, and j sends X_j v, of which both know the difference d = (X_j - X_i) v; then

    X_i <- X_i + w_ij d v^T,        and the next basis, from the other side, is d made orthonormal

so that from round to round v turns to where the two models differ most; in odd rounds all this is done to X^T. Since
d v^T is a projection of the difference nothing is overshot, and there is no gamma to be tuned. What is no matrix, or is
not larger than its factors, is sent as it is.

A basis is what both have learned from each other in the round before. Where that is not so at both ends, as after a
lost message, both begin anew from a basis that is drawn by a common seed: one number in each message tells which it is.

Deviation: a difference of zero gives no basis, and a new one is drawn, where the paper keeps the last one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from p2pfl.courses.course import Place, RoleState, as_tensor
from p2pfl.courses.dpsgd import MixingSettings, mixing, symmetric
from p2pfl.courses.learner import Learner, seed_of
from p2pfl.courses.parts import Parts
from p2pfl.courses.steps import Adapt
from p2pfl.errors import RemoteProtocolError, require
from p2pfl.learn.model import Model
from p2pfl.learn.params import is_finite
from p2pfl.learn.sparsify import Matrix, matrices, outside
from p2pfl.learn.train import FitResult
from p2pfl.topology.graph import Topology
from p2pfl.topology.weights import topology_weights
from p2pfl.wire.tensor import Tensors

__all__ = ["POWERGOSSIP", "Iterated", "PowerGossipSettings"]

_BASIS = "basis-"  # and a seat


@dataclass(frozen=True, slots=True)
class PowerGossipSettings(MixingSettings):
    """The table [course] of a course file."""

    name: str = "powergossip"
    rank: int = 1
    """Of the difference between two models, for each matrix, that is sent in a round."""

    def __post_init__(self) -> None:
        MixingSettings.__post_init__(self)
        require(self.rank >= 1, f"course.rank is {self.rank}; it must be at least 1")


class _Sides(Parts):
    """What is sent in even rounds, and in odd ones: products of one side of the matrices, what is in none, and whether
    the basis was learned."""

    def __init__(self, model: Model, matrices: tuple[Matrix, ...], rank: int) -> None:
        numel = model.layout.numel
        self.others = outside(matrices, numel)
        rest = int(self.others.sum())
        sent = [rest + rank * sum(matrix.sides[side] for matrix in matrices) for side in (0, 1)]
        self.each = tuple(Parts(model, params=length, learned=1) for length in sent)
        super().__init__(model)
        self.schema, self.schemas = self.each[0].schema, (self.each[0].schema, self.each[1].schema)

    def tensors(self, vector: Tensor) -> Tensors:
        return next(parts for parts in self.each if parts.numel == len(vector)).tensors(vector)

    def vector(self, tensors: Tensors, *, finite: bool = True) -> Tensor:
        fitting = next((parts for parts in self.each if parts.schema == tensors.schema), self.each[0])
        return fitting.vector(tensors, finite=finite)


class Iterated(Adapt):
    """One node's side of PowerGossip."""

    apart = True

    def __init__(self, learner: Learner, rank: int) -> None:
        self._matrices = matrices(learner.model.layout, rank)
        self._sent = _Sides(learner.model, self._matrices, rank)
        super().__init__(self._sent)
        self._seed, self._seat, self._rank = learner.seed, learner.seat, rank
        self._round = 0
        self._weights: Mapping[int, float] = {}
        self._trained = learner.model.initial  # in this round
        self._learned: dict[int, Tensor] = {}  # a basis by seat, for the round that comes
        self._apart: float | None = None

    async def fit(self, learner: Learner, params: Tensor, round: int) -> FitResult:
        self._round = round
        return await learner.fit(params, round)

    def give(self, params: Tensor, trained: Tensor) -> Tensor:
        """Nothing is for all: a zero of the length of what each is given."""
        self._trained = trained
        return torch.zeros(self._sent.each[self._round % 2].numel)

    def to(self, shared: Tensor, seat: int) -> Tensor:
        """X v for each matrix, the rest, and whether v was learned."""
        bases = self._bases(seat)
        products = [self._side(m.of(self._trained)) @ v for m, v in zip(self._matrices, bases, strict=True)]
        flag = torch.tensor([float(seat in self._learned)])
        return torch.cat([*(product.reshape(-1) for product in products), self._trained[self._sent.others], flag])

    def row(self, graph: Topology, seat: int) -> dict[int, float]:
        """Nothing of what comes is mixed as it is; `take` has the weights."""
        self._weights = topology_weights(graph, seat)
        return {}

    def take(self, params: Tensor, trained: Tensor, mixed: Tensor, heard: Mapping[int, Tensor]) -> Tensor:
        taken, learned, squares = trained.clone(), {}, []
        for seat, theirs in sorted(heard.items()):
            ours = self.to(mixed, seat)
            if theirs.shape != ours.shape or theirs[-1] != ours[-1] or not is_finite(theirs):
                continue
            low, high = (theirs, ours) if seat < self._seat else (ours, theirs)
            difference = (high - low)[:-1]  # the same bits at both ends
            if difference[: self._products].any():
                learned[seat] = self._orthonormal(difference)
            sign = 1.0 if seat > self._seat else -1.0
            self._add(taken, difference, seat, sign * self._weights[seat])
            squares.append(float(difference.square().sum()))
        self._learned = learned
        self._apart = (sum(squares) / len(squares)) ** 0.5 if squares else None
        return taken

    def check(self, vector: Tensor) -> None:
        if vector[-1] not in (0, 1):
            raise RemoteProtocolError(f"a basis came that was learned {float(vector[-1]):g} times, not once or never")

    def distance(self, shared: Tensor, heard: Mapping[int, Tensor]) -> float | None:
        """As far as it was sent: what the bases do not reach is not seen."""
        return self._apart

    def restart(self) -> None:
        self._learned = {}

    def state(self) -> RoleState:
        return {f"{_BASIS}{seat}": basis for seat, basis in self._learned.items()}

    def resume(self, state: RoleState) -> None:
        seats = {name: int(name.removeprefix(_BASIS)) for name in state if name.startswith(_BASIS)}
        self._learned = {seat: as_tensor(state[name]) for name, seat in seats.items()}
        self._round = int(state["round"])

    @property
    def _products(self) -> int:
        return self._rank * sum(matrix.sides[self._round % 2] for matrix in self._matrices)

    def _side(self, matrix: Tensor) -> Tensor:
        return matrix if self._round % 2 == 0 else matrix.T

    def _bases(self, seat: int) -> Iterator[Tensor]:
        """For the edge to this seat, in this round, of shape (side, rank) for each matrix."""
        lengths = [self._rank * matrix.sides[1 - self._round % 2] for matrix in self._matrices]
        flat = self._learned.get(seat)
        if flat is not None:
            yield from (each.view(-1, self._rank) for each in torch.split(flat, lengths))
            return
        low, high = sorted((self._seat, seat))
        rng = torch.Generator().manual_seed(seed_of(self._seed, "power", low, high, self._round))
        for length in lengths:
            yield torch.linalg.qr(torch.randn(length // self._rank, self._rank, generator=rng)).Q

    def _orthonormal(self, difference: Tensor) -> Tensor:
        """What spans the products in it, as one vector."""
        lengths = [self._rank * matrix.sides[self._round % 2] for matrix in self._matrices]
        products = torch.split(difference[: self._products], lengths)
        return torch.cat([torch.linalg.qr(each.view(-1, self._rank)).Q.reshape(-1) for each in products])

    def _add(self, vector: Tensor, difference: Tensor, seat: int, weight: float) -> None:
        """Go this part of the way along a difference."""
        vector[self._sent.others] += weight * difference[self._products :]
        at = 0
        for matrix, basis in zip(self._matrices, self._bases(seat), strict=True):
            end = at + self._rank * matrix.sides[self._round % 2]
            step = self._side(difference[at:end].view(-1, self._rank) @ (weight * basis).T)
            matrix.put(vector, matrix.of(vector) + step)
            at = end


def _steps(place: Place) -> Iterated:
    require(
        place.topology.period == 1,
        f"topology: powergossip cannot run on {place.topology!r}, which changes; choose a family that does not",
    )
    return Iterated(place.learner, place.settings.rank)


POWERGOSSIP = mixing("powergossip", PowerGossipSettings, _steps, symmetric)
