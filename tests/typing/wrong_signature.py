"""A handler that takes more or less than the message and the peer."""

from __future__ import annotations

from p2pfl import Message, Node, Peer


class Score(Message):
    value: float


class Mean(Message):
    value: float


class Grader:
    @Score.handler  # E: arg-type
    async def score(self, message: Score) -> None: ...

    @Mean.handler  # E: arg-type
    async def mean(self, message: Mean, peer: Peer, node: Node) -> None: ...
