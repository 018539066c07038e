"""A request's handler that answers nothing."""

from __future__ import annotations

from p2pfl import Message, Peer, Request


class Score(Message):
    value: float


class Grade(Request[Score]):
    round: int


class Grader:
    @Grade.handler  # E: arg-type
    async def grade(self, ask: Grade, peer: Peer) -> None: ...
