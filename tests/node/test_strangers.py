"""What a node takes from ends of links that do not keep to the protocol, and what it does about them."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from p2pfl.errors import LinkError, LinkRefused, RemoteError
from p2pfl.link.memory import MemoryNetwork
from p2pfl.node.events import HandlerFailed, PeerLost, PeerMisbehaved, PeerRefused, PeerUnreached
from p2pfl.node.node import Node
from p2pfl.node.peer import Peer
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
    async with make(network, "a", Echo()) as node:
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

        again = await Stranger.dial(network, "s", "a")  # it stays outside for ten minutes
        assert isinstance(await again.inbox.closed(), LinkRefused)
        assert not node.peer("s").connected
        (refused,) = log.of(PeerRefused)
        assert str(refused) == "turned s away: s broke the protocol too often: no link for another 599 s"
        await asyncio.sleep(600)
        again = await Stranger.dial(network, "s", "a")
        again.send("ask", 1, "Ping", {"n": 1})
        await asyncio.sleep(1)
        assert again.heads("reply")


async def test_the_next_quarantine_is_twice_as_long() -> None:
    network = MemoryNetwork()
    async with make(network, "a", settings=QUIET) as node:
        for term in (600, 1200, 2400):
            stranger = await Stranger.dial(network, "s", "a")
            for number in (1, 2, 3):
                stranger.send("tell", number, "Nonsense")
            await stranger.inbox.closed()
            assert node.peer("s").quarantine_seconds == term
            await asyncio.sleep(term)
            assert node.peer("s").quarantine_seconds == 0


async def test_one_violation_too_many_ends_all_links_and_is_counted_once() -> None:
    network = MemoryNetwork()
    async with make(network, "a", settings=QUIET) as node:
        strangers = [await Stranger.dial(network, "s", "a") for _ in range(3)]
        await steps()
        assert len(node.peer("s").connections) == 3
        for number in (1, 2):
            strangers[0].send("tell", number, "Nonsense")
        strangers[1].send("nonsense", 1)  # which ends that link by itself
        for stranger in strangers:
            await stranger.inbox.closed()
        assert not node.peer("s").audible
        assert node.statistics().violations == 3


async def test_nobody_in_quarantine_is_dialled() -> None:
    """Neither by who keeps links up nor by who calls once; the next try is when it is over."""
    network = MemoryNetwork()
    async with make(network, "s", seat=1) as other, make(network, "a", peers=["s"], settings=QUIET) as node:
        await until(lambda: node.peer("s").connected and node.at(1) is not None)
        log, dials = Log(node), network._dials
        for _ in range(3):
            node.peer("s").strike("a violation")
        await asyncio.sleep(100)
        assert not await node.call([1])
        assert network._dials == dials
        kept, called = log.of(PeerUnreached)
        assert "s broke the protocol too often: no link for another 600 s" in str(kept)
        assert kept.retry_seconds == pytest.approx(600, abs=1)
        assert "no link for another 500 s" in called.reason
        await asyncio.sleep(510)
        assert node.peer("s").connected
        assert other.peer("a").connected


async def test_what_a_peer_provokes_fills_no_log(caplog: pytest.LogCaptureFixture) -> None:
    """At most ten lines a second; the next line says how many were held back."""
    network = MemoryNetwork()
    async with make(network, "a", Echo(), settings=QUIET) as node, make(network, "b", Echo(), peers=["a"]) as honest:
        log = Log(node)
        stranger = await Stranger.dial(network, "s", "a")
        for number in range(62):
            stranger.send("ask", number, "Ping", {"n": -1})
        await asyncio.sleep(0.1)
        assert len(stranger.heads("fail")) == 62
        assert len(log.of(HandlerFailed)) == len(caplog.records) == 5
        with pytest.raises(RemoteError):
            await honest.peer("a").ask(Ping(-1))  # others are spoken of all the same
        assert [event.peer for event in log.of(HandlerFailed)] == ["s"] * 5 + ["b"]
        await asyncio.sleep(0.2)
        stranger.send("tell", 70, "Nonsense")  # the lines of all kinds are counted together
        await asyncio.sleep(1)
        (event,) = log.of(PeerMisbehaved)
        assert event.reason == "nothing here handles 'Nonsense' ... and 57 more"
        assert node.statistics().handler_failures == 63


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
        assert node._peers.of("honest")._conduct.spotless(0.0)
