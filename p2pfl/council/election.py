"""Who leads: follow whoever does, and stand when nobody does and it is our turn.

The coordinator is lost to whom its link is lost. Voters who have a link to it promise nothing to others, so a member
whose links flap deposes nobody; without a quorum of links it gives up by itself. Of those who know no coordinator, the
one with the most committed rounds, then the lowest seat, stands first, and the others give it a second each.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Mapping
from contextlib import suppress
from random import Random

from p2pfl.council.consensus import Candidacy
from p2pfl.council.motions import Consult, Follow, LeaderElected, Leadership, Promised, Stand, Standing
from p2pfl.council.voting import Voting
from p2pfl.errors import LinkError, P2pflError, RemoteError
from p2pfl.journal.certificate import Certificate
from p2pfl.node.peer import Peer

__all__ = ["Election"]

log = logging.getLogger(__name__)

_TURN_SECONDS = 1.0  # between the loss of a coordinator and the first candidate, and from each to the next
_JITTER_SECONDS = 0.5  # at most, on top
_ANSWER_SECONDS = 2.0  # how long a candidate waits for promises
_MOST_TURN_SECONDS = 8.0  # who is refused again and again stands less and less often


class Election:
    """One voter's knowledge of who leads. It forgets it with the process: a restarted coordinator is elected anew."""

    def __init__(self, voting: Voting) -> None:
        self.lead: Leadership | None = None
        self.pending: Certificate | None = None  # see Council.pending
        self.holders: tuple[int, ...] = ()  # seats that have its model
        self.highest_term = 0  # that we have heard of
        self._voting = voting
        self._rounds: dict[int, int] = {}  # by seat: how many committed rounds each voter knew when we heard last
        self._since = 0.0  # when candidates began to take turns, on the loop's clock
        self._rng = Random(f"election/{voting.voter.run}/{voting.seat}")
        self._over = False

    @property
    def leads(self) -> bool:
        """Whether we do."""
        return self.lead is not None and self.lead.seat == self._voting.seat

    def leads_in(self, term: int) -> bool:
        """Whether we do in this term."""
        return self.lead == Leadership(term, self._voting.seat)

    def close(self) -> None:
        """Nobody needs to lead any more, and we do not: `run` ends."""
        self._over = True
        if self._voting.entered:
            self.lose(self.lead)

    async def run(self) -> None:
        """Follow, lead or seek, until it is over."""
        voter = self._voting.voter
        if voter.term == 1 and voter.leader == self._voting.seat:
            self._begin_to_lead(1, voter.accepted, (voter.leader,))  # of an earlier life, if there was one
        while not self._over:
            if self.lead is None:
                await self._seek()
            elif self.leads:
                await self._preside()
            else:
                await self._voting.change()

    async def _preside(self) -> None:
        """Lead as long as a quorum is linked. At first, nobody may have come yet."""
        backed = False
        while self.leads and not self._over:
            if backed and not self._voting.backed:
                with suppress(TimeoutError):
                    async with asyncio.timeout(_TURN_SECONDS):
                        while not self._voting.backed:
                            await self._voting.change()
                if not self._voting.backed:
                    self.lose(self.lead)
            else:
                backed = self._voting.backed
                await self._voting.change()

    async def _seek(self) -> None:
        """Ask where the others stand, and stand when it is our turn."""
        loop, consulted, turn = asyncio.get_running_loop(), set[Peer](), _TURN_SECONDS
        self._since, jitter = loop.time(), self._rng.uniform(0, _JITTER_SECONDS)
        with self._voting.node.waiting("a coordinator") as reword:
            while self.lead is None and not self._over:
                linked = self._voting.linked()
                for peer in linked:
                    if peer not in consulted:
                        self._voting.node.spawn(self._consult(peer))
                consulted = set(linked)
                if not self._voting.backed:
                    reword(f"{self._voting.quorum - 1 - len(linked)} more voters, to elect a coordinator")
                    await self._voting.change()
                    self._since = loop.time()
                    continue
                reword("a coordinator to be elected")
                due = self._since + (1 + self._rank(linked.values())) * turn + jitter
                if loop.time() < due:
                    with suppress(TimeoutError):
                        async with asyncio.timeout_at(due):
                            await self._voting.change()
                else:
                    await self._stand(linked)
                    turn = min(2 * turn, _MOST_TURN_SECONDS)
                    self._since, jitter = loop.time(), self._rng.uniform(0, _JITTER_SECONDS)

    def _rank(self, linked: Iterable[int]) -> int:
        """How many of these seats come before us: they know more committed rounds, or as many, and sit lower."""
        ours = (-self._voting.voter.rounds, self._voting.seat)
        return sum((-self._rounds.get(seat, 0), seat) < ours for seat in linked)

    async def _consult(self, peer: Peer) -> None:
        voter = self._voting.voter
        with suppress(LinkError, RemoteError):  # it is gone, or not in the course yet: then it will consult us
            self.note(await peer.ask(Consult(voter.term, voter.rounds)), peer)

    async def _stand(self, linked: Mapping[Peer, int]) -> None:
        """Try to lead in the next term. Our own promise comes last: in vain, it would only drive the terms up."""
        voter = self._voting.voter
        term = max(voter.term, self.highest_term) + 1
        candidacy = Candidacy(term, voter.rounds, self._voting.quorum)
        asking = self._voting.node.ask_all(linked, Stand(term, voter.rounds))
        with suppress(TimeoutError):
            async with asyncio.timeout(_ANSWER_SECONDS), asking as answers:
                async for peer, answer in answers:
                    if answer.refusal is not None:
                        candidacy.refused(linked[peer], answer.refusal)
                    else:
                        candidacy.promised(linked[peer], answer.accepted)
                    if candidacy.lacks <= 1:
                        break
        self.highest_term = max(self.highest_term, candidacy.highest_term)
        try:
            if candidacy.ahead is not None:
                seat, committed = candidacy.ahead
                await self._voting.learn(committed, next(peer for peer in linked if linked[peer] == seat))
            elif candidacy.lacks <= 1:
                await self._promise_own(candidacy)
        except P2pflError as error:
            log.warning("seat %d cannot lead in term %d: %s", self._voting.seat, term, error)

    async def _promise_own(self, candidacy: Candidacy) -> None:
        async with self._voting.turn():
            voter, refusal = self._voting.voter.stand(candidacy.term, self._voting.seat, candidacy.rounds)
            if self.lead is None and refusal is None:
                await self._voting.record(voter)
                candidacy.promised(self._voting.seat, voter.accepted)
                self._begin_to_lead(candidacy.term, candidacy.proposal, candidacy.holders)

    def _begin_to_lead(self, term: int, pending: Certificate | None, holders: tuple[int, ...]) -> None:
        self.pending, self.holders = pending, holders
        self._set_lead(Leadership(term, self._voting.seat))
        self._voting.node.spawn(self.announce(self._voting.linked()))

    async def announce(self, peers: Iterable[Peer]) -> None:
        """Say that we lead, and what was committed last. Who is not reached will consult us."""
        if self.lead is None or not self.leads:
            return
        follow = Follow(self.lead.term, self._voting.voter.committed)
        async with self._voting.node.ask_all(peers, follow) as answers:
            async for peer, standing in answers:
                self.note(standing, peer)

    # -- what others say -------------------------------------------------------------------------------------------

    def follow(self, term: int, peer: Peer, seat: int) -> None:
        """Who sits there leads in this term: until its link is lost, or somebody has a higher term."""
        news = self.lead is None or term > self.lead.term
        if news and self._voting.voter.follows(term, seat):
            leadership = Leadership(term, seat)
            self._set_lead(leadership)
            self._voting.node.spawn(self._watch(peer, leadership))

    async def _watch(self, peer: Peer, leadership: Leadership) -> None:
        await peer.gone()
        self.lose(leadership)

    def _set_lead(self, leadership: Leadership) -> None:
        self.lead = leadership
        self._voting.node.emit(LeaderElected(leadership.term, leadership.seat))
        self._voting.node.stir()

    def lose(self, leadership: Leadership | None) -> None:
        """That one leads no more, if it did."""
        if self.lead == leadership:
            self.lead = None
            self._voting.node.stir()

    def note(self, standing: Standing, peer: Peer) -> None:
        """Remember where a voter stands, for the order in which candidates take turns."""
        self.highest_term = max(self.highest_term, standing.term)
        if peer.seat is not None:
            self._rounds[peer.seat] = standing.rounds
            self._voting.node.stir()

    def consulted(self, peer: Peer, seat: int) -> None:
        """Who sits there knows of nobody who leads. So it does not lead itself; and if we do, it is told."""
        if self.lead is not None and self.lead.seat == seat:
            self.lose(self.lead)
        if self.leads:
            self._voting.node.spawn(self.announce([peer]))

    async def stood(self, ask: Stand, seat: int) -> Promised:
        """Who sits there wants to lead."""
        async with self._voting.turn():
            voter, lead = self._voting.voter, self.lead
            if lead is not None and lead.seat != seat and (not self.leads or self._voting.backed):
                return Promised(refusal=voter.refusal(f"seat {lead.seat} coordinates", ask.rounds))
            voter, refusal = voter.stand(ask.term, seat, ask.rounds)
            if refusal is not None:
                return Promised(refusal=refusal)
            await self._voting.record(voter)
            self.lose(lead)
            self._since = asyncio.get_running_loop().time()  # it has its time now
            return Promised(voter.accepted)
