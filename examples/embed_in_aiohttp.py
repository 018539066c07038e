"""Federated learning inside a web application that goes on serving its own pages.

The node is one more route of an aiohttp application. It coordinates a course over that route while the application
answers on `/status`, and clients join through the same port. The node owns neither the event loop, nor signals, nor
logging: those stay with the application.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import torch
from aiohttp import ClientSession, web

from p2pfl import Node, RoundEnded
from p2pfl.app.build import Setup, prepare
from p2pfl.app.config import from_mapping
from p2pfl.compute.job import Compute
from p2pfl.compute.threads import Threads

COURSE = {
    "course": {"name": "fedavg", "rounds": 15},
    "topology": {"n": 3},  # the application and two clients
    "train": {"epochs": 2, "batch_size": 10, "lr": 0.2},
}
NODE = web.AppKey("NODE", Node)
STATUS = web.AppKey("STATUS", dict[str, float])


def application(setup: Setup, compute: Compute) -> web.Application:
    node = Node(*setup.roles(0, compute), seat=0, name="application")
    app = web.Application()
    app[NODE], app[STATUS] = node, {}
    app.router.add_get("/status", status)
    app.router.add_get("/p2pfl/v1", node.websocket)
    app.cleanup_ctx.append(learn)
    return app


async def status(request: web.Request) -> web.Response:
    return web.json_response(request.app[STATUS])


async def learn(app: web.Application) -> AsyncIterator[None]:
    """The node lives as long as the application; aiohttp calls this a cleanup context."""
    async with app[NODE] as node:
        tasks = (asyncio.create_task(node.run()), asyncio.create_task(watch(node, app[STATUS])))
        yield
    await asyncio.wait(tasks)  # both end with the node


async def watch(node: Node, shown: dict[str, float]) -> None:
    with node.events() as events:
        async for event in events:
            if isinstance(event, RoundEnded):
                shown.update(round=event.round, accuracy=round(event.metrics["accuracy"], 4))


async def join(setup: Setup, compute: Compute, seat: int, address: str) -> None:
    """A client; elsewhere it would be `python -m p2pfl.node --peers ...`."""
    async with Node(*setup.roles(seat, compute), peers=[address], seat=seat) as node:
        await node.run()


async def visit(url: str, training: asyncio.Task[None]) -> None:
    """A visitor, who reloads the page until the training is over."""
    async with ClientSession() as session:
        while not training.done():
            async with session.get(url) as response:
                print(f"GET /status: {response.status} {await response.text()}")
            await asyncio.wait((training,), timeout=0.1)
        async with session.get(url) as response:
            print(f"afterwards:  {response.status} {await response.text()}")


async def main() -> None:
    torch.set_num_threads(1)
    setup, compute = prepare(from_mapping(COURSE)), Threads()
    runner = web.AppRunner(application(setup, compute), access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host, port = runner.addresses[0][:2]
    print(f"serving http://{host}:{port}/status, and nodes at ws://{host}:{port}/p2pfl/v1")
    try:
        async with asyncio.TaskGroup() as group:
            clients = [
                group.create_task(join(setup, compute, seat, f"ws://{host}:{port}/p2pfl/v1"))
                for seat in range(1, setup.topology.n)
            ]
            group.create_task(visit(f"http://{host}:{port}/status", clients[0]))
    finally:
        await runner.cleanup()
        await compute.close()


if __name__ == "__main__":
    asyncio.run(main())
