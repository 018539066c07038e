"""Schedules of faults: drawn from a seed, each fault does what it says and undoes it, and few are left by shrinking."""

from __future__ import annotations

import ast
import asyncio
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pfl.compute.inline import Inline
from p2pfl.errors import ConfigError, LinkError, RemoteError
from p2pfl.node.events import Event, PeerJoined, PeerLost
from p2pfl.node.settings import NodeSettings
from p2pfl.sim.disk import SimulatedDisk
from p2pfl.sim.loop import run_virtual
from p2pfl.sim.nemesis import (
    FAULTS,
    ClockJump,
    Clog,
    Corrupt,
    Crash,
    Cut,
    Fault,
    FullDisk,
    Ground,
    Lag,
    Mute,
    Partition,
    Rot,
    SlowDisk,
    haunt,
    schedule,
    shrink,
)
from p2pfl.sim.network import NetworkSpec
from p2pfl.sim.process import Process
from p2pfl.sim.world import World
from p2pfl.wire.message import Message, Request

RING = Ground(4, tuple((seat, (seat + step) % 4) for seat in range(4) for step in (1, 3)), 20.0)


class Pong(Message):
    pass


class Ping(Request[Pong]):
    pass


class Beats:
    """Asks its neighbour ten times a second for a minute, and notes when it was answered, and after how long."""

    def __init__(self) -> None:
        self.answered: list[tuple[float, float]] = []
        self.failed: list[float] = []

    async def run(self, node: Any) -> None:
        loop = asyncio.get_running_loop()
        while loop.time() < 60:
            (peer,) = await node.meet([1 - node.seat])
            begun = loop.time()
            try:
                await peer.ask(Ping())
                self.answered.append((begun, loop.time() - begun))
            except (LinkError, RemoteError):
                self.failed.append(loop.time())
            await asyncio.sleep(0.1)

    @Ping.handler
    async def ping(self, ask: Ping, peer: Any) -> Pong:
        return Pong()

    def longest(self, since: float, until: float) -> float:
        return max(took for begun, took in self.answered if since <= begun < until)


Events = list[tuple[float, int, Event]]


def beaten(*faults: Fault) -> tuple[World, Events, list[tuple[Fault, bool]]]:
    """Two nodes that ask each other, one another's round trip 20 ms, and these faults."""
    disks = {0: SimulatedDisk(Random(0))}
    world = World(
        2, lambda seat, compute: [Beats()], Inline(), NetworkSpec(latency_ms=10),
        mortal=True, settings=NodeSettings(), disks=disks,
    )  # fmt: skip
    events: Events = []
    told: list[tuple[Fault, bool]] = []

    async def play() -> None:
        nemesis = asyncio.create_task(haunt(world, faults, lambda fault, begins: told.append((fault, begins))))
        await world.run(lambda *event: events.append(event))
        await nemesis

    run_virtual(play())
    assert not world.memory.muted and not world.memory.lags, "all is undone"
    return world, events, told


def beats(world: World, seat: int = 0) -> Beats:
    (role,) = world.seats[seat].roles
    assert isinstance(role, Beats)
    return role


def lost(events: Events) -> list[tuple[float, int, str]]:
    return [(at, seat, event.reason) for at, seat, event in events if isinstance(event, PeerLost) and at < 55]


def test_without_faults_nothing_happens() -> None:
    world, events, told = beaten()
    assert not told and not lost(events) and not beats(world).failed
    assert beats(world).longest(0, 60) < 0.05


def test_a_crash() -> None:
    crash = Crash(10.0, 20.0, 1)
    world, events, told = beaten(crash)
    assert told == [(crash, True), (crash, False)]
    assert [(pytest.approx(at, abs=0.1), seat) for at, seat, _ in lost(events)] == [(10.0, 0)]
    assert min(begun for begun, _ in beats(world, 1).answered) > 20
    assert str(crash) == " 10.000 s to  20.000 s: seat 1 is killed, and restarted"


def test_a_silent_crash_is_found_out_by_pings() -> None:
    _, events, _ = beaten(Crash(10.0, 40.0, 1, silently=True))
    (at, seat, reason), *_ = lost(events)
    assert seat == 0 and 14 < at < 16 and reason.startswith("nothing was heard for")


def test_crashes_that_overlap_kill_once_and_restart_once() -> None:
    _, events, _ = beaten(Crash(10.0, 30.0, 1), Crash(15.0, 20.0, 1))
    (joined,) = [at for at, seat, event in events if isinstance(event, PeerJoined) and seat == 1 and at > 1]
    assert 20 < joined < 25


def test_a_crash_of_who_is_through_is_none() -> None:
    world, _, _ = beaten(Crash(90.0, 91.0, 1))
    assert not world.down(1)


def test_a_cut() -> None:
    world, events, _ = beaten(Cut(10.0, 10.0, 0, 1))
    assert sorted(seat for _, seat, _ in lost(events)) == [0, 1]
    assert len(beats(world).failed) <= 1 and len(beats(world).answered) > 400


def test_a_partition_and_a_clog_hold_up_and_let_go() -> None:
    for fault in (Partition(10.0, 12.0, (0,)), Clog(10.0, 12.0, (0,))):
        world, events, _ = beaten(fault)
        assert not lost(events)
        assert 1.5 < beats(world).longest(9, 12) < 2.2 and beats(world).longest(12, 55) < 0.05


def test_a_long_partition_is_found_out_by_pings_at_both_ends() -> None:
    _, events, _ = beaten(Partition(10.0, 30.0, (0,)))
    assert sorted({seat for at, seat, _ in lost(events) if at < 16}) == [0, 1]


def test_a_one_way_link_is_closed_at_both_ends() -> None:
    """F10: who hears nothing finds out by missing pongs."""
    _, events, _ = beaten(Mute(10.0, 40.0, 0, 1))
    assert {seat for _, seat, _ in lost(events)} == {0, 1}
    assert all(at < 21 for at, _, _ in lost(events)), "found out, and for good"


def test_a_lag() -> None:
    world, events, _ = beaten(Lag(10.0, 20.0, 0, 1, 0.5))
    assert not lost(events)
    assert beats(world).longest(10, 20) == pytest.approx(0.52, abs=0.05) and beats(world).longest(21, 55) < 0.05


def test_a_bit_that_turns_ends_a_link() -> None:
    world, events, _ = beaten(Corrupt(10.0, 10.0, 0, 1))
    _, seat, reason = lost(events)[0]
    assert seat == 1 and "do not decrypt" in reason
    assert len([at for at in beats(world).failed if at < 55]) == 1


async def test_disks_become_slow_and_full_and_are_well_again() -> None:
    disk = SimulatedDisk(Random(0))
    world = World(2, lambda seat, compute: [], Inline(), disks={0: disk})
    was = disk.sync_seconds
    for fault, wrong in ((SlowDisk(0, 1, 0, 2.0), (was + 2, False)), (FullDisk(0, 1, 0), (was, True))):
        await fault.begin(world)
        assert (pytest.approx(disk.sync_seconds), disk.full) == wrong
        await fault.end(world)
        assert disk.sync_seconds == pytest.approx(was) and not disk.full
    for fault in (SlowDisk(0, 1, 1, 2.0), FullDisk(0, 1, 1)):  # a seat without a disk
        await fault.begin(world)
        await fault.end(world)


async def test_files_rot() -> None:
    disk = SimulatedDisk(Random(0), sync_seconds=0.0)
    world = World(2, lambda seat, compute: [], Inline(), disks={0: disk})
    await Rot(0, 0, 0, 0.5).begin(world)  # there is none yet
    for name in "abcd":
        await disk.write(name, bytes(8))
    await Rot(0, 0, 0, 0.6).begin(world)
    await Rot(0, 0, 1, 0.6).begin(world)  # a seat without a disk
    assert [name for name in "abcd" if disk.read(name) != bytes(8)] == ["c"]


def test_a_clock_jumps_and_no_deadline_notices() -> None:
    plain, jumped = beaten()[0], beaten(ClockJump(10.0, 10.0, 0, -3600.0))[0]
    process = jumped.seats[0].process
    assert isinstance(process, Process) and process.wall_seconds == -3600
    assert beats(plain).answered == beats(jumped).answered


DEADLINES = ("courses", "node", "link", "wire", "sim", "aggregators", "learn")
STAMPS = {
    ("node", "membership.py", "time_ns"),  # a version, by which a record outruns that of an earlier life
    ("node", "probing.py", "time"),  # what a doctor compares: it measures how wrong the clock is
}


def test_no_deadline_depends_on_a_wall_clock() -> None:
    """Static: what waits goes by the clock of its loop."""
    root = Path(__file__).parents[2] / "p2pfl"
    used = {
        (folder, path.name, node.attr)
        for folder in DEADLINES
        for path in (root / folder).glob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) in ("time", "datetime", "datetime.datetime")
        if node.attr in ("time", "time_ns", "now", "utcnow", "today", "monotonic")
    }
    assert {use for use in used if use[:2] != ("sim", "process.py")} <= STAMPS


@given(st.integers(0, 10**9), st.sets(st.sampled_from(sorted(FAULTS))))
def test_a_schedule_depends_on_its_seed_only_and_ends_in_time(seed: int, kinds: set[str]) -> None:
    faults = schedule(seed, RING, kinds)
    assert faults == schedule(seed, RING, sorted(kinds, reverse=True))
    assert bool(faults) == bool(kinds)
    assert list(faults) == sorted(faults, key=lambda fault: (fault.at, fault.until))
    for fault in faults:
        assert 0 <= fault.at <= fault.until <= RING.seconds, "and then all is quiet"
        assert fault.what in str(fault)


def test_every_kind_is_drawn_and_no_other() -> None:
    for kind in FAULTS:
        drawn = {type(fault) for seed in range(30) for fault in schedule(seed, RING, [kind])}
        assert drawn and (len(drawn) == 1 or kind in ("disk", "rot"))
    every = {type(fault) for seed in range(100) for fault in schedule(seed, RING)}
    assert every == {ClockJump, Clog, Corrupt, Crash, Cut, FullDisk, Lag, Mute, Partition, Rot, SlowDisk}


def test_a_swizzle_clogs_one_by_one_and_restores_in_another_order() -> None:
    orders = []
    for seed in range(20):
        faults = [fault for fault in schedule(seed, RING, ["swizzle"]) if isinstance(fault, Clog)]
        ends = [fault.side for fault in sorted(faults, key=lambda fault: fault.until)]
        orders.append([fault.side for fault in faults] == ends)
    assert not all(orders)


def test_a_kind_that_is_none_is_refused() -> None:
    with pytest.raises(ConfigError, match="faults: 'earthquake' is no kind of fault; choose some of crash, vanish"):
        schedule(0, RING, ["earthquake"])


@given(st.sets(st.integers(0, 9), max_size=3))
def test_shrinking_leaves_just_the_faults_that_it_takes(needed: set[int]) -> None:
    faults = [ClockJump(float(number), float(number), number, 1.0) for number in range(10)]

    def fails(fewer: Sequence[Fault]) -> bool:
        return needed <= {fault.seat for fault in fewer if isinstance(fault, ClockJump)}

    assert {fault.seat for fault in shrink(faults, fails) if isinstance(fault, ClockJump)} == needed


def test_shrinking_looks_again_at_what_was_needed_before() -> None:
    """Either of two will do: only one of them is left."""
    faults = [ClockJump(float(number), float(number), number, 1.0) for number in range(4)]
    assert len(shrink(faults, lambda fewer: len(fewer) in (4, 2, 1))) == 4, "from four no single one can be left out"
    assert len(shrink(faults, lambda fewer: len(fewer) >= 1)) == 1
