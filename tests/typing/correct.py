"""The whole programming model, as a course's author writes it. Nothing here is a type error."""

from __future__ import annotations

import asyncio
from array import array
from collections.abc import Sequence
from contextlib import suppress

from p2pfl import Message, Node, Peer, RemoteError, Request, Tensors, TensorSpec
from p2pfl.node.node import Runs


class Update(Message):
    params: Tensors
    samples: int
    loss: float | None = None


class Train(Request[Update]):
    round: int
    params: Tensors


class Finish(Message, tag="finish/2"):
    pass


class Mean:
    def __init__(self) -> None:
        self.count = 0
        self.value: Tensors | None = None

    def add(self, params: Tensors, samples: int) -> None:
        self.count += samples
        self.value = params


class Trainer:
    def __init__(self) -> None:
        self.over = asyncio.Event()

    async def run(self, node: Node) -> None:
        await self.over.wait()

    @Train.handler
    async def train(self, ask: Train, peer: Peer) -> Update:
        await peer.tell(Finish())
        return Update(ask.params, samples=ask.round)

    @Finish.handler
    async def finish(self, message: Finish, peer: Peer) -> None:
        self.over.set()


class Mailbox:
    def __init__(self) -> None:
        self.updates: list[Update] = []

    @Update.handler
    def update(self, message: Update, peer: Peer) -> None:
        self.updates.append(message)


class FedAvg:
    def __init__(self, rounds: int, deadline: float, quorum: int, params: Tensors) -> None:
        self.rounds, self.deadline, self.quorum, self.params = rounds, deadline, quorum, params

    async def run(self, node: Node) -> None:
        for round in range(self.rounds):
            mean = Mean()
            with suppress(TimeoutError):
                async with (
                    asyncio.timeout(self.deadline),
                    node.ask_all(self.sample(node), Train(round, self.params)) as replies,
                ):
                    async for peer, update in replies:
                        mean.add(update.params, update.samples)
                        print(peer.name, replies.failed.get(peer))
                        if mean.count == self.quorum:
                            break
            self.params = mean.value or self.params
        await node.tell_all(node.peers, Finish())

    def sample(self, node: Node) -> Sequence[Peer]:
        return node.peers[:3]


class Pair:
    async def run(self, node: Node) -> None:
        try:
            answer = await node.peers[0].ask(Train(0, weights()))
        except RemoteError as error:
            print(error.node, error.request, error.reason)
        else:
            print(answer.samples + 1, answer.params["w"].nbytes, answer.loss)


def weights() -> Tensors:
    return Tensors((TensorSpec("w", "f32", (2,)),), (memoryview(array("f", [1, 2])),))


def runs(role: FedAvg | Trainer | Pair) -> Runs:
    return role
