import asyncio
import os
import subprocess
import sys
from pathlib import Path
from random import Random

import pytest

from p2pfl.compute.inline import Inline
from p2pfl.errors import LinkError
from p2pfl.node.events import Event, PeerJoined, PeerLost
from p2pfl.node.settings import NodeSettings
from p2pfl.sim.availability import AvailabilitySpec
from p2pfl.sim.devices import DeviceSpec
from p2pfl.sim.disk import SimulatedDisk
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
from p2pfl.app.build import prepare
from p2pfl.app.config import from_mapping
from p2pfl.app.simulate import simulate
from p2pfl.courses.adpsgd import ADPSGD, AdpsgdSettings
from p2pfl.courses.dpsgd import DPSGD, DpsgdSettings
from p2pfl.courses.fedavg import FEDAVG, FedAvgSettings
from p2pfl.sim.devices import DeviceSpec
from p2pfl.sim.disk import SimulatedDisk
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
    outcome = simulate(prepare(from_mapping({
        "seed": seed, "world": {"profile": "phones"}, "devices": {"examples_per_second": 0.3}, "topology": {"n": 31},
        "course": {"name": "fedavg", "rounds": 5, "quorum": 0.5, "deadline_seconds": 240.0, "min_clients": 2},
        "data": {"subsample": 0.2}, "partition": {"min_examples": 4}, "model": {"name": "logistic"},
    })))
    print("phones", seed, outcome.trace, hashlib.sha256(outcome.params.numpy().tobytes()).hexdigest())
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
    assert len(first) == 8
    digests = [line.split()[2:] for line in first]
    assert len({trace for trace, _ in digests}) == len({models for _, models in digests}) == 8


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
    assert len(world._register._made) < 5 and len(world.wire._pipes) < 3


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


def trace(folder, text):
    path = folder / "trace.csv"
    path.write_text(text)
    return AvailabilitySpec(trace=str(path))


class Leads:
    """Asks seat 1 for so long, and counts how often it was not answered."""

    def __init__(self, seconds):
        self.seconds = seconds
        self.answered = []
        self.lost = []

    async def run(self, node):
        loop = asyncio.get_running_loop()
        while loop.time() < self.seconds:
            (peer,) = await node.meet([1])
            try:
                await peer.ask(Ping("hello"))
                self.answered.append(loop.time())
            except LinkError:
                self.lost.append(loop.time())
            await asyncio.sleep(1)


class Follows(Works):
    """Works for an hour to answer."""

    def __init__(self, compute, seconds):
        super().__init__(compute, seconds)
        self.cancelled = 0

    async def run(self, node):
        await asyncio.Event().wait()

    @Ping.handler
    async def ping(self, ask: Ping, peer) -> Pong:
        try:
            await self.compute.run(self)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return Pong("done")


def test_who_goes_offline_loses_what_it_computes_and_who_is_away_at_the_end_is_not_waited_for(tmp_path):
    away = trace(tmp_path, "1,25,0\n1,100,1\n1,200,0\n")
    leads = Leads(180.0)
    events = []
    world = World(
        2, lambda seat, compute: [Follows(compute, 10.0) if seat else leads], Inline(),
        availability=away, coordinators=[0],
    )  # fmt: skip
    run_virtual(world.run(lambda *event: events.append(event)))
    (follows,) = world.seats[1].roles
    assert len(leads.lost) == follows.cancelled == 1
    assert leads.lost[0] == pytest.approx(25, abs=0.1)
    assert not [at for at in leads.answered if 25 < at < 100], "nobody answers while it is offline"
    assert len(leads.answered) > 5
    assert max(at for at, _, _ in events) < 240, "seat 1 would wait for ever"


def test_without_anybody_who_leaves_all_are_waited_for():
    world = World(
        2, lambda seat, compute: [Follows(compute, 10.0) if seat else Leads(60.0)], Inline(), coordinators=[0]
    )
    with pytest.raises(Stalled):
        run_virtual(world.run(nothing))


def test_a_world_in_which_all_is_over_is_stalled_even_if_nodes_come_and_go():
    churn = AvailabilitySpec(online_seconds=600.0, offline_seconds=600.0)
    world = World(2, lambda seat, compute: [(Longs, Leaves)[seat]()], Inline(), availability=churn)
    with pytest.raises(Stalled, match=r"nothing happened for 27600 virtual seconds: seat 0: links to 1 more"):
        run_virtual(world.run(nothing))


def test_a_sleeper_that_is_offline_is_not_woken_and_one_that_goes_offline_sleeps(tmp_path):
    class Calls:
        """Calls both at several times."""

        def __init__(self):
            self.came = []

        async def run(self, node):
            for pause in (5, 60, 100):
                await asyncio.sleep(pause)
                before = asyncio.get_running_loop().time()
                peers = await node.call([1, 2])
                assert asyncio.get_running_loop().time() < before + 1, "who sleeps is not waited for"
                self.came.append([peer.seat for peer in peers])
                if len(self.came) == 1:
                    await asyncio.sleep(10)  # seat 1 is lost meanwhile
                    self.left = [peer.seat for peer in node.peers]
                    self.awake = sorted(world.seats)
                    assert not world.memory.offline, "who sleeps is not on the network at all"
                await node.dismiss(peers)

    calls = Calls()
    world = World(
        3, lambda seat, compute: [Sleeper() if seat else calls], Inline(),
        sleepers=[1, 2], availability=trace(tmp_path, "1,10,0\n1,150,1\n"), coordinators=[0],
    )  # fmt: skip
    events = []
    run_virtual(world.run(lambda *event: events.append(event)))
    assert calls.came == [[1, 2], [2], [1, 2]]
    assert calls.left == [2] and calls.awake == [0, 2]
    assert next(seconds for seconds, seat, event in events if seat == 0 and isinstance(event, PeerLost)) == 10


async def test_after_the_end_nobody_comes_and_goes():
    churn = AvailabilitySpec(online_seconds=60.0, offline_seconds=1.0)
    await World(3, lambda seat, compute: [Echo(300.0)], Inline(), availability=churn).run(nothing)
    assert all(handle.cancelled() for handle in asyncio.get_running_loop()._scheduled)


def test_coordinators_have_devices_and_bandwidths_of_their_own():
    network = NetworkSpec(uplink_mbps=1, coordinator_mbps=50)
    world = World(
        2, lambda seat, compute: [Echo()], Inline(), network,
        DeviceSpec(100.0, coordinator_examples_per_second=900.0), coordinators=[0],
    )  # fmt: skip
    run_virtual(world.run(nothing))
    assert [seat.device.examples_per_second for seat in world.seats.values()] == [900, 100]
    rates = [8e-6 / pipe.seconds_per_byte for seat in world.seats.values() for pipe in world.wire.pipes(seat.node.id)]
    assert rates == pytest.approx([50, 50, 1, 100])


def test_links_break_if_so_wished():
    class Stays(Echo):
        def __init__(self):
            super().__init__(1000.0)

        async def run(self, node):
            node.want([1 - node.seat])
            await super().run(node)

    for every, most in ((100.0, 40), (0.0, 2)):
        events = []
        world = World(2, lambda seat, compute: [Stays()], Inline(), NetworkSpec(loss_every_seconds=every))
        run_virtual(world.run(lambda *event, events=events: events.append(event)))
        lost = sum(isinstance(event, PeerLost) for _, _, event in events)
        assert most / 5 <= lost <= most


def mortal(roles, n=2, **options):
    """A world whose nodes may be killed, and which pings."""
    return World(n, roles, Inline(), mortal=True, settings=NodeSettings(), **options)


async def killed(world, seat, at, back=None, **how):
    await asyncio.sleep(at)
    world.kill(seat, **how)
    if back is not None:
        await asyncio.sleep(back - at)
        await world.restart(seat)


def played_with(world, *happenings):
    events = []

    async def play():
        nemeses = [asyncio.create_task(happening) for happening in happenings]
        await world.run(lambda *event: events.append(event))
        for nemesis in nemeses:
            await nemesis

    run_virtual(play())
    return events


@pytest.mark.parametrize("silently", [False, True])
def test_who_is_killed_is_gone_without_a_goodbye_and_what_is_restarted_is_somebody_new(silently):
    leads, lives = Leads(60.0), []

    def roles(seat, compute):
        if seat == 0:
            return [leads]
        lives.append(Follows(compute, 0.1))
        return [lives[-1]]

    world = mortal(roles, coordinators=[0])
    events = played_with(world, killed(world, 1, 20.05, 30.0, silently=silently))
    assert len(lives) == 2 and lives[0] is not lives[1]
    (reason,) = [event.reason for seconds, seat, event in events if seat == 0 and isinstance(event, PeerLost)][:1]
    assert reason == ("nothing was heard for 5.0 s" if silently else "seat000000 is gone without a goodbye")
    (lost,) = [seconds for seconds, seat, event in events if seat == 0 and isinstance(event, PeerLost)][:1]
    assert 24 < lost < 25.2 if silently else lost == pytest.approx(20.1, abs=0.1)
    assert not [at for at in leads.answered if 20.2 < at < 30], "nobody answers for the dead"
    assert [at for at in leads.answered if at > 31]
    assert not [seconds for seconds, seat, _ in events if seat == 1 and 20.05 < seconds < 30], "the dead say nothing"


def test_a_run_goes_on_without_who_is_killed_for_good():
    world = mortal(lambda seat, compute: [Echo(50.0)], n=3)
    events = played_with(world, killed(world, 1, 5.0, for_good=True))
    assert not world.alive(1) and not world.down(1)
    assert max(seconds for seconds, _, _ in events) <= 50
    assert [number for number, seat in world.seats.items() if seat.through] == [0, 2]


def test_a_run_waits_for_a_coordinator_to_be_restarted():
    ends = []

    class Notes(Echo):
        async def run(self, node):
            await super().run(node)
            ends.append(asyncio.get_running_loop().time())

    world = mortal(lambda seat, compute: [Notes(20.0) if seat == 0 else Follows(compute, 1.0)], coordinators=[0])
    played_with(world, killed(world, 0, 5.0, back=300.0))
    assert ends == [320.0]


def test_what_a_killed_node_computes_and_what_it_raises_as_it_ends_is_lost():
    class Rages(Works):
        async def run(self, node):
            try:
                await super().run(node)
            finally:
                raise LookupError("from beyond")

    made = []

    def roles(seat, compute):
        made.append(Rages(compute, 1000.0) if seat else Echo(50.0))
        return [made[-1]]

    world = mortal(roles)
    played_with(world, killed(world, 1, 5.0, for_good=True))
    assert not hasattr(made[1], "at") and not world.seats[1].device.busy


def test_a_crash_loses_what_was_not_synced_and_nothing_else():
    disks = {0: SimulatedDisk(Random(0), sync_seconds=1.0)}
    found = []

    class Writes:
        async def run(self, node):
            found.append(sorted(disks[0].names()))
            for name in "abc":
                await disks[0].write(name, b"content")

    world = mortal(lambda seat, compute: [Writes()], n=1, disks=disks)
    played_with(world, killed(world, 0, 1.5, back=2.0))
    assert found == [[], ["a"]]
    assert sorted(disks[0].names()) == ["a", "b", "c"]


def test_after_the_end_nobody_is_restarted():
    world = mortal(lambda seat, compute: [Echo(5.0)])
    played_with(world, killed(world, 1, 1.0, back=100.0, for_good=True))
    assert not world.alive(1)


def test_an_error_of_a_role_ends_a_mortal_world_too():
    world = mortal(lambda seat, compute: [Broken() if seat else Cleans()])
    with pytest.raises(LookupError, match="seat 1 has lost its way"):
        played_with(world)


def test_a_wall_clock_outlives_its_process():
    world = mortal(lambda seat, compute: [Echo(50.0)])

    async def jump():
        await asyncio.sleep(1)
        world.seats[1].process.wall_seconds = 600.0

    played_with(world, jump(), killed(world, 1, 5.0, back=6.0))
    assert world.seats[1].process.wall_seconds == 600.0
