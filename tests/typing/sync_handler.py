"""Who answers a request is a coroutine; a statement can be taken by an ordinary method, which gives nothing."""

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
    def mean(self, message: Mean, peer: Peer) -> float:
        return message.value

    @Grade.handler  # E: arg-type
    def grade(self, ask: Grade, peer: Peer) -> Score:
        return Score(1.0)
