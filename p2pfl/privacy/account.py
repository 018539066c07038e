"""One node's budget in one run: what a round costs is noted in the ledger of its data, or the round is refused."""

from __future__ import annotations

from dataclasses import dataclass

from p2pfl.errors import PrivacySpent
from p2pfl.privacy.ledger import PrivacyLedger
from p2pfl.privacy.plan import Plan

__all__ = ["Account"]


@dataclass(frozen=True, slots=True)
class Account:
    """`run` names the run, the same at all its nodes; `most`: epsilon that this node allows, whatever the course does.

    A coordinator releases what clients have taken part in: `owner` is false, and it goes on when clients no longer may.
    """

    ledger: PrivacyLedger
    plan: Plan
    run: str = ""
    most: float = 0.0
    owner: bool = True

    @property
    def releases(self) -> bool:
        """Whether it ever pays: a coordinator does only where the noise is its own."""
        return self.owner or self.plan.spec.mode == "cdp"

    def charge(self, round: int) -> None:
        """Pay for a round (from 0) before its noise is drawn. Raises PrivacySpent or JournalError: release nothing."""
        plan, before = self.plan, len(self.ledger.of(self.run))
        limited = plan.spec.participations > 0 or plan.spec.mechanism == "tree"
        if self.owner and limited and before >= plan.participations:
            raise PrivacySpent(
                f"this node has taken part in {before} rounds, and privacy.participations allows {plan.participations}"
            )
        limits = [limit for limit in (self.most, plan.spec.epsilon_max) if limit]
        self.ledger.charge(self.run, round, plan.cost(round, before), min(limits, default=0.0), plan.delta)
