"""A statement is not answered."""

from __future__ import annotations

from p2pfl import Message, Peer


class Score(Message):
    value: float


class Mean(Message):
    value: float


class Grader:
    @Mean.handler  # E: arg-type
    async def mean(self, message: Mean, peer: Peer) -> Score:
        return Score(message.value)
