"""Whose privacy a course spends: the plan of each seat, and the ledgers that its rounds are charged to."""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from p2pfl.app.config import Config
from p2pfl.courses.secagg import distributed
from p2pfl.errors import require
from p2pfl.learn.data import Shard
from p2pfl.privacy.account import Account
from p2pfl.privacy.distributed import Distributed
from p2pfl.privacy.ledger import PrivacyLedger
from p2pfl.privacy.plan import Plan, plan_of, shared_plan
from p2pfl.privacy.report import PrivacyReport, report_of
from p2pfl.privacy.views import worst_mu
from p2pfl.topology.schedule import Schedule

__all__ = ["Budgets", "budgets_of", "fingerprint"]


@dataclass(frozen=True, slots=True, eq=False)
class Budgets:
    """Accounts by seat, each opened when its seat is filled, and there for as long as the process.

    `folder`: where ledgers are kept; None: in memory, as in a simulation. `most`: epsilon that this host allows.
    """

    plans: dict[int, Plan]
    folder: Path | None = None
    most: float = 0.0
    accounts: dict[int, Account] = field(default_factory=dict)

    def kept(self, folder: Path, most: float) -> Budgets:
        """The same with ledgers that outlive the process."""
        return replace(self, folder=folder, most=most, accounts={})

    def account(self, seat: int, shard: Shard | None, run: str) -> Account:
        """Of who sits there with these examples; of a coordinator without any. Raises JournalError."""
        if seat not in self.accounts:
            name = f"run-{run}" if shard is None else fingerprint(shard)
            account = Account(PrivacyLedger(name), self.plans[seat], run, self.most, owner=shard is not None)
            if self.folder is not None and account.releases:
                account = replace(account, ledger=PrivacyLedger(name, self.folder / f"{name}.ledger"))
            self.accounts[seat] = account
        return self.accounts[seat]

    def close(self) -> None:
        """Let go of the ledgers."""
        for account in self.accounts.values():
            account.ledger.close()

    def report(self) -> PrivacyReport | None:
        """What was spent so far by who has spent most; None on the host of a coordinator that has nothing to spend."""
        spending = [account for account in self.accounts.values() if account.releases]
        return report_of(spending) if spending else None


def budgets_of(config: Config[Any], topology: Schedule, holders: Collection[int], numel: int = 0) -> Budgets | None:
    """Of a course whose seats `holders` hold data; None where it has no privacy to spend. `numel`: of the model.

    Raises ConfigError where no noise is enough, or the budget is too small.
    """
    spec = config.privacy
    if spec.plain:
        return None
    rounds = config.course.rounds
    if spec.mode == "ddp":

        def noise(multiplier: float) -> Distributed:
            return distributed(config.course, spec, len(holders), numel, multiplier)

        return Budgets(dict.fromkeys(range(topology.n), shared_plan(spec, len(holders), rounds, noise)))
    if spec.mode == "decor":
        graphs = [topology.at(round) for round in range(rounds)]
        both_ways = all(graph.is_symmetric for graph in graphs)
        require(both_ways, "privacy.mode is 'decor', and links must go both ways; take 'ldp', or another topology")
        worst = {graph: worst_mu(graph, 1.0, spec.correlated, spec.colluders) for graph in set(graphs)}
        units = [tuple((spec.sensitivity * worst[graph][seat]) ** 2 for graph in graphs) for seat in holders]
    else:
        units = [(spec.sensitivity**2,) * rounds] * len(holders)
    plans = dict(zip(holders, plan_of(spec, len(holders), units), strict=True))
    leading = {seat: next(iter(plans.values())) for seat in range(topology.n) if seat not in plans}
    return Budgets(plans | leading)


def fingerprint(shard: Shard) -> str:
    """What names these examples, and no others, in 32 hex digits."""
    whole = hashlib.blake2b(digest_size=16, person=b"p2pfl-data")
    for tensor in shard.dataset.batch(shard.indices):
        whole.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
        whole.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return whole.hexdigest()
