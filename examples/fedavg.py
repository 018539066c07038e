"""Federated averaging, written out: two messages, two roles, and a round that reads from top to bottom.

McMahan et al., AISTATS 2017, https://arxiv.org/abs/1602.05629. Six nodes in one process, linked by encrypted
WebSockets, learn digits. A round waits for four of five clients; leaving the `async with` cancels the fifth.
"""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, suppress

import torch
from torch import Tensor, nn
from torch.nn import functional

from p2pfl import Message, Node, Peer, Request, Tensors, TensorSpec
from p2pfl.aggregators.mean import WeightedMean
from p2pfl.learn.data import Shard, load_dataset
from p2pfl.learn.params import as_buffer, bind, flatten, from_buffer
from p2pfl.learn.partition import partition
from p2pfl.learn.specs import DataSpec, PartitionSpec

CLIENTS, QUORUM, ROUNDS, DEADLINE_SECONDS = 5, 4, 12, 10.0


class Update(Message):
    params: Tensors
    num_examples: int


class Train(Request[Update]):
    round: int
    params: Tensors


def network() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))


def pack(vector: Tensor) -> Tensors:
    return Tensors((TensorSpec("params", "f32", tuple(vector.shape)),), (as_buffer(vector),))


def unpack(tensors: Tensors) -> Tensor:
    return from_buffer(tensors["params"], tensors.schema[0].shape[0]).clone()


class Client:
    """Trains on its own digits when it is asked to."""

    def __init__(self, shard: Shard) -> None:
        self._x, self._y = shard.dataset.batch(shard.indices)

    @Train.handler
    async def train(self, ask: Train, peer: Peer) -> Update:
        vector = await asyncio.to_thread(self._fit, unpack(ask.params))
        return Update(pack(vector), len(self._y))

    def _fit(self, vector: Tensor) -> Tensor:
        model = network()
        bind(model, vector)  # the weights are views into the vector now: to train them is to train it
        weights = list(model.parameters())
        for rows in torch.split(torch.randperm(len(self._y)), 10):
            loss = functional.cross_entropy(model(self._x[rows]), self._y[rows])
            for weight, gradient in zip(weights, torch.autograd.grad(loss, weights), strict=True):
                weight.data.sub_(gradient, alpha=0.2)
        return vector


class Server:
    """Averages; it has no digits but those that it tests with."""

    def __init__(self, test: Shard) -> None:
        self._model = network()
        self.params = flatten(self._model)
        self._x, self._y = test.dataset.batch(test.indices)

    async def run(self, node: Node) -> None:
        clients = await node.linked(CLIENTS)
        for round in range(ROUNDS):
            mean = WeightedMean(clients)
            with suppress(TimeoutError):
                ask = node.ask_all(clients, Train(round, pack(self.params)))
                async with asyncio.timeout(DEADLINE_SECONDS), ask as replies:
                    async for peer, update in replies:
                        mean.add(peer, unpack(update.params), update.num_examples)
                        if mean.count == QUORUM:
                            break
            params = mean.value()
            self.params = self.params if params is None else params
            print(f"round {round + 1:2}: {mean.count} updates, accuracy {self._accuracy():.4f}")

    def _accuracy(self) -> float:
        bind(self._model, self.params)
        with torch.inference_mode():
            return float((self._model(self._x).argmax(1) == self._y).float().mean())


async def main() -> None:
    torch.manual_seed(1)
    digits = load_dataset(DataSpec("digits"))
    shards = partition(digits, PartitionSpec("dirichlet", alpha=0.5), CLIENTS, seed=1)
    async with Node(Server(digits.test), listen="127.0.0.1:0") as server, AsyncExitStack() as clients:
        for shard in shards:
            await clients.enter_async_context(Node(Client(shard), peers=server.addresses))
        await server.run()


if __name__ == "__main__":
    asyncio.run(main())
