"""A course that only counts rounds, for tests of those who coordinate it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Coroutine
from dataclasses import dataclass, field
from random import Random
from typing import Any

import msgspec

from p2pfl.compute.inline import Inline
from p2pfl.council.consensus import same_round
from p2pfl.council.council import Council, Deposed
from p2pfl.council.motions import LeaderElected
from p2pfl.errors import LinkError
from p2pfl.journal.certificate import Certificate, Contribution
from p2pfl.node.events import Event
from p2pfl.node.settings import NodeSettings
from p2pfl.sim.disk import SimulatedDisk
from p2pfl.sim.loop import run_virtual
from p2pfl.sim.network import NetworkSpec
from p2pfl.sim.world import World

RUN = "counting"
VOTE = "vote"


@dataclass
class Counter:
    """While its council leads, it has a round certified every so often."""

    council: Council
    disk: SimulatedDisk
    round_seconds: float = 0.3
    over: bool = False
    deposed: int = 0

    async def run(self, node):
        while not self.over:
            if self.council.leads:
                try:
                    await self.play_round(node)
                except Deposed:
                    self.deposed += 1
            else:
                await node.change()

    async def play_round(self, node):
        lead = await self.council.led_by(node)
        if (certificate := self.council.pending) is None:
            await asyncio.sleep(self.round_seconds)
            before = self.council.committed
            round = 0 if before is None else before.round + 1
            by = Contribution(node.seat, node.id, f"update {round}", 1)
            certificate = Certificate(RUN, round, lead.term, f"model {round} of term {lead.term}", (by,))
            await self.disk.write(certificate.aggregate_hash, b"a model")
        signed = await self.council.certify(node, certificate)
        assert len(signed.signatures) >= len(self.council._voting._seats) // 2 + 1


@dataclass
class Counting:
    """A world of voters, and what has been committed in it so far."""

    n: int
    seed: int = 0
    round_seconds: float = 0.3
    world: World = field(init=False)
    disks: dict[int, SimulatedDisk] = field(init=False)
    parted: set[frozenset[int]] = field(default_factory=set)
    history: dict[int, Certificate] = field(default_factory=dict)
    elected: list[tuple[float, int, int, int]] = field(default_factory=list)  # when, who says so, term, seat

    def __post_init__(self) -> None:
        self.disks = {seat: SimulatedDisk(Random(seat)) for seat in range(self.n)}
        network = NetworkSpec(latency_ms=20, jitter=0.5)
        self.world = World(
            self.n, self.play, Inline(), network, seed=self.seed, mortal=True, disks=self.disks, settings=NodeSettings()
        )

    def play(self, seat: int, compute: object) -> tuple[object, ...]:
        disk = self.disks[seat]
        kept = disk.read(VOTE)
        restored = None if kept is None else msgspec.json.decode(kept, type=dict[str, int | str])

        async def keep(state):
            await disk.write(VOTE, msgspec.json.encode(dict(state)))

        async def hold(certificate, peer):
            if disk.read(certificate.aggregate_hash) is None:
                await asyncio.sleep(0.02)
                if peer is None or not peer.connected:
                    raise LinkError("nobody has it")
                content = self.disks[peer.seat].read(certificate.aggregate_hash)
                assert content is not None, "who shows a certificate has its model"
                await disk.write(certificate.aggregate_hash, content)

        council = Council(RUN, seat, range(self.n), keep, hold, restored)
        return council, Counter(council, disk, self.round_seconds)

    def council(self, seat: int) -> Council:
        return self.world.seats[seat].roles[0]

    def counter(self, seat: int) -> Counter:
        return self.world.seats[seat].roles[1]

    def observe(self, seconds: float, seat: int, event: Event) -> None:
        if isinstance(event, LeaderElected):
            self.elected.append((seconds, seat, event.term, event.seat))

    def check(self) -> None:
        """One certificate for each round, whoever knows it; nobody goes back."""
        for seat in self.world.seats:
            committed = self.council(seat).committed
            if committed is not None:
                known = self.history.setdefault(committed.round, committed)
                assert same_round(known, committed), f"two certificates for round {committed.round}"
                assert self.disks[seat].read(committed.aggregate_hash), "committed, and not held"

    def rounds(self, seat: int) -> int:
        committed = self.council(seat).committed
        return 0 if committed is None else committed.round + 1

    async def until(self, holds: Callable[[], bool], seconds: float = 60.0) -> float:
        """When it holds; looked at 50 times a second."""
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(seconds):
            while not holds():
                await asyncio.sleep(0.02)
                self.check()
        return loop.time()

    def leaders(self, *seats: int) -> set[int | None]:
        """Who leads, as these seats see it."""
        leads = [self.council(seat)._election.lead for seat in seats or range(self.n)]
        return {None if lead is None else lead.seat for lead in leads}

    def part(self, one: set[int], *, but: Collection[int] = (), silently: bool = False) -> None:
        """Let nothing pass between these seats and all others but some."""
        others = set(range(self.n)) - one - set(but)
        for pair in {frozenset((a, b)) for a in one for b in others} - self.parted:
            ends = [self.world.peer_id(seat) for seat in sorted(pair)]
            self.world.memory.partition(*ends)
            self.parted.add(pair)
            if not silently:
                self.world.memory.cut(*ends)

    def heal(self) -> None:
        """End all partitions."""
        while self.parted:
            self.world.memory.heal(*(self.world.peer_id(seat) for seat in self.parted.pop()))

    def cut(self, a: int, b: int) -> None:
        """End the link between two seats; they may make another one."""
        self.world.memory.cut(self.world.peer_id(a), self.world.peer_id(b))

    async def finish(self) -> None:
        """All have come to know the same."""
        for seat in self.world.seats:
            self.counter(seat).over = True
            self.council(seat).adjourn()
            self.world.seats[seat].node.stir()


def count(counting: Counting, script: Callable[[Counting], Coroutine[Any, Any, None]]) -> Counting:
    """Play the script beside the course, on a virtual loop."""

    async def both() -> None:
        course = asyncio.create_task(counting.world.run(counting.observe))
        await asyncio.sleep(0.1)
        story = asyncio.create_task(script(counting))
        await asyncio.wait([course, story], return_when=asyncio.FIRST_COMPLETED)
        if not story.done():
            story.cancel()
            await course
            raise AssertionError("the course has ended before the story")
        await counting.finish()
        if not story.cancelled() and story.exception() is not None:
            course.cancel()
            await asyncio.wait([course])
        else:
            await course
        await story

    run_virtual(both())
    counting.check()
    return counting
