"""Step by step, as in a notebook: a node is an object that one can hold, ask and look at between two cells.

Jupyter runs an event loop of its own and takes `await` at the top level, and p2pfl asks for nothing more: no
nest_asyncio, no thread. Paste the body of each `# %%` cell below, without the indentation, into a cell. Nodes go on
answering, pinging and redialling between the cells. `python -m asyncio` is a notebook for the terminal.
"""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

import torch

from p2pfl import Node
from p2pfl.app.build import prepare
from p2pfl.app.config import from_mapping
from p2pfl.compute.threads import Threads
from p2pfl.courses.messages import Train


async def main() -> None:
    # %% A course, and what it is made of. Threads, so that the notebook's loop stays free while something trains.
    torch.set_num_threads(1)
    setup = prepare(from_mapping({"course": {"name": "fedavg"}, "topology": {"n": 3}, "train": {"lr": 0.2}}))
    compute = Threads()
    print(setup.topology, setup.dataset, setup.model)

    # %% Clients. In a notebook no `async with` can span cells: an AsyncExitStack keeps what is open.
    kept = AsyncExitStack()
    clients = [
        await kept.enter_async_context(Node(*setup.roles(seat, compute), listen="127.0.0.1:0", name=f"client {seat}"))
        for seat in (1, 2)
    ]
    print(clients)

    # %% A node without a role is enough to ask. It says that it sits in seat 0, whom these clients obey.
    me = await kept.enter_async_context(Node(seat=0, peers=[node.addresses[0] for node in clients]))
    peers = await me.linked(2)
    print(peers)

    # %% One round by hand. Run this cell as often as you like.
    learner = setup.learner(0, compute)
    params = learner.model.initial
    me.agree(learner.schema)
    async with me.ask_all(peers, Train(0, learner.tensors(params))) as replies:
        updates = {peer.name: update async for peer, update in replies}
    for name, update in sorted(updates.items()):
        print(f"{name}: {update.num_examples} examples, loss {update.loss:.3f}")

    # %% Look at what came: tensors, and nothing but tensors.
    vectors = torch.stack([learner.vector(update.params) for update in updates.values()])
    mean = vectors.mean(0)
    for title, vector in (("before", params), ("after", mean)):
        print(f"{title}: accuracy {(await learner.evaluate(vector, setup.dataset.test)).accuracy:.4f}")

    # %% How it went on the wire, and the end.
    print(me.statistics())
    await kept.aclose()
    await compute.close()


if __name__ == "__main__":
    asyncio.run(main())
