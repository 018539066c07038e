"""A handler that answers with another message than the request says."""

from __future__ import annotations

from p2pfl import Message, Peer, Request


class Score(Message):
    value: float


class Mean(Message):
    value: float


class Grade(Request[Score]):
    round: int


class Grader:
    @Grade.handler  # E: arg-type
    async def grade(self, ask: Grade, peer: Peer) -> Mean:
        return Mean(1.0)


class Honest:
    @Grade.handler
    async def grade(self, ask: Grade, peer: Peer) -> Score:
        return Mean(1.0)  # E: return-value
