"""Differential privacy with a coordinator: any rule whose update is a model, with clipped updates and noise in the sum.

H. B. McMahan, D. Ramage, K. Talwar, L. Zhang: "Learning Differentially Private Recurrent Language Models", ICLR 2018,
https://arxiv.org/abs/1710.06963, with the coordinator's noise (`cdp`), or each client's own (`ldp`), or shares of it
from the clients, in a sum of whose parts nobody sees one (`ddp`; see privacy/distributed.py):

    client    update = clip(trained - received)          ldp: + N(0, (z clip)²)
    server    mean   = (sum of updates + N(0, (z clip)²)) / expected cohort       ldp: the mean of the updates
                                                         ddp: the sum has its noise already

What else an update would tell of a client's data, its loss and number of examples, is not sent. Every client charges
the ledger of its own data for each update that it gives, and the coordinator its own for each model that it makes.

Deviations: cohorts are drawn as in fedavg.py, and nothing is claimed for that; updates are not weighed; clipped updates
are added up in float32, and what rounding may add to what one of them changes, a ten millionth, is not accounted for.
With `mechanism = "tree"`, the noise is that of privacy/tree.py; a coordinator that was restarted begins a new tree,
since draws of noise are kept nowhere.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from p2pfl.courses.course import Place, RoleState
from p2pfl.courses.learner import Learner
from p2pfl.courses.parts import Parts
from p2pfl.courses.rules import Central, Local, Rule, Trained
from p2pfl.errors import RemoteProtocolError, require
from p2pfl.learn.data import Shard
from p2pfl.learn.evaluate import Evaluation
from p2pfl.learn.model import Model
from p2pfl.privacy.account import Account
from p2pfl.privacy.clipping import clipped, is_within, next_bound, update_multiplier
from p2pfl.privacy.noise import Source, gaussian, source_of
from p2pfl.privacy.tree import Tree

__all__ = ["COORDINATED", "check_model", "noised"]

COORDINATED = ("cdp", "ldp", "ddp")
"""The modes of a course with a coordinator."""

_MODEL = "params"
_BOUND = "clip"
_COUNT_SHARE = 20  # the noise in the count of updates within the bound is a 20th of the cohort, as in the paper


def noised(rule: Rule, place: Place) -> Rule:
    """The same rule in the privacy mode of the course; itself if that is plain. ConfigError where it cannot be."""
    if place.privacy.plain:
        return rule
    _check(rule, place)
    shape = _Shape(rule, place)
    return replace(
        rule,
        down=shape.down,
        up=shape.up,
        central=lambda: _Noising(rule.central(), shape),
        local=lambda: _Clipping(rule.local(), shape),
        relative=True,
    )


def check_model(model: Model, mode: str) -> None:
    """Raises ConfigError for a model that cannot have noise."""
    layout = model.layout
    require(
        layout.trainable == len(layout.entries),
        f"privacy.mode is {mode!r}, and the model has running statistics, which noise would break and which may not go "
        "without; take one with group or layer normalisation",
    )


def _check(rule: Rule, place: Place) -> None:
    """Whatever would let more out than is accounted for."""
    spec, settings = place.privacy, place.settings
    mode = f"privacy.mode is {spec.mode!r}"
    check_model(place.learner.model, spec.mode)
    plain = set(rule.up.sizes) == {_MODEL} and (rule.relative or rule.up.sizes[_MODEL] == rule.down.sizes[_MODEL])
    require(plain, f"{mode}, and {settings.name} sends more than a model, which cannot be clipped as one; take fedavg")
    require(settings.weights == "equal", f"{mode}: updates must weigh the same; set course.weights to 'equal'")
    sampler = settings.sampler == "uniform"
    require(sampler, f"{mode}: other samplers look at what clients tell; set course.sampler to 'uniform'")
    whole = spec.mode != "ddp" or rule.up.numel == place.learner.model.layout.numel
    require(whole, f"{mode}, and {settings.name} sends a part of the model, for which no noise is found; take 'ldp'")
    exact = settings.evaluate in ("server", "none")
    require(exact, f"{mode}: what clients evaluate would go without noise; set course.evaluate to 'server' or 'none'")
    require(settings.coordinator == "fixed", f"{mode} goes with course.coordinator = 'fixed' only")
    require(
        place.compress.plain or spec.mode == "ldp",
        f"{mode}: compression would undo the clipping; leave out [compress], or set the mode to 'ldp'",
    )


class _Shape:
    """What both halves know: what is sent, the bound of a fixed clip, how much noise, and who pays."""

    def __init__(self, rule: Rule, place: Place) -> None:
        assert place.account is not None, "who has a privacy mode has an account"
        model, spec = place.learner.model, place.privacy
        self.spec = spec
        self.account: Account = place.account
        self.adaptive = spec.quantile > 0
        self.down = Parts(model, **rule.down.sizes, **{_BOUND: 1}) if self.adaptive else rule.down
        self.up = Parts(model, **rule.up.sizes, within=1) if self.adaptive else rule.up
        self.numel = rule.up.sizes[_MODEL]
        self.relative = rule.relative
        clients = place.topology.union.n - 1
        self.clients = clients
        self.expected = place.settings.rules.expected(clients)
        self.source: Source = source_of(spec.deterministic_noise, place.learner.seed, "noise", place.learner.seat)
        self.multiplier = place.account.plan.multiplier
        self.count_sigma = self.expected / _COUNT_SHARE
        if self.adaptive:
            require(
                self.multiplier < 2 * self.count_sigma,
                f"privacy.quantile needs a larger cohort: with {self.expected} clients, the noise multiplier must be "
                f"less than {2 * self.count_sigma:g}, and is {self.multiplier:.4g}; set privacy.quantile to 0",
            )
            self.multiplier = update_multiplier(self.multiplier, self.count_sigma)

    def reference(self, received: Tensor) -> Tensor:
        """What an update is the difference to."""
        return torch.zeros(self.numel) if self.relative else received[: self.numel]


class _Clipping:
    """A client's half."""

    stateful = True  # an update is made, and paid for, once, however often it is asked for

    def __init__(self, inner: Local, shape: _Shape) -> None:
        self._inner = inner
        self._shape = shape

    async def train(self, learner: Learner, received: Tensor, round: int) -> Trained:
        shape = self._shape
        received, bound = self._opened(received)
        trained = await self._inner.train(learner, received, round)
        difference = trained.vector - shape.reference(received)
        update = clipped(difference, bound)
        shape.account.charge(round)
        if shape.spec.mode == "ldp":
            update += gaussian(shape.source, shape.numel, shape.multiplier * bound)
        within = [torch.tensor([0.5 if is_within(difference, bound) else -0.5])] if shape.adaptive else []
        return Trained(torch.cat([update.float(), *within]), num_examples=1, loss=math.nan)

    def _opened(self, received: Tensor) -> tuple[Tensor, float]:
        """What the rule's own half is sent, and the bound of the round."""
        if not self._shape.adaptive:
            return received, self._shape.spec.clip
        bound = float(received[-1])
        if not bound > 0:
            raise RemoteProtocolError(f"a bound of {bound} came for the norm of an update")
        return received[:-1], bound

    async def personal(self, learner: Learner, served: Tensor) -> Tensor:
        return await self._inner.personal(learner, served)

    async def evaluate(self, learner: Learner, served: Tensor, shard: Shard) -> Evaluation:
        return await self._inner.evaluate(learner, served, shard)

    def state(self) -> RoleState:
        return self._inner.state()

    def resume(self, state: RoleState) -> None:
        self._inner.resume(state)


@dataclass(frozen=True, slots=True)
class _Sent:
    """What the clients of a round were sent."""

    reference: Tensor
    bound: float


class _Noising:
    """The server's half."""

    def __init__(self, inner: Central, shape: _Shape) -> None:
        self._inner = inner
        self._shape = shape
        self._bound = shape.spec.clip
        self._sent: _Sent | None = None
        self._tree = Tree(shape.numel, shape.multiplier * shape.spec.clip)

    def broadcast(self, params: Tensor, round: int) -> Tensor:
        shape, sent = self._shape, self._inner.broadcast(params, round)
        self._sent = _Sent(shape.reference(sent), self._bound)
        return torch.cat([sent, torch.tensor([self._bound])]) if shape.adaptive else sent

    def absorb(self, params: Tensor, mean: Tensor, share: float, round: int) -> Tensor:
        assert self._sent is not None, "the round began with a broadcast"
        shape = self._shape
        update = mean.double()
        if shape.spec.mode != "ldp":
            total = update * int(share * shape.clients + 0.5)
            if shape.spec.mode == "cdp":
                shape.account.charge(round)
                total = self._noisy(total)
            update = total / shape.expected
        if shape.adaptive:
            bound = next_bound(self._bound, float(update[-1]) + 0.5, shape.spec.quantile)
            self._bound = torch.tensor(bound).item()  # as clients get it, in float32
        update = self._sent.reference + update[: shape.numel]
        return self._inner.absorb(params, update.float(), share, round)

    def _noisy(self, total: Tensor) -> Tensor:
        """A sum of updates, and of what tells whether each was within the bound."""
        shape = self._shape
        assert self._sent is not None
        if shape.spec.mechanism == "tree":
            return total + self._tree.step(shape.source)
        total[: shape.numel] += gaussian(shape.source, shape.numel, shape.multiplier * self._sent.bound)
        if shape.adaptive:
            total[shape.numel :] += gaussian(shape.source, 1, shape.count_sigma)
        return total

    def serve(self, params: Tensor) -> Tensor:
        return self._inner.serve(params)

    def state(self) -> RoleState:
        return {**self._inner.state(), _BOUND: self._bound}

    def resume(self, state: RoleState) -> None:
        self._bound = float(state[_BOUND])
        self._inner.resume({name: value for name, value in state.items() if name != _BOUND})
