import asyncio
import os
import subprocess
import sys
from pathlib import Path

import pytest

from p2pfl.compute.inline import Inline
from p2pfl.node.events import Event, PeerJoined
from p2pfl.sim.loop import Stalled, run_virtual
from p2pfl.sim.network import NetworkSpec
from p2pfl.sim.world import World
from p2pfl.wire.message import Message, Request


class Pong(Message):
    text: str


class Ping(Request[Pong]):
    text: str


class Echo:
    """Answers, for so many seconds."""

    def __init__(self, seconds=1.0):
        self.seconds = seconds

    async def run(self, node):
        await asyncio.sleep(self.seconds)

    @Ping.handler
    async def ping(self, ask: Ping, peer) -> Pong:
        return Pong(f"{ask.text} from {peer.seat}")


class Asker:
    """Asks the next seat once."""

    async def run(self, node):
        (peer,) = await node.meet([node.seat + 1])
        self.answer = await peer.ask(Ping("hello"))
        self.at = asyncio.get_running_loop().time()


def nothing(seconds, seat, event):
    pass


def test_nodes_play_their_roles_at_the_distance_that_the_network_says():
    events: list[tuple[float, int, Event]] = []
    world = World(2, lambda seat, compute: (Echo() if seat else Asker(),), Inline(), NetworkSpec(latency_ms=100))
    run_virtual(world.run(lambda *event: events.append(event)))
    (asker,) = world.seats[0].roles
    assert asker.answer == Pong("hello from 0")
    assert asker.at == pytest.approx(0.2, abs=0.001)
    assert {seat for _, seat, event in events if isinstance(event, PeerJoined)} == {0, 1}
    assert world.seats[1].node.name == "seat 1" and world.seats[1].node.seat == 1
    assert world.wire.packets > 0


class Broken:
    async def run(self, node):
        await asyncio.sleep(0.5)
        raise LookupError(f"seat {node.seat} has lost its way")


class Cleans:
    """Notes that it was ended."""

    ended = False

    async def run(self, node):
        try:
            await asyncio.sleep(1000)
        finally:
            self.ended = True


class Twin(Broken):
    pass


@pytest.mark.parametrize("roles", [(Broken,), (Broken, Twin), (Cleans, Broken)], ids=["alone", "twins", "with others"])
def test_the_first_error_of_a_role_ends_it_all_and_is_raised_as_it_is(roles):
    """Not in a group, however many roles fail at once, and with the line where it happened."""
    world = World(3, lambda seat, compute: [role() for role in (roles if seat == 1 else (Cleans,))], Inline())
    with pytest.raises(LookupError, match="seat 1 has lost its way") as caught:
        run_virtual(world.run(nothing))
    assert caught.traceback[-1].name == "run"
    for seat in world.seats.values():
        assert all(role.ended for role in seat.roles if isinstance(role, Cleans))
        assert not seat.node.peers


async def test_it_tells_who_waits_for_what():
    class Waits:
        async def run(self, node):
            with node.waiting("better times"):
                await asyncio.Event().wait()

    class Deaf:
        """Never answers."""

        @Ping.handler
        async def ping(self, ask: Ping, peer) -> Pong:
            await asyncio.Event().wait()

        async def run(self, node):
            await asyncio.Event().wait()

    world = World(3, lambda seat, compute: [(Asker, Deaf, Waits)[seat]()], Inline())
    course = asyncio.create_task(world.run(nothing))
    await asyncio.sleep(10)
    assert world.waits() == ["seat 0: answers to Ping from seat 1", "seat 2: better times"]
    course.cancel()
    await asyncio.wait([course])
    assert course.cancelled()


class Leaves:
    """Is gone as soon as it has been seen."""

    async def run(self, node):
        await node.meet([0])


class Longs:
    """Waits for one who has left, and whom its node redials for ever."""

    async def run(self, node):
        (peer,) = await node.meet([1])
        await peer.gone()
        await node.meet([1])


def test_a_run_in_which_nothing_happens_any_more_is_stalled_and_says_who_waits_for_what():
    world = World(2, lambda seat, compute: [(Longs, Leaves)[seat]()], Inline())
    with pytest.raises(
        Stalled, match=r"nothing happened for 21600 virtual seconds: seat 0: links to 1 more of the seats 1"
    ):
        run_virtual(world.run(nothing))


class Works:
    """Computes for so many seconds."""

    def __init__(self, compute, seconds):
        self.compute, self.seconds = compute, seconds

    result_bytes = 0

    @property
    def examples(self):
        return int(self.seconds * 5000)

    def __call__(self):
        return None

    async def run(self, node):
        await self.compute.run(self)
        self.at = asyncio.get_running_loop().time()


def test_a_run_in_which_a_device_computes_is_not_stalled():
    world = World(1, lambda seat, compute: [Works(compute, 100_000)], Inline())
    run_virtual(world.run(nothing))
    assert world.seats[0].roles[0].at == pytest.approx(100_000)


SCRIPT = """
import torch
torch.set_num_threads(1)
from p2pfl.courses.adpsgd import ADPSGD, AdpsgdSettings
from p2pfl.courses.dpsgd import DPSGD, DpsgdSettings
from p2pfl.courses.fedavg import FEDAVG, FedAvgSettings
from p2pfl.sim.devices import DeviceSpec
from p2pfl.sim.network import NetworkSpec
from p2pfl.topology.families import build
from tests.courses.kit import Played
import hashlib

noisy = dict(network=NetworkSpec(jitter=1.0, latency_spread=1.0), devices=DeviceSpec(spread=1.0, stragglers=0.3))
for seed in (0, 1):
    for course, settings, topology in (
        (FEDAVG, FedAvgSettings(rounds=3, quorum=0.6, fraction=0.8, evaluate="both"), build("star", 7)),
        (DPSGD, DpsgdSettings(rounds=3, deadline_seconds=0.05), build("epidemic-local", 6, fanout=2)),
        (ADPSGD, AdpsgdSettings(rounds=3), build("ring", 6)),
    ):
        played = Played(course, settings, topology, seed=seed, **noisy).play()
        print(course.name, seed, played.world.wire.trace, hashlib.sha256(played.bytes).hexdigest())
"""


def test_two_processes_play_the_same_to_the_last_bit_and_another_seed_something_else():
    """Sets and dicts of objects have another order in every process, and must leave no mark."""
    root = Path(__file__).resolve().parents[2]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT],
            cwd=root,
            env=os.environ | {"PYTHONHASHSEED": seed},
            stdout=subprocess.PIPE,
            text=True,
        )
        for seed in ("1", "2")
    ]
    first, second = (process.communicate()[0].splitlines() for process in processes)
    assert [process.returncode for process in processes] == [0, 0]
    assert first == second
    assert len(first) == 6
    digests = [line.split()[2:] for line in first]
    assert len({trace for trace, _ in digests}) == len({models for _, models in digests}) == 6


class Caller:
    """Asks a few of those who sleep, again and again."""

    def __init__(self, calls, asks=1):
        self.calls, self.asks = calls, asks
        self.answers = []
        self.awake = []

    async def run(self, node):
        for seats in self.calls:
            peers = await node.call(seats)
            for peer in peers:
                for _ in range(self.asks):
                    self.answers.append((peer.seat, (await peer.ask(Ping("hello"))).text))
            self.awake.append(sorted(world_of[self].seats))
            await node.dismiss(peers)


class Sleeper:
    async def run(self, node):
        await asyncio.sleep(10**6)

    @Ping.handler
    async def ping(self, ask: Ping, peer) -> Pong:
        return Pong(f"{ask.text} from {peer.seat}")


world_of: dict[Caller, World] = {}


def called(calls, n=1_000_000, latency_ms=20.0):
    caller = Caller(calls)
    world = World(
        n, lambda seat, compute: (Sleeper() if seat else caller,), Inline(), NetworkSpec(latency_ms=latency_ms),
        sleepers=range(1, n),
    )  # fmt: skip
    world_of[caller] = world
    events: list[tuple[float, int, Event]] = []
    run_virtual(world.run(lambda *event: events.append(event)))
    return caller, world, events


@pytest.mark.parametrize("latency_ms", [0.0, 20.0])
def test_a_million_nodes_sleep_until_they_are_called(latency_ms):
    calls = [[5, 999_999], [7], [5, 7], [5], [5]]
    caller, world, _ = called(calls, latency_ms=latency_ms)
    assert caller.answers == [(seat, "hello from 0") for seats in calls for seat in seats]
    assert caller.awake == [[0, *seats] for seats in calls], "who was not called is not there, and goes to sleep again"
    assert sorted(world.seats) == [0]
    assert world.seats[0].node.statistics().peers == 0
    assert len(world._register._made) < 5


def test_an_error_of_one_who_was_woken_ends_the_run():
    class Fails(Sleeper):
        async def run(self, node):
            raise LookupError("bad dreams")

    caller = Caller([[1]])
    world = World(3, lambda seat, compute: (Fails() if seat else caller,), Inline(), sleepers=range(1, 3))
    world_of[caller] = world
    with pytest.raises(LookupError, match="bad dreams"):
        run_virtual(world.run(nothing))


def test_calls_are_as_reproducible_as_all_else():
    first, second = (called([[3, 4], [4]])[1].wire.trace for _ in range(2))
    assert first == second != called([[3, 4], [5]])[1].wire.trace
