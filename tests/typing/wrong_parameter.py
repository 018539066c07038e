"""A handler bound to another message than its parameter."""

from __future__ import annotations

from p2pfl import Message, Peer, Request


class Score(Message):
    value: float


class Mean(Message):
    value: float


class Grade(Request[Score]):
    round: int


class Grader:
    @Mean.handler  # E: arg-type
    async def mean(self, message: Score, peer: Peer) -> None: ...

    @Grade.handler  # E: arg-type
    async def grade(self, ask: Score, peer: Peer) -> Score:
        return ask
