"""Courses in which a part of the model never leaves its client: the server averages the rest.

- FedBN: X. Li, M. Jiang, X. Zhang, M. Kamp, Q. Dou: "FedBN: Federated Learning on Non-IID Features via Local Batch
  Normalization", ICLR 2021, https://arxiv.org/abs/2102.07623. Normalisation layers stay, with their statistics.
- FedPer: M. G. Arivazhagan, V. Aggarwal, A. K. Singh, S. Choudhary: "Federated Learning with Personalization Layers",
  2019, https://arxiv.org/abs/1912.00818. The last layers stay; all are trained together.
- LG-FedAvg: P. P. Liang, T. Liu, Z. Liu, N. B. Allen, R. P. Auerbach, D. Brent, R. Salakhutdinov, L.-P. Morency:
  "Think Locally, Act Globally: Federated Learning with Local and Global Representations", NeurIPS 2019 workshop on
  federated learning, https://arxiv.org/abs/2001.01523. The first layers stay.

Deviations: FedBN keeps every kind of normalisation layer of torch, not only those over batches. FedPer and LG-FedAvg
count layers in the order in which the module declares them. LG-FedAvg starts from the initial model, not from one that
federated averaging has trained.

What stays begins as in the initial model. The server's model keeps these initial values, and is of little use by
itself; so clients evaluate.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

from torch import Tensor, nn

from p2pfl.courses.course import RoleState, as_tensor
from p2pfl.courses.fedavg import FedAvgSettings, starred
from p2pfl.courses.learner import Learner
from p2pfl.courses.parts import Parts
from p2pfl.courses.private import private_of
from p2pfl.courses.rules import Averaging, Local, Rule, Trained, Training
from p2pfl.errors import require
from p2pfl.learn.data import Shard
from p2pfl.learn.evaluate import Evaluation
from p2pfl.learn.model import Model
from p2pfl.learn.pieces import Pieces, layers_of

__all__ = [
    "FEDBN", "FEDPER", "LGFEDAVG", "FedBnSettings", "FedPerSettings", "LgFedAvgSettings", "Partial", "PartialSettings",
    "Sharing", "shared",
]  # fmt: skip

_PREFIX = "inner."  # before the names of what the half within remembers
_NORMALISATION = (
    nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm, nn.GroupNorm, nn.LayerNorm,
    nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class PartialSettings(FedAvgSettings):
    """What courses have in common in which a part of the model stays."""

    evaluate: str = "clients"
    private: tuple[str, ...] = ()
    """Tensors of the model that never leave a client, as patterns of their names, such as `["head.*"]`; empty: those
    that the algorithm names."""


@dataclass(frozen=True, slots=True)
class FedBnSettings(PartialSettings):
    """The table [course] of a course file."""

    name: str = "fedbn"


@dataclass(frozen=True, slots=True)
class FedPerSettings(PartialSettings):
    """The table [course] of a course file."""

    name: str = "fedper"
    layers: int = 1
    """So many layers stay, from the last."""

    def __post_init__(self) -> None:
        FedAvgSettings.__post_init__(self)
        require(self.layers >= 1, f"course.layers is {self.layers}; it must be at least 1")


@dataclass(frozen=True, slots=True)
class LgFedAvgSettings(FedPerSettings):
    """The table [course] of a course file."""

    name: str = "lgfedavg"
    layers: int = 1
    """So many layers stay, from the first."""


class Sharing(Averaging):
    """The server's half: the mean takes the place of what is shared."""

    def __init__(self, shared: Pieces) -> None:
        self._shared = shared

    def broadcast(self, params: Tensor, round: int) -> Tensor:
        return self._shared.take(params)

    def absorb(self, params: Tensor, mean: Tensor, share: float, round: int) -> Tensor:
        return self._shared.put(params, mean)


class Partial:
    """A client's half around another, which is handed whole models: what is not shared is kept between rounds."""

    stateful = True

    def __init__(self, shared: Pieces, private: Pieces, inner: Local) -> None:
        self._shared = shared
        self._private = private
        self._inner = inner
        self._kept: Tensor | None = None  # the initial values, before the first round

    async def train(self, learner: Learner, received: Tensor, round: int) -> Trained:
        start = self._whole(learner.model.initial)
        trained = await self._inner.train(learner, self._shared.put(start, received), round)
        self._kept = self._private.take(trained.vector)
        return trained._replace(vector=self._shared.take(trained.vector))

    async def personal(self, learner: Learner, served: Tensor) -> Tensor:
        return await self._inner.personal(learner, self._whole(served))

    async def evaluate(self, learner: Learner, served: Tensor, shard: Shard) -> Evaluation:
        return await self._inner.evaluate(learner, self._whole(served), shard)

    def state(self) -> RoleState:
        kept: RoleState = {} if self._kept is None else {"kept": self._kept}
        return {**kept, **{_PREFIX + name: value for name, value in self._inner.state().items()}}

    def resume(self, state: RoleState) -> None:
        self._kept = as_tensor(state["kept"]) if "kept" in state else None
        self._inner.resume({name.removeprefix(_PREFIX): state[name] for name in state if name.startswith(_PREFIX)})

    def _whole(self, params: Tensor) -> Tensor:
        """`params` with what this client has kept."""
        return params if self._kept is None else self._private.put(params, self._kept)


def shared(model: Model, private: Collection[str], inner: Callable[[], Local] = Training) -> Rule:
    """Federated averaging of all but the entries of these names; `inner` trains at the clients, on whole models."""
    names = {entry.name for entry in model.layout.entries}
    stay, go = Pieces(model.layout, private), Pieces(model.layout, names.difference(private))
    parts = Parts(model, params=go.numel)
    return Rule(parts, parts, lambda: Sharing(go), lambda: Partial(go, stay, inner()))


def _normalisation(model: Model) -> frozenset[str]:
    layers = [name for name, module in model.module.named_modules() if isinstance(module, _NORMALISATION)]
    return frozenset(entry.name for entry in model.layout.entries if entry.name.rpartition(".")[0] in layers)


def last_layers(model: Model, count: int) -> frozenset[str]:
    """The names of the last layers' entries."""
    return frozenset().union(*list(layers_of(model.layout).values())[-count:])


def first_layers(model: Model, count: int) -> frozenset[str]:
    """The names of the first layers' entries."""
    return frozenset().union(*list(layers_of(model.layout).values())[:count])


def _fedbn(learner: Learner, settings: FedBnSettings) -> Rule:
    return shared(
        learner.model, private_of(learner.model, settings.name, settings.private, _normalisation(learner.model))
    )


def _fedper(learner: Learner, settings: FedPerSettings) -> Rule:
    return shared(
        learner.model,
        private_of(learner.model, settings.name, settings.private, last_layers(learner.model, settings.layers)),
    )


def _lgfedavg(learner: Learner, settings: LgFedAvgSettings) -> Rule:
    return shared(
        learner.model,
        private_of(learner.model, settings.name, settings.private, first_layers(learner.model, settings.layers)),
    )


FEDBN = starred("fedbn", FedBnSettings, _fedbn, remembers=True)
FEDPER = starred("fedper", FedPerSettings, _fedper, remembers=True)
LGFEDAVG = starred("lgfedavg", LgFedAvgSettings, _lgfedavg, remembers=True)
