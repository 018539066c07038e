"""A node as its users see it: entering, playing, meeting, stopping, and cancellation at any moment."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from p2pfl.errors import (
    ConfigError,
    CourseError,
    LinkError,
    ListenFailed,
    MessageError,
    RemoteError,
    UserError,
)
from p2pfl.link.memory import MemoryNetwork
from p2pfl.node.events import Listening, PeerLost
from p2pfl.node.node import Node
from p2pfl.sim.loop import VirtualLoop
from tests.node.kit import (
    SETTLED,
    Busy,
    Echo,
    Gated,
    Log,
    Note,
    Ping,
    Stranger,
    linked,
    make,
    steps,
    until,
)

# -- entering ----------------------------------------------------------------------------------------------------------


async def test_it_listens_and_says_where() -> None:
    node = make(MemoryNetwork(), "a", listen=["x", "y"])
    log = Log(node)
    assert node.addresses == ()
    async with node:
        assert node.addresses == ("memory:x", "memory:y")
        assert log.of(Listening) == [Listening(("memory:x", "memory:y"))]


async def test_it_can_be_entered_once() -> None:
    node = make(MemoryNetwork(), "a")
    async with node:
        with pytest.raises(UserError, match="entered once"):
            await node.__aenter__()
        assert node.addresses
    with pytest.raises(UserError, match="entered once"):
        await node.__aenter__()


async def test_a_door_that_cannot_be_opened_closes_the_others() -> None:
    network = MemoryNetwork()
    async with make(network, "a"):
        with pytest.raises(ListenFailed):
            await make(network, "b", listen=["x", "a"]).__aenter__()
        async with make(network, "c", listen=["x"]):
            pass


@pytest.mark.parametrize("name", ["x" * 201, "two\nlines"])
def test_names_are_for_people(name: str) -> None:
    with pytest.raises(ConfigError, match="name"):
        Node(transport=MemoryNetwork().transport("a"), name=name)


def test_roles_that_do_not_fit_are_said_at_construction() -> None:
    with pytest.raises(MessageError, match="Ping has two handlers"):
        Node(Echo(), Gated(), transport=MemoryNetwork().transport("a"))


async def test_two_nodes_of_a_kind_in_one_loop_have_nothing_in_common() -> None:
    async with linked((Echo(),), (Echo(),)), linked((Echo(),), (Echo(),)) as (a, _):
        assert (await a.peer("b").ask(Ping(1))).n == 2


async def test_repr_is_one_line() -> None:
    async with linked() as (a, _):
        assert repr(a) == "<Node a on memory:a, 1 peers>"
        await a.members.announce(seat=5)
        assert repr(a) == "<Node a seat 5 on memory:a, 1 peers>"
    assert repr(Node(transport=MemoryNetwork().transport("0123456789abc"))) == "<Node 0123456789, 0 peers>"


async def test_statistics() -> None:
    network = MemoryNetwork()
    async with make(network, "hub", Echo()) as hub, make(network, "x", peers=["hub"]) as x:
        async with make(network, "y", peers=["hub"]) as y:
            await until(lambda: len(hub.peers) == 2)
            await steps()
            for node in (x, y):
                await node.peer("hub").ask(Ping(1))
                with pytest.raises(RemoteError):
                    await node.peer("hub").ask(Ping(-1))
        await steps()
        found = hub.statistics()
        assert (found.peers, found.handler_failures, found.violations) == (1, 2, 0)
        assert found.messages_received == x.statistics().messages_sent + y.statistics().messages_sent
        assert found.bytes_sent == x.statistics().bytes_received + y.statistics().bytes_received


# -- playing -----------------------------------------------------------------------------------------------------------


class Runner:
    """Runs for a while, then maybe fails."""

    def __init__(self, seconds: float, error: Exception | None = None) -> None:
        self.seconds = seconds
        self.error = error
        self.ended = False

    async def run(self, node: Node) -> None:
        await asyncio.sleep(self.seconds)
        if self.error is not None:
            raise self.error
        self.ended = True


async def test_run_ends_when_all_roles_are_through() -> None:
    roles = Runner(1), Runner(5), Echo()
    async with make(MemoryNetwork(), "a", *roles) as node:
        start = asyncio.get_running_loop().time()
        await node.run()
        assert asyncio.get_running_loop().time() - start == 5
        assert roles[0].ended
        assert roles[1].ended


async def test_the_error_of_a_role_is_raised_as_it_is_and_ends_the_others() -> None:
    error = CourseError("it cannot go on")
    error.__cause__ = KeyError("because")
    slow = Runner(100)
    async with make(MemoryNetwork(), "a", Runner(1, error), slow) as node:
        with pytest.raises(CourseError) as caught:
            await node.run()
        assert caught.value is error
        assert isinstance(error.__cause__, KeyError)
        assert not slow.ended


async def test_an_error_that_follows_is_noted() -> None:
    class Touchy(Runner):
        async def run(self, node: Node) -> None:
            try:
                await super().run(node)
            except asyncio.CancelledError:
                raise KeyError("on the way out") from None

    async with make(MemoryNetwork(), "a", Touchy(100), Runner(1, CourseError("first"))) as node:
        with pytest.raises(CourseError, match="first") as caught:
            await node.run()
        assert caught.value.__notes__ == ["After it another role failed: KeyError('on the way out')"]


async def test_without_a_runner_it_serves_until_it_stops() -> None:
    async with linked((Echo(),), (Echo(),)) as (a, b):
        running = asyncio.create_task(a.run())
        await asyncio.sleep(1e3)
        assert not running.done()
        assert (await b.peer("a").ask(Ping(1))).n == 2
        await a.stop()
        await running


async def test_stop_ends_the_roles_in_peace() -> None:
    role = Runner(1e9)
    async with make(MemoryNetwork(), "a", role) as node:
        running = asyncio.create_task(node.run())
        await asyncio.sleep(1)
        await node.stop()
        await running
        await node.run()  # there is nothing to play any more
    assert not role.ended


async def test_a_role_may_stop_its_node() -> None:
    class Quitter:
        async def run(self, node: Node) -> None:
            await asyncio.sleep(1)
            await node.stop()
            raise AssertionError("it is cancelled by then")

    network = MemoryNetwork()
    async with make(network, "b", Echo()) as b:
        log = Log(b)
        async with make(network, "a", Quitter(), peers=["b"]) as a:
            await a.run()
        assert [event.reason for event in log.of(PeerLost)] == ["it said goodbye: the node stops"]


async def test_a_role_that_is_added_later_is_heard_and_played() -> None:
    async with linked() as (a, b):
        with pytest.raises(RemoteError, match="nothing here handles"):
            await a.peer("b").ask(Ping(1))
        role = Runner(1)
        b.add(Echo(), role)
        assert (await a.peer("b").ask(Ping(1))).n == 2
        await b.run()
        assert role.ended


async def test_run_can_be_cancelled() -> None:
    role = Runner(1e9)
    async with make(MemoryNetwork(), "a", role) as node:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(5):
                await node.run()
    assert not role.ended


# -- all together ------------------------------------------------------------------------------------------------------


async def test_changes_wake_all_who_wait_and_no_change_wakes_nobody() -> None:
    network = MemoryNetwork()
    async with make(network, "a") as node:
        woken: list[int] = []

        async def watch(n: int) -> None:
            while True:
                await node.change()
                woken.append(n)

        watching = [asyncio.create_task(watch(n)) for n in range(3)]
        await asyncio.sleep(1000)
        assert woken == []
        node.stir()
        node.stir()
        await steps()
        assert woken == [0, 1, 2]
        watching[1].cancel()
        await steps()
        await Stranger.dial(network, "s", "a")
        await steps()
        assert woken == [0, 1, 2, 0, 2]
        for task in watching:
            task.cancel()


async def test_tell_all_gives_back_whom_it_did_not_reach() -> None:
    role = Echo()
    async with linked((), (role,)) as (a, _):
        stranger = a.peer("nobody")
        assert await a.tell_all([a.peer("b"), stranger], Note(1)) == [stranger]
        await steps()
        assert role.notes == [1]


# -- a small network in which anything may happen ----------------------------------------------------------------------

NAMES = ("a", "b", "c")
PAIRS = (("a", "b"), ("a", "c"), ("b", "c"))


class Anything(RuleBasedStateMachine):
    """Whatever happens, every ask ends; and when all is quiet, a pair has one link or none, at both ends the same."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = VirtualLoop()
        self.troubles: list[dict[str, Any]] = []
        self.loop.set_exception_handler(lambda _, context: self.troubles.append(context))
        self.rng = random.Random(0)
        self.network = MemoryNetwork(delay=lambda *_: self.rng.choice((0.0, 0.01, self.rng.random())))
        self.nodes: dict[str, Node] = {}
        self.asks: list[asyncio.Task[Any]] = []
        for name in NAMES:
            self.start(name)

    def do(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self.loop.run_until_complete(work)

    async def called(self, change: Callable[[str, str], None], near: str, far: str) -> None:
        change(near, far)

    async def born(self, name: str) -> None:
        self.nodes[name] = await make(self.network, name, Busy(), seat=NAMES.index(name)).__aenter__()

    async def spawned(self, *works: Coroutine[Any, Any, Any]) -> None:
        self.asks += [asyncio.create_task(work) for work in works]
        await steps(1)

    @initialize(seed=st.integers(0, 1000))
    def seeded(self, seed: int) -> None:
        self.rng.seed(seed)

    @rule(name=st.sampled_from(NAMES))
    def start(self, name: str) -> None:
        if name not in self.nodes:
            self.do(self.born(name))

    @rule(name=st.sampled_from(NAMES))
    def stop(self, name: str) -> None:
        if name in self.nodes:
            self.do(self.nodes.pop(name).stop())

    @rule(pair=st.sampled_from(PAIRS), backwards=st.booleans())
    def dial(self, pair: tuple[str, str], backwards: bool) -> None:
        near, far = reversed(pair) if backwards else pair
        if near in self.nodes:

            async def dial() -> None:
                self.nodes[near]._dialler.want_address(far)

            self.do(dial())

    @rule(pair=st.sampled_from(PAIRS))
    def cut(self, pair: tuple[str, str]) -> None:
        self.do(self.called(self.network.cut, *pair))

    @rule(pair=st.sampled_from(PAIRS))
    def partition(self, pair: tuple[str, str]) -> None:
        self.do(self.called(self.network.partition, *pair))

    @rule(pair=st.sampled_from(PAIRS))
    def heal(self, pair: tuple[str, str]) -> None:
        self.do(self.called(self.network.heal, *pair))

    @rule(near=st.sampled_from(NAMES), far=st.sampled_from(NAMES), count=st.sampled_from((1, 3, 70)))
    def ask(self, near: str, far: str, count: int) -> None:
        if near in self.nodes:
            self.do(self.spawned(*(self.nodes[near].peer(far).ask(Ping(n)) for n in range(count))))

    @rule(near=st.sampled_from(NAMES), takes=st.integers(0, 3))
    def ask_all(self, near: str, takes: int) -> None:
        if near in self.nodes:
            self.do(self.spawned(ask_some(self.nodes[near], takes)))

    @rule(near=st.sampled_from(NAMES), count=st.sampled_from((1, 3, 40)))
    def tell_all(self, near: str, count: int) -> None:
        if near in self.nodes:
            peers = self.nodes[near].peers
            self.do(self.spawned(*(self.nodes[near].tell_all(peers, Note(n)) for n in range(count))))

    @rule(which=st.integers(0, 200))
    def cancel(self, which: int) -> None:
        if which < len(self.asks):
            self.asks[which].cancel()

    @rule(seconds=st.sampled_from((0.001, 0.02, 1.0, 3.0, 6.0, 40.0)))
    def wait(self, seconds: float) -> None:
        self.do(asyncio.sleep(seconds))

    def teardown(self) -> None:
        for pair in PAIRS:
            self.heal(pair)
        self.wait(SETTLED)
        for ask in self.asks:
            assert ask.done(), ask
            assert ask.cancelled() or ask.exception() is None or isinstance(ask.exception(), LinkError), ask
        for near, far in PAIRS:
            ends = [node.peer(other) for node, other in self._ends(near, far)]
            assert all(len(peer.connections) <= 1 for peer in ends)
            assert all(connection.session.idle for peer in ends for connection in peer.connections)
            assert len({peer.connected for peer in ends}) <= 1
            assert len({peer.connection().link.channel_id for peer in ends if peer.connected}) <= 1
        for name in NAMES:
            self.stop(name)
        assert not self.network.links
        assert not asyncio.all_tasks(self.loop)
        self.loop.close()
        assert not self.troubles

    def _ends(self, near: str, far: str) -> list[tuple[Node, str]]:
        both = ((near, far), (far, near))
        return [(self.nodes[name], other) for name, other in both if name in self.nodes]


async def ask_some(node: Node, takes: int) -> None:
    async with node.ask_all(node.peers, Ping(0)) as replies:
        while takes and await anext(replies, None):
            takes -= 1


TestAnything = Anything.TestCase
TestAnything.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
