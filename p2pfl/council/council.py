"""Who coordinates a course when coordinators may be lost, and certificates that a quorum has signed.

The rules are in `consensus.py`, the order in which members stand in `election.py`. This is the role that binds them to
a node, and what a course sees of them:

    term = await council.elected(node)                      # we coordinate; or follow, see led_by and commits
    if council.pending is not None:
        await council.certify(node, council.pending)        # what an earlier coordinator may have committed
    certificate = await council.certify(node, Certificate(run, round, term, ...))   # committed; or Deposed
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping
from contextlib import suppress
from functools import partial

from p2pfl.council.consensus import Tally, Voter, same_round
from p2pfl.council.election import Election
from p2pfl.council.motions import Consult, Endorse, Endorsed, Follow, Leadership, Promised, Stand, Standing
from p2pfl.council.voting import Hold, Keep, Voting
from p2pfl.errors import CourseError, LinkError, P2pflError, RemoteError
from p2pfl.journal.certificate import Certificate
from p2pfl.node.node import Node
from p2pfl.node.peer import Peer

__all__ = ["Council", "Deposed"]

_RETRY_SECONDS = 1.0  # until a voter that did not endorse is asked again


class Deposed(CourseError):
    """We do not coordinate any more. Our round is void unless a later coordinator commits it."""


class Council:
    """One voter's part. Its `run` goes on until `adjourn`."""

    def __init__(
        self,
        run: str,
        seat: int,
        voters: Collection[int],
        keep: Keep,
        hold: Hold,
        restored: Mapping[str, object] | None = None,
    ) -> None:
        """`run`: the run's name, the same at all; `seat`: our own; `restored`: what `keep` was given last.

        A voter that has lost what it kept must not vote again in this run. Raises JournalError for a damaged state.
        """
        voter = Voter.first(run, min(voters)) if restored is None else Voter.restored(run, restored)
        self._voting = Voting(voter, seat, voters, keep, hold)
        self._election = Election(self._voting)

    async def run(self, node: Node) -> None:
        """Keep links to the other voters, follow who leads, and stand when it is our turn.

        Raises ConfigError if the node's transport cannot sign.
        """
        self._voting.enter(node)
        await self._election.run()

    def adjourn(self) -> None:
        """The course is over: `run` ends, and we lead no more. Others are answered as long as the node lives."""
        self._election.close()

    # -- who coordinates -------------------------------------------------------------------------------------------

    @property
    def leads(self) -> bool:
        """Whether we do."""
        return self._election.leads

    async def led_by(self, node: Node) -> Leadership:
        """Who does, once somebody does."""
        while self._election.lead is None:
            await node.change()
        return self._election.lead

    async def elected(self, node: Node) -> int:
        """Wait until we do; the term."""
        while not self.leads:
            await node.change()
        return (await self.led_by(node)).term

    async def deposed(self, node: Node) -> None:
        """Wait until we do not."""
        while self.leads:
            await node.change()

    def resign(self) -> None:
        """Lead no more, if we do: somebody else may be able to."""
        if self.leads:
            self._election.lose(self._election.lead)

    # -- certificates ----------------------------------------------------------------------------------------------

    @property
    def committed(self) -> Certificate | None:
        """The last round that is known to be committed."""
        return self._voting.voter.committed

    @property
    def pending(self) -> Certificate | None:
        """What we, who lead, have to certify before anything else: an earlier coordinator may have committed it."""
        pending = self._election.pending
        return pending if self.leads and pending is not None and pending.round == self._voting.voter.rounds else None

    async def commits(self, node: Node, rounds: int) -> Certificate:
        """The last committed round, once more than `rounds` are committed."""
        while self.committed is None or self.committed.round < rounds:
            await node.change()
        return self.committed

    async def learn(self, certificate: Certificate, peer: Peer) -> None:
        """A peer shows a committed round. Raises a P2pflError if its model cannot be had there."""
        await self._voting.learn(certificate, peer)
        lead = self._election.lead
        if self.leads and lead is not None and self.committed is not None and self.committed.term > lead.term:
            self._election.lose(lead)  # in our place somebody else has led

    async def certify(self, node: Node, certificate: Certificate) -> Certificate:
        """Have a quorum sign a certificate of the next round, in our term; it is committed once this returns.

        Waits while no quorum can be reached. Raises Deposed if we do not lead (any more), JournalError if it cannot be
        kept, CourseError if the certificate is not of the next round, or not what is pending.
        """
        voting, certificate = self._voting, Certificate.of(certificate.plain())  # as others read it: 5 is 5.0 there
        if self.pending is not None and not same_round(certificate, self.pending):
            raise CourseError(f"round {certificate.round} was begun by an earlier coordinator: certify `pending` first")
        await voting.begun()
        tally = Tally(certificate, voting.quorum, voting.signer.verifies)
        await self._endorse_own(certificate, tally)
        await self._canvass(certificate, tally)
        async with voting.turn():
            if tally.complete:
                await voting.record(voting.voter.learn(tally.certificate))
        if self.committed is None or not same_round(self.committed, certificate):
            raise Deposed(f"seat {voting.seat} does not coordinate in term {certificate.term} any more")
        node.spawn(self._election.announce(voting.linked()))
        return self.committed

    async def _endorse_own(self, certificate: Certificate, tally: Tally) -> None:
        """The coordinator is the first who endorses: after a crash it cannot propose another one in this term."""
        voting, source = self._voting, None if self.pending is None else self._holder()
        async with voting.turn():
            if not self._election.leads_in(certificate.term):
                raise Deposed(f"seat {voting.seat} does not coordinate in term {certificate.term}")
            voter, refusal = voting.voter.endorse(certificate, voting.seat)
            if refusal is not None:
                raise CourseError(f"the certificate of round {certificate.round} cannot be proposed: {refusal.reason}")
            try:
                await voting.hold(certificate, source)
            except (LinkError, RemoteError) as error:
                self._election.lose(Leadership(certificate.term, voting.seat))
                raise Deposed(f"the model of round {certificate.round} cannot be had: {error}") from error
            await voting.record(voter)
        tally.add(voting.node.id, voting.signer.sign(certificate.statement))

    def _holder(self) -> Peer | None:
        """Who has the model of what is pending; None: we have it."""
        holders = self._election.holders
        if self._voting.seat in holders:
            return None
        return next((peer for peer, seat in self._voting.linked().items() if seat in holders), None)

    async def _canvass(self, certificate: Certificate, tally: Tally) -> None:
        """Ask all voters who can be reached, until there are enough signatures or it is settled otherwise."""
        voting, asking = self._voting, dict[Peer, asyncio.Task[None]]()

        def asked(peer: Peer, _: object) -> None:
            del asking[peer]
            voting.node.stir()

        def is_open() -> bool:
            stands = self._election.leads_in(certificate.term) and voting.voter.rounds == certificate.round
            return stands and not tally.complete

        async with asyncio.TaskGroup() as group:
            with voting.node.waiting("signatures") as reword:
                while is_open():
                    for peer in voting.linked():
                        if peer not in asking and peer.id not in tally.signatures:
                            asking[peer] = group.create_task(self._ask_to_endorse(peer, certificate, tally))
                            asking[peer].add_done_callback(partial(asked, peer))
                    missing = voting.quorum - len(tally.signatures)
                    reword(f"{missing} more signatures of voters, to commit round {certificate.round + 1}")
                    await voting.node.change()
            for task in asking.values():
                task.cancel()

    async def _ask_to_endorse(self, peer: Peer, certificate: Certificate, tally: Tally) -> None:
        with suppress(P2pflError):  # it is asked again
            answer = await peer.ask(Endorse(certificate))
            refusal = answer.refusal
            if refusal is None:
                if tally.add(peer.id, answer.signature):
                    return
                peer.strike("what it signed a certificate with is no signature of its own")
            elif refusal.committed is not None:
                await self._voting.learn(refusal.committed, peer)
            elif refusal.term > certificate.term:
                self._election.highest_term = max(self._election.highest_term, refusal.term)
                self._election.lose(Leadership(certificate.term, self._voting.seat))
            elif refusal.rounds < certificate.round:
                await self._election.announce([peer])
        await asyncio.sleep(_RETRY_SECONDS)

    # -- what others ask -------------------------------------------------------------------------------------------

    @Consult.handler
    async def consult(self, ask: Consult, peer: Peer) -> Standing:
        seat = await self._voting.asker(peer)
        self._election.note(Standing(ask.term, ask.rounds), peer)
        self._election.consulted(peer, seat)
        return self._standing()

    @Follow.handler
    async def follow(self, ask: Follow, peer: Peer) -> Standing:
        self._election.follow(ask.term, peer, await self._voting.asker(peer))
        if ask.committed is not None:
            await self._voting.learn(ask.committed, peer)
        return self._standing()

    @Stand.handler
    async def stand(self, ask: Stand, peer: Peer) -> Promised:
        return await self._election.stood(ask, await self._voting.asker(peer))

    @Endorse.handler
    async def endorse(self, ask: Endorse, peer: Peer) -> Endorsed:
        seat, voting, certificate = await self._voting.asker(peer), self._voting, ask.certificate
        async with voting.turn():
            voter, refusal = voting.voter.endorse(certificate, seat)
            if refusal is not None:
                return Endorsed(refusal=refusal)
            await voting.hold(certificate, peer)
            await voting.record(voter)
        self._election.follow(certificate.term, peer, seat)
        return Endorsed(voting.signer.sign(certificate.statement))

    def _standing(self) -> Standing:
        return Standing(self._voting.voter.term, self._voting.voter.rounds)
