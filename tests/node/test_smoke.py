import asyncio
from p2pfl.link.memory import MemoryNetwork
from p2pfl.node.node import Node
from p2pfl.node.peer import Peer
from p2pfl.wire.message import Message, Request


class Pong(Message):
    n: int


class Ping(Request[Pong]):
    n: int


class Echo:
    @Ping.handler
    async def ping(self, ask: Ping, peer: Peer) -> Pong:
        if ask.n < 0:
            raise ValueError("negative")
        return Pong(ask.n + 1)


async def test_all():
    net = MemoryNetwork()
    async with (
        Node(Echo(), transport=net.transport("a"), listen="a", name="A") as a,
        Node(Echo(), transport=net.transport("b"), listen="b", peers=["a"], name="B") as b,
        Node(Echo(), transport=net.transport("c"), peers=["a"], name="C", seat=7) as c,
    ):
        await asyncio.sleep(0.05)
        print(a, b, c, a.peers)
        print(await b.peers[0].ask(Ping(3)))
        try:
            await b.peers[0].ask(Ping(-1))
        except Exception as e:
            print(repr(e))
        async with a.ask_all(a.peers, Ping(1)) as rs:
            async for p, r in rs:
                print(p, r)
        print(b.members._table)
        c.want([0])
        print(await a.meet([7]))
        print(a.statistics())
