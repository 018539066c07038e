"""A message type that does not exist."""

from __future__ import annotations

from p2pfl import Message, Peer


class Score(Message):
    value: float


class Grader:
    @Graed.handler  # E: name-defined, untyped-decorator
    async def grade(self, ask: Graed, peer: Peer) -> Score:  # E: name-defined
        return Score(1.0)
