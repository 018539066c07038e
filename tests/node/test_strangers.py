"""What a node takes from ends of links that do not keep to the protocol, and what it does about them."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from p2pfl.errors import LinkError, RemoteError
from p2pfl.link.memory import MemoryNetwork
from p2pfl.node.events import PeerLost, PeerMisbehaved, PeerRefused
from p2pfl.node.node import Node
from p2pfl.node.peer import Peer
from p2pfl.node.settings import NodeSettings
from tests.node.kit import QUIET, Echo, Gated, Log, Ping, Pong, Stranger, make, steps, until


@pytest.mark.parametrize(
    ("tag", "fields", "reason"),
    [
        ("Ping", {}, "missing required field `n`"),
        ("Ping", {"n": "one"}, "Expected `int`"),
        ("Ping", {"n": 1.5}, "Expected `int`"),
        ("Ping", {"n": 1, "m": 2}, "no field m"),
        ("Note", {"n": 1}, "Note is not to be asked"),
    ],
)
async def test_malformed_asks_are_answered_and_strike(tag: str, fields: dict[str, Any], reason: str) -> None:
    network = MemoryNetwork()
    async with make(network, "a", Echo()) as node:
        log = Log(node)
        stranger = await Stranger.dial(network, "s", "a")
        stranger.send("ask", 1, tag, fields)
        await steps()
        ((_, number, _, answer),) = stranger.heads("fail")
        assert number == 1
        assert reason in answer["reason"]
        assert [reason in event.reason for event in log.of(PeerMisbehaved)] == [True]
        assert node.statistics().violations == 1
        stranger.send("ask", 2, "Ping", {"n": 1})
        await steps()
        assert [head[3] for head in stranger.heads("reply")] == [{"n": 2}]


@pytest.mark.parametrize("tag", ["Nonsense", "Ping", "Pong", ""])
async def test_told_nonsense_strikes_three_times_and_then_cuts_the_link(tag: str) -> None:
    network = MemoryNetwork()
    settings = NodeSettings(strike_seconds=600)
    async with make(network, "a", Echo(), settings=settings) as node:
        log = Log(node)
        stranger = await Stranger.dial(network, "s", "a")
        for number in (1, 2):
            stranger.send("tell", number, tag)
        await asyncio.sleep(1)
        assert node.peer("s").connected
        stranger.send("tell", 3, tag)
        await asyncio.sleep(1)
        assert not node.peer("s").connected
        assert len(log.of(PeerMisbehaved)) == 3
        (lost,) = log.of(PeerLost)
        assert "too many violations" in lost.reason

        again = await Stranger.dial(network, "s", "a")  # it stays outside ...
        await again.inbox.closed()
        assert not node.peer("s").connected
        assert [event.address for event in log.of(PeerRefused)] == ["s"]
        await asyncio.sleep(600)  # ... for as long as its strikes count
        again = await Stranger.dial(network, "s", "a")
        again.send("ask", 1, "Ping", {"n": 1})
        await asyncio.sleep(1)
        assert again.heads("reply")


async def test_strikes_are_forgotten() -> None:
    network = MemoryNetwork()
    async with make(network, "a", Echo(), settings=QUIET) as node:
        stranger = await Stranger.dial(network, "s", "a")
        for number in range(1, 10):
            stranger.send("tell", number, "Nonsense")
            await asyncio.sleep(301)
        assert node.peer("s").connected


@pytest.mark.parametrize(
    "head",
    [
        ("reply", 7, "Pong", {"n": 1}),
        ("fail", 7, "", {"reason": "x"}),
        ("credit", 32),
        ("fail", 7, "", {}),
        ("bye", 0, "", {"reason": 1}),
        ("hello", 1),
        (1, 1),
        ("ask", -1, "Ping", {"n": 1}),
        ("ask", 1.5, "Ping", {"n": 1}),
        ("ask", 1, None, {"n": 1}),
        ("ask", 1, "Ping", [1]),
    ],
)
async def test_what_breaks_the_session_ends_the_link(head: tuple[Any, ...]) -> None:
    network = MemoryNetwork()
    async with make(network, "a", Echo()) as node:
        log = Log(node)
        stranger = await Stranger.dial(network, "s", "a")
        stranger.send(*head)
        await stranger.inbox.closed()
        await steps()
        assert not node.peer("s").connected
        assert len(log.of(PeerMisbehaved)) == 1


async def test_more_asks_than_the_window_end_the_link() -> None:
    network, role = MemoryNetwork(), Gated()
    async with make(network, "a", role):
        stranger = await Stranger.dial(network, "s", "a")
        for number in range(65):
            stranger.send("ask", number, "Ping", {"n": number})
        assert isinstance(await stranger.inbox.closed(), LinkError)
        await steps()
        assert role.running == 0


async def ask_a_stranger(node: Node, stranger: Stranger) -> asyncio.Task[Pong]:
    await until(lambda: node.peer("s").connected)
    asking = asyncio.create_task(node.peer("s").ask(Ping(1)))
    await until(lambda: stranger.heads("ask"))
    return asking


@pytest.mark.parametrize(("tag", "fields"), [("Pong", {"n": "1"}), ("Pong", {}), ("Note", {"n": 1}), ("", {})])
async def test_a_malformed_reply_fails_the_ask_and_strikes(tag: str, fields: dict[str, Any]) -> None:
    network = MemoryNetwork()
    async with make(network, "a") as node:
        stranger = await Stranger.dial(network, "s", "a")
        asking = await ask_a_stranger(node, stranger)
        stranger.send("reply", stranger.heads("ask")[0][1], tag, fields)
        with pytest.raises(RemoteError) as caught:
            await asking
        assert (caught.value.node, caught.value.request) == ("s", "Ping")
        assert node.statistics().violations == 1
        assert node.peer("s").connection().session.idle


async def test_a_link_that_ends_for_a_violation_blames_who_was_asked() -> None:
    """Not whoever asked us to ask: a LinkError of kind RemoteProtocolError in a handler is a strike for its asker."""

    class Relay:
        @Ping.handler
        async def ping(self, ask: Ping, peer: Peer) -> Pong:
            return await node.peer("s").ask(ask)

    network = MemoryNetwork()
    async with make(network, "a", Relay()) as node, make(network, "honest", peers=["a"]) as honest:
        stranger = await Stranger.dial(network, "s", "a")
        await until(lambda: honest.peer("a").connected and node.peer("s").connected)
        asking = asyncio.create_task(honest.peer("a").ask(Ping(1)))
        await until(lambda: stranger.heads("ask"))
        stranger.send("nonsense", 1)
        with pytest.raises(RemoteError, match="which is none of ours"):
            await asking
        assert not node.peer("honest").strike("the first")  # nothing was held against it before
