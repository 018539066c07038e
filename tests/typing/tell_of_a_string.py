"""Only messages can be told."""

from __future__ import annotations

from p2pfl import Message, Node


class Score(Message):
    value: float


class Grader:
    async def run(self, node: Node) -> None:
        await node.peers[0].tell("hello")  # E: arg-type
        await node.tell_all(node.peers, Score)  # E: arg-type
