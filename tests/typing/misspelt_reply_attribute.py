"""A field that the reply does not have."""

from __future__ import annotations

from p2pfl import Message, Node, Request


class Score(Message):
    value: float


class Grade(Request[Score]):
    round: int


class Grader:
    async def run(self, node: Node) -> None:
        answer = await node.peers[0].ask(Grade(1))
        print(answer.valeu)  # E: attr-defined
        async with node.ask_all(node.peers, Grade(2)) as replies:
            async for peer, score in replies:
                print(peer.name, score.round)  # E: attr-defined
