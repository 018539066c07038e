"""Handlers are coroutines."""

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
    def mean(self, message: Mean, peer: Peer) -> None: ...

    @Grade.handler  # E: arg-type
    def grade(self, ask: Grade, peer: Peer) -> Score:
        return Score(1.0)
