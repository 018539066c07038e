"""DiLoCo: clients take many steps by an optimizer that never begins anew, the server descends by Nesterov's momentum.

A. Douillard, Q. Feng, A. A. Rusu, R. Chhaparia, Y. Donchev, A. Kuncoro, M. Ranzato, A. Szlam, J. Shen: "DiLoCo:
Distributed Low-Communication Training of Language Models", 2023, https://arxiv.org/abs/2311.08105, algorithm 1:

    client    from theta, H steps of AdamW, whose moments stay at the client, to theta_i
    server    delta <- theta - mean(theta_i);   v <- momentum v + delta;   theta <- theta - lr (delta + momentum v)

The inner optimizer is the one of the table [train]; the paper's is `optimizer = "AdamW"`, with `steps` for H.

Deviations: clients send models instead of differences, whose mean is the same. Moments that a client lost, as one that
comes back without a journal has, begin anew. Running statistics of a model, which no gradient moves, are averaged.
"""

from __future__ import annotations

from dataclasses import dataclass

from p2pfl.courses.fedavg import starred
from p2pfl.courses.fedopt import Descent, FedAvgMSettings, momentum_sgd
from p2pfl.courses.learner import Learner
from p2pfl.courses.rules import Carrying, Rule, Training
from p2pfl.learn.optimizers import is_mindful

__all__ = ["DILOCO", "DilocoSettings"]


@dataclass(frozen=True, slots=True)
class DilocoSettings(FedAvgMSettings):
    """The table [course] of a course file."""

    name: str = "diloco"
    weights: str = "equal"
    """`equal`, as in the paper: all updates weigh the same; `examples`: as many as their clients have."""
    server_lr: float = 0.7
    """The learning rate of the outer optimizer in the first round."""
    server_momentum: float = 0.9
    """How much of the last direction stays in the next."""
    server_nesterov: bool = True
    """Nesterov's momentum, as in the paper; false: the heavy ball's. With a server_lr of 1 and no momentum, what
    remains is federated averaging whose clients' optimizers go on."""
    carry: bool = True
    """Whether the clients' optimizers go on where they stood, instead of beginning anew in each round. Plain SGD, which
    has neither momentum nor moments, is the same either way."""


def _rule(learner: Learner, settings: DilocoSettings) -> Rule:
    outer = momentum_sgd(settings.server_momentum, nesterov=settings.server_nesterov)
    trainable = learner.model.layout.trainable_numel
    inner = Carrying if settings.carry and is_mindful(learner.train) else Training
    return Rule(learner.parts, learner.parts, lambda: Descent(trainable, outer, settings.rate), inner)


DILOCO = starred("diloco", DilocoSettings, _rule, remembers=True)
