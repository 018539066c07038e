"""What a run has cost, with all that an epsilon means nothing without."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass

from p2pfl.privacy.account import Account

__all__ = ["PrivacyReport", "report_of"]

_VIEWS = {
    "cdp": "whoever receives the models, but not the coordinator, which sees every update",
    "ldp": "everybody",
    "ddp": "a curious aggregator, and all others, as long as no more are lost or collude than course.secagg says",
    "decor": "whoever sees all messages, and knows all that any {colluders} of the other nodes know",
}
_CHANGES = {"zero-out": "a node's updates, or zeros", "replace-one": "a node's updates, or any others"}


@dataclass(frozen=True, slots=True)
class PrivacyReport:
    """Of the node that has spent most."""

    mode: str
    unit: str
    adjacency: str
    delta: float
    sampling: str
    view: str
    """Against whom it holds."""
    accountant: str
    clip: float
    noise_multiplier: float
    rounds: int
    """How many were charged, over all runs with the same data."""
    epsilon: float
    valid: bool
    """False where the noise could be drawn again by others."""

    def __str__(self) -> str:
        warning = "" if self.valid else "NOT VALID, the noise follows from the seed: "
        return (
            f"privacy {self.mode}: {warning}epsilon {self.epsilon:.4g} at delta {self.delta:.3g} for {self.unit} "
            f"({self.adjacency}), against {self.view}; {self.rounds} rounds charged, {self.sampling}, "
            f"{self.accountant}, clip {self.clip:g}, noise multiplier {self.noise_multiplier:.4g}"
        )


def report_of(accounts: Collection[Account]) -> PrivacyReport:
    """Of these nodes, at least one, all of one course."""
    epsilons = {index: each.ledger.spent.epsilon(each.plan.delta) for index, each in enumerate(accounts)}
    worst = max(epsilons, key=lambda index: epsilons[index])
    account = list(accounts)[worst]
    spec, plan = account.plan.spec, account.plan
    return PrivacyReport(
        mode=spec.mode,
        unit="a node with all its data",
        adjacency=f"{spec.adjacency}: {_CHANGES[spec.adjacency]}",
        delta=plan.delta,
        sampling="no amplification by sampling",
        view=_VIEWS[spec.mode].format(colluders=spec.colluders),
        accountant=account.ledger.spent.accountant,
        clip=spec.clip,
        noise_multiplier=plan.multiplier,
        rounds=len(account.ledger.charges),
        epsilon=epsilons[worst],
        valid=not spec.deterministic_noise and math.isfinite(epsilons[worst]),
    )
