"""Replies arrive asynchronously, within their block."""

from __future__ import annotations

from p2pfl import Message, Node, Request


class Score(Message):
    value: float


class Grade(Request[Score]):
    round: int


class Grader:
    async def run(self, node: Node) -> None:
        for peer in node.ask_all(node.peers, Grade(1)):  # E: attr-defined
            print(peer)
        with node.ask_all(node.peers, Grade(1)):  # E: attr-defined
            pass
