"""A round in which nothing is learnt: `python -m tests.benchmarks.noop`.

A coordinator asks two clients, over encrypted WebSockets on loopback, and waits for both answers. Target: a median of
at most 10 ms. The baseline of the same run is a bare asyncio stream that echoes a line to two clients.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import time

import uvloop

from p2pfl import Message, Node, Peer, Request

CLIENTS = 2


class Done(Message):
    round: int


class Work(Request[Done]):
    round: int


class Idler:
    @Work.handler
    async def work(self, ask: Work, peer: Peer) -> Done:
        return Done(ask.round)


async def rounds(number: int) -> list[float]:
    """Milliseconds of each round."""
    taken = []
    async with Node(listen="127.0.0.1:0") as hub:
        clients = [Node(Idler(), peers=hub.addresses) for _ in range(CLIENTS)]
        for client in clients:
            await client.__aenter__()
        peers = await hub.linked(CLIENTS)
        for round in range(number):
            started = time.perf_counter()
            async with hub.ask_all(peers, Work(round)) as replies:
                assert [reply async for _, reply in replies] == [Done(round)] * CLIENTS
            taken.append(1000 * (time.perf_counter() - started))
        for client in clients:
            await client.stop()
    return taken


async def echoes(number: int) -> list[float]:
    """The baseline, milliseconds of each round."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await reader.readline():
            writer.write(line)
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    streams = [await asyncio.open_connection("127.0.0.1", port) for _ in range(CLIENTS)]
    taken = []
    for _ in range(number):
        started = time.perf_counter()
        for _, writer in streams:
            writer.write(b"work\n")
        for reader, _ in streams:
            await reader.readline()
        taken.append(1000 * (time.perf_counter() - started))
    for _, writer in streams:
        writer.close()
    server.close()
    return taken


def main(arguments: list[str] | None = None) -> list[tuple[str, str]]:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=500)
    number = parser.parse_args(arguments).rounds
    bare, ours = uvloop.run(echoes(number)), uvloop.run(rounds(number))
    return [
        ("bare asyncio streams, ms a round, median", f"{statistics.median(bare):.3f}"),
        ("p2pfl, ms a round, median (target 10)", f"{statistics.median(ours):.3f}"),
        ("p2pfl, ms a round, 99th percentile", f"{statistics.quantiles(ours, n=100)[98]:.3f}"),
    ]


if __name__ == "__main__":
    for label, value in main():
        print(f"{label:48} {value:>10}")
