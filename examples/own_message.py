"""A message and a role of one's own, beside a role that is shipped: nobody subclasses, nobody registers.

Every client tells the server of its battery while FedAvg's stock `Trainer` trains. The server plays the stock `Server`
and a `Dashboard`. The two pairs of roles share a node and its links, and know nothing of each other.
"""

from __future__ import annotations

import asyncio
import random

from p2pfl import LinkError, Message, Node, Peer
from p2pfl.app.build import prepare
from p2pfl.app.config import from_mapping
from p2pfl.compute.threads import Threads


class Battery(Message):
    percent: int


class Gauge:
    """Tells the server how it goes, every now and then, for as long as the server is there."""

    def __init__(self, server: int, period_seconds: float) -> None:
        self._server = server
        self._period_seconds = period_seconds

    async def run(self, node: Node) -> None:
        [server] = await node.meet([self._server])
        percent = random.randint(60, 100)
        try:
            while True:
                await server.tell(Battery(percent))
                await asyncio.sleep(self._period_seconds)
                percent = max(0, percent - random.randint(0, 3))
        except LinkError:
            pass  # the course is over, and the server has left


class Dashboard:
    """Keeps the last word of every client."""

    def __init__(self) -> None:
        self.percent: dict[str, int] = {}

    @Battery.handler
    async def battery(self, message: Battery, peer: Peer) -> None:
        self.percent[peer.name] = message.percent


COURSE = {
    "course": {"name": "fedavg", "rounds": 10},
    "topology": {"n": 4},
    "train": {"epochs": 2, "batch_size": 10, "lr": 0.2},
}


async def play(node: Node) -> None:
    async with node:
        await node.run()


async def main() -> None:
    setup, compute, dashboard = prepare(from_mapping(COURSE)), Threads(), Dashboard()
    server = Node(*setup.roles(0, compute), dashboard, listen="127.0.0.1:0", seat=0)
    async with asyncio.TaskGroup() as clients, server:
        for seat in range(1, setup.topology.n):
            roles = (*setup.roles(seat, compute), Gauge(0, period_seconds=0.05))
            clients.create_task(play(Node(*roles, peers=server.addresses, seat=seat, name=f"client {seat}")))
        with server.events() as events:
            await server.run()
    await compute.close()
    async for event in events:  # it keeps what came while nobody looked
        print(event)
    print("batteries:", ", ".join(f"{name} {percent} %" for name, percent in sorted(dashboard.percent.items())))


if __name__ == "__main__":
    asyncio.run(main())
