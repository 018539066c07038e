"""CHOCO-SGD: nodes send compressed differences to what their neighbours know of them already.

A. Koloskova, S. U. Stich, M. Jaggi: "Decentralized Stochastic Optimization and Gossip Algorithms with Compressed
Communication", ICML 2019, https://arxiv.org/abs/1902.00340.

With y what was trained from x, xhat what others know of this node, and s the weighted mean of what it knows of all:

    q <- Q(y - xhat), which is sent;   xhat <- xhat + q;   s <- s + sum over j of w_ij q_j;   x <- y + gamma (s - xhat)

The largest gamma that converges falls with what Q withholds: for the largest tenth of the numbers on a ring of eight,
0.2 converges and 0.4 does not; for the largest three tenths in four bits each, which take fewer bytes than that tenth
in float32, 1 does. Where nodes learn different things gamma is what counts: at 0.2 they mix so little that accuracy
falls far behind D-PSGD whether or not anything is compressed, so spend bytes until a gamma near 1 converges. How to
compress is [compress.up]; its feedback stays out of use, since what is withheld remains in the next difference.

Deviations: s and xhat begin as the initial model, which all have, where the paper has zeros: so nothing is spent on
telling each other what all know. They begin anew every `restart_every` rounds, for links that lose what only one end
knows. The distance between nodes that is shown is that of what they send, which is zero when that of their models is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from p2pfl.courses.coded import Squeezed
from p2pfl.courses.course import Place, RoleState, as_tensor
from p2pfl.courses.dpsgd import MixingSettings, mixing, symmetric
from p2pfl.courses.learner import Learner, seed_of
from p2pfl.courses.steps import Adapt
from p2pfl.errors import require
from p2pfl.learn.compression import UpSpec
from p2pfl.learn.entropy import Tally, codec
from p2pfl.learn.train import FitResult

__all__ = ["CHOCO", "ChocoSettings", "Replicated"]

_CODEC = "codec."  # before the names of what the pipeline remembers


@dataclass(frozen=True, slots=True)
class ChocoSettings(MixingSettings):
    """The table [course] of a course file."""

    name: str = "choco"
    gamma: float = 0.2
    """How far a node goes to the mean of what is known of its neighbourhood: 1 is D-PSGD, if little is withheld."""
    restart_every: int = 0
    """Rounds after which all forget what they know of each other, for links that lose messages; 0: never."""

    def __post_init__(self) -> None:
        MixingSettings.__post_init__(self)
        require(0 < self.gamma <= 1, f"course.gamma is {self.gamma}; it must lie in (0, 1]")
        require(self.restart_every >= 0, f"course.restart_every is {self.restart_every}; it must not be negative")


class Replicated(Adapt):
    """One node's side of CHOCO-SGD."""

    def __init__(
        self, learner: Learner, spec: UpSpec, gamma: float, restart_every: int = 0, tally: Tally | None = None
    ) -> None:
        self._squeezed = Squeezed(learner.parts, learner.model, spec.contraction, codec(spec.entropy), tally)
        super().__init__(self._squeezed)
        self._gamma = gamma
        self._restart_every = restart_every
        self._seed = learner.seed, learner.seat
        self._round = 0
        self._first = learner.model.initial
        self._known = self._mean = self._first  # xhat, s
        self._codec: RoleState = {}

    async def fit(self, learner: Learner, params: Tensor, round: int) -> FitResult:
        self._round = round
        if self._restart_every and round % self._restart_every == 0:
            self.restart()
        return await learner.fit(params, round)

    def give(self, params: Tensor, trained: Tensor) -> Tensor:
        seed = seed_of(*self._seed, "choco", self._round)
        given, self._codec = self._squeezed.squeeze(trained - self._known, self._codec, seed)
        self._known = self._known + given
        return given

    def take(self, params: Tensor, trained: Tensor, mixed: Tensor, heard: Mapping[int, Tensor]) -> Tensor:
        self._mean = self._mean + mixed
        return trained + self._gamma * (self._mean - self._known)

    def restart(self) -> None:
        self._known = self._mean = self._first
        self._codec = {}

    def state(self) -> RoleState:
        codec = {_CODEC + name: value for name, value in self._codec.items()}
        return {"known": self._known, "mean": self._mean, **codec}

    def resume(self, state: RoleState) -> None:
        self._known, self._mean = as_tensor(state["known"]), as_tensor(state["mean"])
        self._codec = {name.removeprefix(_CODEC): state[name] for name in state if name.startswith(_CODEC)}


def _steps(place: Place) -> Replicated:
    settings, up = place.settings, place.compress.up
    require(
        place.topology.period == 1,
        f"topology: choco cannot run on {place.topology!r}, which changes; choose a family that does not",
    )
    require(place.compress.down.plain, "compress.down: nothing goes down in choco; set compress.up alone")
    return Replicated(place.learner, up, settings.gamma, settings.restart_every, place.tally)


CHOCO = mixing("choco", ChocoSettings, _steps, symmetric, compresses=True)
