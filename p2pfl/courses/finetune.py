"""Fine-tuning: a client trains its model a little more on its own examples before the model serves it.

With federated averaging that is the baseline of G. Cheng, K. Chadha, J. Duchi: "Fine-tuning is Fine in Federated
Learning", 2021, https://arxiv.org/abs/2108.07313. The server never sees what was tuned.

Each evaluation draws the same batches.
"""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from p2pfl.courses.course import RoleState
from p2pfl.courses.learner import Learner
from p2pfl.courses.rules import Local, Rule, Trained
from p2pfl.learn.data import Shard
from p2pfl.learn.evaluate import Evaluation
from p2pfl.learn.specs import TrainSpec

__all__ = ["Tuned", "tuned"]


class Tuned:
    """A client's half around another, whose personal model is trained further before it serves."""

    def __init__(self, inner: Local, train: TrainSpec) -> None:
        """`train`: how it is trained further."""
        self.stateful = inner.stateful
        self._inner = inner
        self._train = train

    async def train(self, learner: Learner, received: Tensor, round: int) -> Trained:
        return await self._inner.train(learner, received, round)

    async def personal(self, learner: Learner, served: Tensor) -> Tensor:
        start = await self._inner.personal(learner, served)
        return (await learner.fit(start, 0, train=self._train, use="finetune")).params

    async def evaluate(self, learner: Learner, served: Tensor, shard: Shard) -> Evaluation:
        return await learner.evaluate(await self.personal(learner, served), shard)

    def state(self) -> RoleState:
        return self._inner.state()

    def resume(self, state: RoleState) -> None:
        self._inner.resume(state)


def tuned(rule: Rule, train: TrainSpec | None) -> Rule:
    """The same rule with clients that train in this way before their model serves them; itself, if in none."""
    return rule if train is None else replace(rule, local=lambda: Tuned(rule.local(), train))
