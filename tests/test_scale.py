"""Two hundred nodes in one process on real sockets: nothing in the node or the link is made for a handful."""

from __future__ import annotations

from contextlib import AsyncExitStack

import pytest

from p2pfl import Message, Node, Peer, Request

NODES = 200


class Answer(Message):
    number: int


class Question(Request[Answer]):
    number: int


class Echo:
    @Question.handler
    async def answer(self, ask: Question, peer: Peer) -> Answer:
        return Answer(ask.number)


@pytest.mark.sockets
async def test_two_hundred_nodes_find_each_other_and_answer() -> None:
    async with AsyncExitStack() as stack:
        hub = await stack.enter_async_context(Node(listen="127.0.0.1:0", seat=0))
        others = [Node(Echo(), listen="127.0.0.1:0", peers=hub.addresses, seat=seat) for seat in range(1, NODES)]
        for node in others:  # all dial at once
            await stack.enter_async_context(node)
        peers = await hub.meet(range(1, NODES))
        async with hub.ask_all(peers, Question(7)) as replies:
            answered = [peer.seat async for peer, answer in replies if answer == Answer(7)]
        assert sorted(filter(None, answered)) == list(range(1, NODES))
        first, last = others[0], others[-1]  # told one address each, they know everybody
        [found] = await first.meet([NODES - 1])
        assert found.id == last.id
        assert await found.ask(Question(8)) == Answer(8)
