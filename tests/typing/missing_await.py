"""A coroutine that is never awaited."""

from __future__ import annotations

from p2pfl import Message, Node, Peer, Request


class Score(Message):
    value: float


class Grade(Request[Score]):
    round: int


class Grader:
    async def run(self, node: Node) -> None:
        node.peers[0].tell(Score(1.0))  # E: unused-coroutine

    async def again(self, peer: Peer) -> None:
        answer = peer.ask(Grade(1))
        print(answer.value)  # E: attr-defined
