"""One link in use: order, bounds, back-pressure, cancellation, keepalive, and what strangers send."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

import pytest

from p2pfl.errors import LinkClosed, LinkError, LinkSilent, MessageError, RemoteError, RemoteProtocolError
from p2pfl.link.base import LinkLimits
from p2pfl.link.memory import MemoryNetwork
from p2pfl.node.events import HandlerFailed, PeerLost, PeerMisbehaved
from p2pfl.node.peer import Peer
from p2pfl.node.settings import NodeSettings
from p2pfl.sim.loop import VirtualLoop
from p2pfl.wire.message import Message, Request
from p2pfl.wire.session import SessionLimits
from p2pfl.wire.tensor import Tensors, TensorSpec
from tests.node.kit import QUIET, Echo, Gated, Log, Note, Ping, Pong, linked, make, steps, until


def tasks_of(peer: Peer, count: int) -> list[asyncio.Task[Pong]]:
    return [asyncio.create_task(peer.ask(Ping(n))) for n in range(count)]


async def ended(tasks: list[asyncio.Task[Any]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)


# -- handling ----------------------------------------------------------------------------------------------------------


async def test_tells_begin_in_order_eight_at_a_time() -> None:
    far = Gated()
    async with linked(far=(far,)) as (a, _):
        for n in range(20):
            await a.peer("b").tell(Note(n))
        await steps()
        assert far.begun == list(range(8))
        far.gate.set()
        await steps()
        assert far.begun == far.ended == list(range(20))


async def test_asks_and_tells_share_the_order_and_the_bound() -> None:
    far = Gated()
    async with linked(far=(far,)) as (a, _):
        asks = []
        for n in range(0, 12, 2):
            asks.append(asyncio.create_task(a.peer("b").ask(Ping(n))))
            await steps(2)
            await a.peer("b").tell(Note(n + 1))
        await steps()
        assert far.begun == list(range(8))
        far.gate.set()
        assert [(await ask).n for ask in asks] == [1, 3, 5, 7, 9, 11]
        await steps()
        assert far.begun == list(range(12))


async def test_each_peer_has_eight_of_its_own() -> None:
    role = Gated()
    network = MemoryNetwork()
    async with (
        make(network, "hub", role) as hub,
        make(network, "x", peers=["hub"]) as x,
        make(network, "y", peers=["hub"]) as y,
    ):
        await until(lambda: len(hub.peers) == 2)
        for n in range(10):
            for node in (x, y):
                await node.peer("hub").tell(Note(n))
        await steps()
        assert role.running == 16
        role.gate.set()


class Prompt:
    """Takes notes at once, and answers pings when it is let."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.heard: list[int] = []

    @Note.handler
    def note(self, note: Note, peer: Peer) -> None:
        self.heard.append(note.n)
        if note.n < 0:
            raise ValueError("negative")
        if note.n > 1000:
            raise RemoteProtocolError("too large")

    @Ping.handler
    async def ping(self, ask: Ping, peer: Peer) -> Pong:
        self.heard.append(ask.n)
        await self.gate.wait()
        return Pong(ask.n + 1)


async def test_an_ordinary_method_is_called_when_the_message_arrives() -> None:
    far = Prompt()
    async with linked(far=(far,)) as (a, _):
        async with asyncio.timeout(1):
            for n in range(200):  # many times the window: credit comes back
                await a.peer("b").tell(Note(n))
        await steps()
        assert far.heard == list(range(200))


async def test_an_ordinary_method_does_not_overtake_what_waits_for_its_turn() -> None:
    far = Prompt()
    async with linked(far=(far,)) as (a, _):
        asks = tasks_of(a.peer("b"), 10)
        await steps()
        await a.peer("b").tell(Note(100))
        await steps()
        assert far.heard == list(range(8))
        far.gate.set()
        await asyncio.wait(asks)
        await steps()
        assert far.heard == [*range(10), 100]


async def test_an_ordinary_method_that_fails_or_refuses_is_reported() -> None:
    far = Prompt()
    async with linked(far=(far,)) as (a, b):
        events = b.events()
        for n in (-1, 2000, 5):
            await a.peer("b").tell(Note(n))
        await steps()
        assert far.heard == [-1, 2000, 5]
        assert b.statistics().handler_failures == 1
        assert b.statistics().violations == 1
        assert [type(event) for event in (await anext(events), await anext(events))] == [HandlerFailed, PeerMisbehaved]


async def test_a_full_window_of_tells_holds_the_teller_until_handlers_end() -> None:
    far = Gated()
    async with linked(far=(far,)) as (a, _):

        async def tell() -> None:
            for n in range(100):
                await a.peer("b").tell(Note(n))

        telling = asyncio.create_task(tell())
        await asyncio.sleep(1)
        assert a.peer("b").connection().session.tells_left == 0
        assert len(far.begun) == 8
        far.gate.set()
        await telling
        await steps()
        assert far.ended == list(range(100))


async def test_tells_that_wait_go_in_the_order_in_which_they_began_to() -> None:
    far = Gated()
    async with linked(far=(far,)) as (a, _):
        telling = [asyncio.create_task(a.peer("b").tell(Note(n))) for n in range(100)]
        await steps()
        far.gate.set()
        await asyncio.wait(telling)
        await steps()
        assert far.begun == list(range(100))


async def test_handlers_that_are_cancelled_or_fail_give_their_credit_back() -> None:
    class Moody:
        @Note.handler
        async def note(self, note: Note, peer: Peer) -> None:
            if note.n % 2:
                raise asyncio.CancelledError
            raise ValueError("in a mood")

    async with linked(far=(Moody(),)) as (a, b):
        async with asyncio.timeout(1):
            for n in range(200):
                await a.peer("b").tell(Note(n))
        assert b.statistics().handler_failures >= 90


async def test_asks_beyond_the_window_wait_and_then_go() -> None:
    far = Gated()
    async with linked(far=(far,)) as (a, _):
        asks = tasks_of(a.peer("b"), 100)
        await steps()
        assert len(a.peer("b").connection().open_asks()) == 64
        far.gate.set()
        assert [(await ask).n for ask in asks] == list(range(1, 101))


# -- failures ----------------------------------------------------------------------------------------------------------


async def test_a_failing_handler_answers_its_asker_and_the_node_lives() -> None:
    async with linked(far=(Echo(),)) as (a, b):
        log = Log(b)
        with pytest.raises(RemoteError) as caught:
            await a.peer("b").ask(Ping(-1))
        assert (caught.value.node, caught.value.request) == ("b", "Ping")
        assert caught.value.reason == "ValueError: it is negative"
        assert [event.reason for event in log.of(HandlerFailed)] == ["ValueError: it is negative"]
        assert (await a.peer("b").ask(Ping(1))).n == 2
        assert b.statistics().handler_failures == 1
        assert b.statistics().violations == 0


async def test_a_handler_that_cancels_itself_is_answered() -> None:
    class Tired:
        @Ping.handler
        async def ping(self, ask: Ping, peer: Peer) -> Pong:
            raise asyncio.CancelledError

    async with linked(far=(Tired(),)) as (a, _):
        with pytest.raises(RemoteError, match="cancelled"):
            await a.peer("b").ask(Ping(1))


async def test_an_unknown_request_is_answered_and_forgiven() -> None:
    async with linked() as (a, b):
        for _ in range(5):
            with pytest.raises(RemoteError, match="nothing here handles 'Ping'"):
                await a.peer("b").ask(Ping(1))
        b.add(Echo())
        assert (await a.peer("b").ask(Ping(1))).n == 2
        assert b.statistics().violations == 0


async def test_what_the_link_does_not_take_costs_no_place() -> None:
    class Text(Request[Pong]):
        text: str

    class Talker:
        @Text.handler
        async def text(self, ask: Text, peer: Peer) -> Pong:
            return Pong(len(ask.text))

        @Say.handler
        async def say(self, message: Say, peer: Peer) -> None: ...

        @Long.handler
        async def long(self, ask: Long, peer: Peer) -> Say:
            return Say("x" * 300_000)

    async with linked(far=(Talker(),)) as (a, _):
        peer = a.peer("b")
        for _ in range(100):
            with pytest.raises(MessageError, match="head"):
                await peer.ask(Text("x" * 300_000))
            with pytest.raises(MessageError, match="head"):
                await peer.tell(Say("x" * 300_000))
            with pytest.raises(MessageError, match="head"):
                await a.tell_all([peer], Say("x" * 300_000))
            with pytest.raises(MessageError, match="head"):
                async with a.ask_all([peer], Text("x" * 300_000)):
                    pass
        assert (await peer.ask(Text("abc"))).n == 3
        assert peer.connection().session.idle
        with pytest.raises(RemoteError, match=r"the reply cannot be sent: .*head"):
            await peer.ask(Long())


class Say(Message):
    text: str


class Long(Request[Say]):
    pass


# -- cancellation ------------------------------------------------------------------------------------------------------


async def test_to_cancel_an_ask_cancels_its_handler_and_frees_its_place() -> None:
    far = Gated()
    async with linked(far=(far,)) as (a, b):
        asks = tasks_of(a.peer("b"), 1)
        await steps()
        assert far.running == 1
        await ended(asks)
        await steps()
        assert far.cancelled == [0]
        assert a.peer("b").connection().session.idle
        assert b.peer("a").connection().session.idle


async def test_to_cancel_an_ask_that_queues_frees_its_place_and_it_never_begins() -> None:
    far = Gated()
    async with linked(far=(far,)) as (a, _):
        asks = tasks_of(a.peer("b"), 12)
        await steps()
        await ended(asks[8:11])
        await steps()
        far.gate.set()
        assert [(await ask).n for ask in (*asks[:8], asks[11])] == [*range(1, 9), 12]
        assert sorted(far.begun) == [*range(8), 11]
        assert a.peer("b").connection().session.idle


@pytest.mark.parametrize("turns", range(8))
async def test_an_ask_can_be_cancelled_at_any_moment(turns: int) -> None:
    """Before it leaves, on the wire, before the first step of its handler, in it, and when the reply is on its way."""
    far = Echo()
    async with linked(far=(far,)) as (a, b):
        for _ in range(100):
            asks = tasks_of(a.peer("b"), 1)
            await steps(turns)
            await ended(asks)
        await steps()
        assert a.peer("b").connection().session.idle
        assert b.peer("a").connection().session.idle
        assert a.peer("b").connection().session.asks_left == 64
        assert (await a.peer("b").ask(Ping(1))).n == 2


async def test_an_ask_that_is_still_on_the_wire_is_taken_back() -> None:
    far = Echo()
    network = MemoryNetwork(delay=lambda source, destination, size: 10.0)
    async with linked(far=(far,), network=network, settings=QUIET) as (a, b):
        received = b.peer("a").statistics().messages_received
        for _ in range(200):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.01):
                    await a.peer("b").ask(Ping(1))
        assert a.peer("b").connection().session.asks_left == 64
        await asyncio.sleep(30)
        assert b.peer("a").statistics().messages_received - received < 10


async def test_asks_that_wait_for_room_can_be_cancelled() -> None:
    far = Gated()
    async with linked(far=(far,)) as (a, _):
        asks = tasks_of(a.peer("b"), 70)
        await steps()
        await ended(asks[60:68])
        far.gate.set()
        assert [(await ask).n for ask in asks[:60] + asks[68:]] == [*range(1, 61), 69, 70]


async def test_a_place_that_is_freed_by_cancelling_goes_to_who_waits() -> None:
    far = Gated()
    async with linked(far=(far,)) as (a, _):
        asks = tasks_of(a.peer("b"), 65)
        await steps()
        await ended(asks[:64])
        await steps()
        far.gate.set()
        assert (await asks[64]).n == 65


async def test_a_handler_that_answers_in_spite_of_its_cancellation() -> None:
    class Stubborn:
        @Ping.handler
        async def ping(self, ask: Ping, peer: Peer) -> Pong:
            with suppress(asyncio.CancelledError):
                await asyncio.sleep(10)
            return Pong(1)

    async with linked(far=(Stubborn(),)) as (a, _):
        asks = tasks_of(a.peer("b"), 3)
        await steps()
        await ended(asks)
        await steps()
        assert a.peer("b").connection().session.idle
        assert a.peer("b").connected


async def test_a_room_that_comes_as_the_link_ends_traps_nobody() -> None:
    far = Gated()
    network = MemoryNetwork()
    async with linked(far=(far,), network=network) as (a, _):
        asks = tasks_of(a.peer("b"), 70)
        await steps()
        connection = a.peer("b").connection()
        connection._make_room()
        connection.link.abort(LinkClosed("now"))
        await asyncio.wait(asks, timeout=1)
        assert all(isinstance(ask.exception(), LinkError) for ask in asks)


# -- back-pressure of bulk ---------------------------------------------------------------------------------------------


class Bulk(Message):
    params: Tensors


class Fetch(Request[Bulk]):
    pass


def megabytes(count: int) -> Tensors:
    spec = TensorSpec("w", "u8", (count << 20,))
    return Tensors((spec,), (memoryview(bytes(spec.nbytes)),))


class Store:
    def __init__(self) -> None:
        self.params = megabytes(1)
        self.answered = 0

    @Bulk.handler
    async def bulk(self, message: Bulk, peer: Peer) -> None: ...

    @Fetch.handler
    async def fetch(self, ask: Fetch, peer: Peer) -> Bulk:
        self.answered += 1
        return Bulk(self.params)


async def test_a_slow_reader_holds_back_tells_and_replies() -> None:
    network = MemoryNetwork(delay=lambda source, destination, size: size * 1e-6, limits=LinkLimits(high_water=3 << 19))
    store = Store()
    async with linked((Store(),), (store,), network=network) as (a, _):
        network.partition("a", "b")

        async def tell() -> None:
            for _ in range(20):
                await a.peer("b").tell(Bulk(megabytes(1)))

        telling = asyncio.create_task(tell())
        await asyncio.sleep(1)
        link: Any = a.peer("b").connection().link
        assert link._queued < 4 << 20
        network.heal("a", "b")
        await asyncio.sleep(1)
        assert not telling.done()
        await telling

        asks = [asyncio.create_task(a.peer("b").ask(Fetch())) for _ in range(30)]
        await until(lambda: store.answered)
        await asyncio.sleep(0.5)
        assert store.answered <= 10  # two fit, eight handlers wait for room
        for ask in asks:
            await ask


async def test_a_node_that_stops_while_replies_wait_for_room_answers_each_ask_once() -> None:
    network = MemoryNetwork(limits=LinkLimits(high_water=1000))
    store = Store()
    async with linked((), (store,), network=network) as (a, b):
        asks = [asyncio.create_task(a.peer("b").ask(Fetch())) for _ in range(5)]
        await until(lambda: store.answered == 5)
        network.partition("a", "b")
        await b.stop()
        await asyncio.wait(asks)
        assert not any(isinstance(ask.exception(), RemoteProtocolError) for ask in asks)


# -- keepalive ---------------------------------------------------------------------------------------------------------


async def test_silence_ends_the_link_after_five_seconds() -> None:
    network = MemoryNetwork()
    async with linked(network=network) as (a, b):
        logs = Log(a), Log(b)
        await asyncio.sleep(100)
        assert not any(log.of(PeerLost) for log in logs)
        start = asyncio.get_running_loop().time()
        network.partition("a", "b")
        await asyncio.sleep(10)
        for log in logs:
            (lost,) = log.of(PeerLost)
            assert "nothing was heard for" in lost.reason
            assert 3.7 <= log.times(PeerLost)[0] - start <= 5.1
        network.heal("a", "b")


async def test_an_ask_in_silence_ends() -> None:
    network = MemoryNetwork()
    far = Gated()
    async with linked(far=(far,), network=network) as (a, _):
        asks = tasks_of(a.peer("b"), 70)
        await steps()
        network.partition("a", "b")
        async with asyncio.timeout(5.1):
            await asyncio.wait(asks)
        kinds = {type(ask.exception()) for ask in asks}
        assert kinds == {LinkSilent, LinkClosed}  # asked; and waiting to ask
        await asyncio.sleep(2)
        assert len(far.cancelled) == 8
        network.heal("a", "b")


async def test_a_short_silence_does_no_harm() -> None:
    network = MemoryNetwork()
    async with linked(far=(Echo(),), network=network) as (a, _):
        log = Log(a)
        network.partition("a", "b")
        asking = asyncio.create_task(a.peer("b").ask(Ping(1)))
        await asyncio.sleep(3)
        network.heal("a", "b")
        assert (await asking).n == 2
        assert not log.of(PeerLost)


@pytest.mark.parametrize("stall", [1.0, 4.0, 6.0, 1000.0])
async def test_a_loop_that_was_stalled_blames_nobody(stall: float) -> None:
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualLoop)
    async with linked(far=(Echo(),)) as (a, b):
        logs = Log(a), Log(b)
        for _ in range(5):
            await asyncio.sleep(1.7)
            loop.advance(stall)  # a long computation
        await asyncio.sleep(20)
        assert not any(log.of(PeerLost) for log in logs)
        assert (await a.peer("b").ask(Ping(1))).n == 2


async def test_pings_only_when_idle() -> None:
    async with linked(far=(Echo(),)) as (a, _):
        for _ in range(100):
            await a.peer("b").ask(Ping(1))
            await asyncio.sleep(0.5)
        before = a.statistics().messages_sent
        await asyncio.sleep(10)
        assert 8 <= a.statistics().messages_sent - before <= 20  # two nodes, each once in 1.25 s at most
        assert a.peer("b").statistics().rtt_seconds == 0.0


async def test_the_round_trip_is_measured() -> None:
    async with linked(network=MemoryNetwork(delay=lambda *_: 0.1)) as (a, _):
        await asyncio.sleep(10)
        assert a.peer("b").statistics().rtt_seconds == pytest.approx(0.2)


async def test_keepalive_costs_nothing_when_silence_is_endless() -> None:
    async with linked(settings=QUIET) as (a, _):
        await steps()
        before = a.statistics()
        await asyncio.sleep(1e6)
        assert a.statistics() == before


async def test_a_clock_that_rounds_does_not_make_the_keepalive_spin() -> None:
    network = MemoryNetwork()
    settings = NodeSettings(SessionLimits(silence_seconds=0.7))
    await asyncio.sleep(1e9 / 3)
    async with linked(network=network, settings=settings) as (a, _):
        await asyncio.sleep(10)
        assert a.peer("b").connected
        network.partition("a", "b")
        await asyncio.sleep(1)
        assert not a.peer("b").connected
        network.heal("a", "b")
