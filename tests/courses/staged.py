"""A client of a secure aggregation to which something happens in one of its stages."""

from __future__ import annotations

from p2pfl.courses.secagg import (
    Confirm,
    Confirmation,
    Enlist,
    Keys,
    Mask,
    Masked,
    Reveal,
    Seeds,
    Share,
    Shares,
)  # fmt: skip
from p2pfl.courses.secagg_trainer import SecretTrainer
from p2pfl.node.peer import Peer

__all__ = ["Staged"]


class Staged(SecretTrainer):
    """What happens is for those to say who derive from it: before a stage's answer is made, or once it is."""

    def begins(self, stage: str, round: int) -> None:
        """It is asked for its part of a stage."""

    def answers(self, stage: str, round: int) -> None:
        """Its answer is made, and has not left."""

    @property
    def _now(self) -> int:
        """The round of its session."""
        return 0 if self._pledge is None else self._pledge.round

    @Enlist.handler
    async def enlist(self, ask: Enlist, peer: Peer) -> Keys:
        self.begins("enlist", ask.round)
        keys = await super().enlist(ask, peer)
        self.answers("enlist", ask.round)
        return keys

    @Share.handler
    async def share(self, ask: Share, peer: Peer) -> Shares:
        self.begins("share", self._now)
        shares = await super().share(ask, peer)
        self.answers("share", self._now)
        return shares

    @Mask.handler
    async def mask(self, ask: Mask, peer: Peer) -> Masked:
        self.begins("mask", self._now)
        masked = await super().mask(ask, peer)
        self.answers("mask", self._now)
        return masked

    @Confirm.handler
    async def confirm(self, ask: Confirm, peer: Peer) -> Confirmation:
        self.begins("confirm", self._now)
        confirmation = await super().confirm(ask, peer)
        self.answers("confirm", self._now)
        return confirmation

    @Reveal.handler
    async def reveal(self, ask: Reveal, peer: Peer) -> Seeds:
        self.begins("reveal", self._now)
        seeds = await super().reveal(ask, peer)
        self.answers("reveal", self._now)
        return seeds
