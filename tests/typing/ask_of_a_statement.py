"""Only requests can be asked."""

from __future__ import annotations

from p2pfl import Message, Node


class Score(Message):
    value: float


class Mean(Message):
    value: float


class Grader:
    async def run(self, node: Node) -> None:
        await node.peers[0].ask(Score(1.0))  # E: arg-type
        node.ask_all(node.peers, Mean(1.0))  # E: arg-type
