"""DeepSqueeze: D-PSGD whose nodes send models compressed, each with what it has withheld of those before.

H. Tang, X. Lian, S. Qiu, L. Yuan, C. Zhang, T. Zhang, J. Liu: "DeepSqueeze: Decentralization Meets Error-Compensated
Compression", 2019, https://arxiv.org/abs/1907.07346.

With y what was trained from x, and delta what is withheld, zero at first:

    v <- y + delta;   c <- Q(v), which is sent;   delta <- v - c;   x <- y + gamma * sum over j of w_ij (c_j - c_i)

Nothing is known of others from one round to the next: graphs may change, and messages may be lost. How to compress is
[compress.up]. Whole models are compressed, not what is new in them: some bits for each number go well, few numbers do
not; see choco.py for these.

Deviation: models are sent as their differences to the initial one, which all have. It cancels in c_j - c_i, and less is
withheld of what is smaller.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from p2pfl.courses.coded import Squeezed
from p2pfl.courses.course import Place, RoleState
from p2pfl.courses.dpsgd import MixingSettings, mixing
from p2pfl.courses.learner import Learner, seed_of
from p2pfl.courses.steps import Adapt
from p2pfl.errors import require
from p2pfl.learn.compression import UpSpec
from p2pfl.learn.entropy import Tally, codec
from p2pfl.learn.train import FitResult

__all__ = ["DEEPSQUEEZE", "DeepSqueezeSettings", "Squeezing"]

_WITHHELD = "withheld."  # before the names of what the pipeline remembers


@dataclass(frozen=True, slots=True)
class DeepSqueezeSettings(MixingSettings):
    """The table [course] of a course file."""

    name: str = "deepsqueeze"
    gamma: float = 0.5
    """How far a node goes to the mean of its neighbourhood: the less, the more is withheld."""

    def __post_init__(self) -> None:
        MixingSettings.__post_init__(self)
        require(0 < self.gamma <= 1, f"course.gamma is {self.gamma}; it must lie in (0, 1]")


class Squeezing(Adapt):
    """One node's side of DeepSqueeze."""

    def __init__(self, learner: Learner, spec: UpSpec, gamma: float, tally: Tally | None = None) -> None:
        self._squeezed = Squeezed(learner.parts, learner.model, spec.transform, codec(spec.entropy), tally)
        super().__init__(self._squeezed)
        self._first = learner.model.initial
        self._gamma = gamma
        self._seed = learner.seed, learner.seat
        self._round = 0
        self._withheld: RoleState = {}
        self._given: Tensor | None = None  # c, in a round

    async def fit(self, learner: Learner, params: Tensor, round: int) -> FitResult:
        self._round = round
        return await learner.fit(params, round)

    def give(self, params: Tensor, trained: Tensor) -> Tensor:
        seed = seed_of(*self._seed, "squeeze", self._round)
        self._given, self._withheld = self._squeezed.squeeze(trained - self._first, self._withheld, seed)
        return self._given

    def take(self, params: Tensor, trained: Tensor, mixed: Tensor, heard: Mapping[int, Tensor]) -> Tensor:
        assert self._given is not None, "a round gives before it takes"
        return mixed.sub_(self._given).mul_(self._gamma).add_(trained)

    def restart(self) -> None:
        self._withheld = {}

    def state(self) -> RoleState:
        return {_WITHHELD + name: value for name, value in self._withheld.items()}

    def resume(self, state: RoleState) -> None:
        self._withheld = {name.removeprefix(_WITHHELD): state[name] for name in state if name.startswith(_WITHHELD)}


def _steps(place: Place) -> Squeezing:
    require(place.compress.down.plain, "compress.down: nothing goes down in deepsqueeze; set compress.up alone")
    require(
        place.compress.up.feedback, "compress.up.feedback is false, and is what deepsqueeze is about; set it to true"
    )
    require(
        place.compress.up.memory == "error",
        "compress.up.memory is 'ef21', and deepsqueeze remembers the error; set it to error, or take choco",
    )
    return Squeezing(place.learner, place.compress.up, place.settings.gamma, place.tally)


DEEPSQUEEZE = mixing("deepsqueeze", DeepSqueezeSettings, _steps, compresses=True)
