"""D²: decentralized SGD that reaches the optimum of all although every node's examples are different.

H. Tang, X. Lian, M. Yan, C. Zhang, J. Liu: "D²: Decentralized Training over Decentralized Data", ICML 2018,
https://arxiv.org/abs/1803.07068; the same as the exact diffusion of K. Yuan, B. Ying, X. Zhao, A. H. Sayed: "Exact
Diffusion for Distributed Optimization and Learning", IEEE Transactions on Signal Processing 2019,
https://arxiv.org/abs/1702.05122.

x(t+1) = W (2 x(t) - x(t-1) - lr (g(t) - g(t-1))), as one vector c beside the model: each node gives y = trained + c,
takes x = W y, and keeps c = x - trained, which is how far its neighbours have moved it; c of all sum up to zero.

Deviations: what training made of x in several local steps stands for x - lr g. `lazy`, as in exact diffusion, mixes
with (I + W) / 2, whose eigenvalues are never negative. A message that only one end of a link misses, and a node that
goes on with the model of a neighbour, leave the sum of all c at another value than zero, and the mean of all then moves
by that in every round: `restart_every` sets all c to zero from time to time.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

from torch import Tensor

from p2pfl.courses.course import Place, RoleState, as_tensor
from p2pfl.courses.dpsgd import MixingSettings, mixing, symmetric
from p2pfl.courses.learner import Learner
from p2pfl.courses.parts import Parts
from p2pfl.courses.steps import Adapt
from p2pfl.errors import require
from p2pfl.learn.train import FitResult
from p2pfl.topology.graph import Topology
from p2pfl.topology.weights import topology_weights

__all__ = ["D2", "Corrected", "D2Settings"]

_LEAST = -1 / 3  # the smallest eigenvalue of W must be above it, or the nodes drift apart
_ROUNDING = 1e-9


@dataclass(frozen=True, slots=True)
class D2Settings(MixingSettings):
    """The table [course] of a course file."""

    name: str = "d2"
    lazy: bool = True
    """Whether a node keeps half of its own: this converges on every graph; without, agreement is sooner on some."""
    restart_every: int = 0
    """Rounds after which corrections begin anew, for links that lose what only one end knows; 0: never."""

    def __post_init__(self) -> None:
        MixingSettings.__post_init__(self)
        require(self.restart_every >= 0, f"course.restart_every is {self.restart_every}; it must not be negative")


class Corrected(Adapt):
    """One node's side of D²."""

    def __init__(self, parts: Parts, *, lazy: bool = True, restart_every: int = 0) -> None:
        super().__init__(parts)
        self._share = 0.5 if lazy else 1.0
        self._restart_every = restart_every
        self._correction: Tensor | None = None  # None: zero

    async def fit(self, learner: Learner, params: Tensor, round: int) -> FitResult:
        if self._restart_every and round % self._restart_every == 0:
            self.restart()
        return await learner.fit(params, round)

    def give(self, params: Tensor, trained: Tensor) -> Tensor:
        return trained if self._correction is None else trained + self._correction

    def row(self, graph: Topology, seat: int) -> dict[int, float]:
        return {other: self._share * weight for other, weight in topology_weights(graph, seat).items()}

    def take(self, params: Tensor, trained: Tensor, mixed: Tensor, heard: Mapping[int, Tensor]) -> Tensor:
        self._correction = mixed - trained
        return mixed

    def restart(self) -> None:
        self._correction = None

    def state(self) -> RoleState:
        return {} if self._correction is None else {"correction": self._correction}

    def resume(self, state: RoleState) -> None:
        self._correction = as_tensor(state["correction"]) if "correction" in state else None


def _steps(place: Place) -> Corrected:
    settings = place.settings
    require(
        place.topology.period == 1,
        f"topology: d2 cannot run on {place.topology!r}, which changes; choose a family that does not, or gradtrack",
    )
    if not settings.lazy:
        least = _least_eigenvalue(place.topology.union)
        require(
            least > _LEAST + _ROUNDING,
            f"course.lazy is false, and the mixing matrix of {place.topology!r} has the eigenvalue {least:.3f}, where "
            "all must be above -1/3; set it to true",
        )
    return Corrected(place.learner.parts, lazy=settings.lazy, restart_every=settings.restart_every)


@lru_cache(maxsize=4)  # all nodes of a process ask for the same, and it takes n³ steps
def _least_eigenvalue(graph: Topology) -> float:
    import numpy as np  # noqa: PLC0415 - only nodes that ask for it need matrices

    from p2pfl.topology.mixing import mixing_matrix  # noqa: PLC0415 - the same

    return float(np.linalg.eigvalsh(mixing_matrix(graph))[0])


D2 = mixing("d2", D2Settings, _steps, symmetric)
