"""A request and its reply between two nodes, over an encrypted WebSocket on this machine."""

from __future__ import annotations

import asyncio

from p2pfl import Message, Node, Peer, Request


class Greeting(Message):
    text: str


class Greet(Request[Greeting]):
    name: str


class Host:
    """A role: any object with handlers."""

    def __init__(self) -> None:
        self.guests = 0

    @Greet.handler
    async def greet(self, ask: Greet, peer: Peer) -> Greeting:
        self.guests += 1
        return Greeting(f"hello {ask.name}, you are guest number {self.guests}")


async def main() -> None:
    async with Node(Host(), listen="127.0.0.1:0", name="house") as house, Node(peers=house.addresses) as guest:
        [peer] = await guest.linked(1)
        for name in ("Ada", "Emmy"):
            greeting = await peer.ask(Greet(name))  # a Greeting, and the type checker knows it
            print(f"{peer.name} says: {greeting.text}")
        print(f"over {house!r}")


if __name__ == "__main__":
    asyncio.run(main())
