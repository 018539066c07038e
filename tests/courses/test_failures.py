"""What goes wrong within a node, and with what is sent twice: rounds fail, and nodes go on. See DESIGN.md."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Coroutine, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch

from p2pfl.compute.job import Compute, FitJob
from p2pfl.compute.threads import Threads
from p2pfl.courses.adpsgd import ADPSGD, AdpsgdSettings
from p2pfl.courses.course import Course
from p2pfl.courses.d2 import D2, D2Settings
from p2pfl.courses.dpsgd import DPSGD, DpsgdSettings, Mixer
from p2pfl.courses.fedavg import FEDAVG, FedAvgSettings
from p2pfl.courses.hierarchical import HIERARCHICAL, HierarchicalSettings
from p2pfl.courses.learner import Learner
from p2pfl.courses.pushsum import PUSHSUM, PushsumSettings
from p2pfl.courses.relaysgd import RELAYSGD, RelaysgdSettings
from p2pfl.errors import CourseError
from p2pfl.learn.specs import TrainSpec
from p2pfl.node.events import CourseEnded, HandlerFailed, PeerLost, RoundEnded, RoundStarted, UpdateMissing
from p2pfl.node.node import Node
from p2pfl.node.peer import Peer
from p2pfl.node.settings import NodeSettings
from p2pfl.sim.devices import DeviceSpec
from p2pfl.sim.loop import VirtualLoop
from p2pfl.topology.families import build
from p2pfl.wire.message import Message, Request
from tests.compute.kit import Gate
from tests.courses.kit import Played
from tests.node.kit import Echo, Ping, Pong, linked

LIVELY = NodeSettings(report_seconds=math.inf, backoff_most_seconds=2.0)  # with pings: a link that is silent ends
LIMIT_SECONDS = 7.0
SICK = 2  # the seat whose training fails
FOREVER = None

Ills = dict[int, Exception | None]  # round, from 0 -> what training raises in it, or FOREVER
COURSES: dict[str, tuple[Course, Any, str, int]] = {  # course, settings, topology
    "fedavg": (FEDAVG, FedAvgSettings(rounds=4), "star", 5),
    "elected": (FEDAVG, FedAvgSettings(rounds=4, coordinator="elect"), "star", 5),
    "hierarchical": (HIERARCHICAL, HierarchicalSettings(rounds=4), "hierarchy", 7),
    "dpsgd": (DPSGD, DpsgdSettings(rounds=4), "ring", 5),
    "dpsgd, combine": (DPSGD, DpsgdSettings(rounds=4, order="combine"), "ring", 5),
    "d2": (D2, D2Settings(rounds=4), "ring", 5),
    "relaysgd": (RELAYSGD, RelaysgdSettings(rounds=4), "chain", 5),
    "adpsgd": (ADPSGD, AdpsgdSettings(rounds=4, patience_seconds=1e4), "ring", 5),
    "pushsum": (PUSHSUM, PushsumSettings(rounds=4), "ring", 5),
}
GOSSIP = [name for name, (course, *_) in COURSES.items() if course in (DPSGD, D2, RELAYSGD, ADPSGD, PUSHSUM)]


@dataclass
class Ailing:
    """The compute of a seat whose training fails, or hangs, in some rounds."""

    compute: Compute
    ills: Ills

    @property
    def parallel(self) -> int:
        return self.compute.parallel

    @property
    def examples_per_second(self) -> float | None:
        return self.compute.examples_per_second

    async def run(self, job: Any) -> Any:
        if isinstance(job, FitJob) and job.round in self.ills:
            if (ill := self.ills[job.round]) is not FOREVER:
                raise ill
            await asyncio.Event().wait()
        return await self.compute.run(job)

    async def run_all(self, jobs: Sequence[Any]) -> list[Any]:
        return [await self.run(job) for job in jobs]

    async def close(self) -> None:
        await self.compute.close()


@dataclass
class Stricken(Played):
    """A course in which the training of one seat fails."""

    sick: int = SICK
    ills: Ills = field(default_factory=dict)

    def learner(self, seat: int, compute: Compute | None = None) -> Learner:
        compute = compute or self.compute
        return super().learner(seat, Ailing(compute, self.ills) if seat == self.sick else compute)


def stricken(name: str, ills: Ills, sick: int = SICK) -> Stricken:
    course, settings, family, n = COURSES[name]
    train = TrainSpec(lr=0.5, batch_size=8, limit_seconds=LIMIT_SECONDS)
    sick = 5 if name == "hierarchical" else sick  # a leaf
    return Stricken(course, settings, build(family, n), train=train, sick=sick, ills=ills)


def rounds(played: Played) -> dict[int, list[int]]:
    """Those that each seat has ended."""
    found: dict[int, list[int]] = {}
    for _, seat, event in played.events:
        if isinstance(event, RoundEnded):
            found.setdefault(seat, []).append(event.round)
    return found


# -- F25: training that fails ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ill", "words"),
    [
        (ZeroDivisionError("no batches"), "local training failed: ZeroDivisionError: no batches"),
        (RuntimeError("[enforce fail] not enough memory"), "RuntimeError: [enforce fail] not enough memory"),
        (MemoryError(), "local training failed: MemoryError"),
        (FOREVER, "it took longer than train.limit_seconds = 7; raise that"),
    ],
    ids=["raises", "torch has no memory", "python has no memory", "hangs"],
)
@pytest.mark.parametrize("name", COURSES)
def test_training_that_fails_costs_its_node_one_round(name: str, ill: Exception | None, words: str) -> None:
    played = stricken(name, {1: ill}).play()
    sick = f"seat {played.sick}"
    missing = [event for event in played.told(UpdateMissing) if event.peer == sick]
    assert [(event.round, event.cause) for event in missing] == [(2, "failed")]
    assert words in missing[0].reason
    assert all(found == [1, 2, 3, 4] for found in rounds(played).values())
    assert played.told(CourseEnded)
    assert not any(seat.node.statistics().violations for seat in played.world.seats.values())


def test_the_round_goes_on_without_whose_training_has_failed() -> None:
    played = stricken("fedavg", {1: MemoryError()}).play()
    assert [event.participants for event in played.told(RoundEnded, 0)] == [4, 3, 4, 4]
    (told,) = played.told(HandlerFailed, SICK)
    assert "ComputeError: local training failed: MemoryError" in told.reason


def test_a_neighbour_whose_training_has_failed_mixes_all_the_same() -> None:
    """Its own part is the model that it had: the oracle is D-PSGD in which it trains with a rate of zero."""
    course, settings, family, n = COURSES["dpsgd"]
    played = stricken("dpsgd", {round: MemoryError() for round in range(3)}).play()

    @dataclass
    class Idle(Played):
        def learner(self, seat: int, compute: Compute | None = None) -> Learner:
            learner = super().learner(seat, compute)
            return Learner(
                seat, self.seed, self.model, learner.train, Still(learner.compute) if seat == SICK else learner.compute,
                learner.shard, None, self.data.test,
            )  # fmt: skip

    idle = Idle(course, settings, build(family, n), train=TrainSpec(lr=0.5, batch_size=8)).play()
    assert played.bytes == idle.bytes
    assert all(event.participants == 3 for event in played.told(RoundEnded))


class Still(Ailing):
    """Trains from the fourth round on; before that it gives the model back that it was given."""

    def __init__(self, compute: Compute) -> None:
        super().__init__(compute, {})

    async def run(self, job: Any) -> Any:
        found = await self.compute.run(job)
        if isinstance(job, FitJob) and job.round < 3:
            found.params.copy_(job.params)
        return found


def test_a_coordinator_whose_own_training_fails_goes_on_to_coordinate() -> None:
    played = stricken("elected", {2: MemoryError(), 3: FOREVER}, sick=1)
    played.devices = DeviceSpec(20.0)
    played.__post_init__()
    played.world.mortal = True

    async def weather() -> None:
        await asyncio.sleep(0.5)
        played.world.kill(0, for_good=True)

    played.play(weather())
    ours = [event for event in played.told(UpdateMissing, 1) if event.peer == "seat 1"]
    assert [(event.round, event.cause) for event in ours] == [(3, "failed"), (4, "failed")]
    assert rounds(played)[1] == [1, 2, 3, 4]
    assert {event.reason for event in played.told(CourseEnded)} == {"all 4 rounds are done"}


@pytest.mark.parametrize("name", GOSSIP)
def test_a_node_that_has_never_trained_says_so_in_the_end(name: str) -> None:
    played = stricken(name, {round: OSError("no such file") for round in range(4)})
    with pytest.raises(CourseError, match=r"in no round has this node trained; at last .*OSError: no such file"):
        played.play()
    assert rounds(played)[SICK] == [1, 2, 3, 4]


# -- why an update is missing, in one word ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["fedavg", "dpsgd", "pushsum"])
def test_who_is_slow_is_late_and_who_is_gone_is_lost(name: str) -> None:
    course, settings, family, n = COURSES[name]
    hasty = replace(settings, deadline_seconds=5.0, rejoin_seconds=0.0)

    def recast(seat: int, roles: tuple[object, ...]) -> tuple[object, ...]:
        if seat == SICK:
            roles[0]._learner.compute.examples_per_second /= 10
        return roles

    late = Played(course, hasty, build(family, n), devices=DeviceSpec(20.0), recast=recast).play()
    lost = Played(course, hasty, build(family, n), devices=DeviceSpec(20.0))
    lost.world.mortal = True

    async def weather() -> None:
        await asyncio.sleep(0.5)
        lost.world.kill(SICK, for_good=True)

    lost.play(weather())
    for each, cause in ((late, "late"), (lost, "lost")):
        causes = {event.cause for event in each.told(UpdateMissing) if event.peer == f"seat {SICK}"}
        assert causes == {cause}


@pytest.mark.parametrize("name", ["fedavg", "dpsgd", "adpsgd"])
def test_what_cannot_be_used_is_said_to_be_so(name: str) -> None:
    """A model that diverges: a rate of learning that is far too high."""
    course, settings, family, n = COURSES[name]

    def recast(seat: int, roles: tuple[object, ...]) -> tuple[object, ...]:
        if seat == SICK:
            learner = roles[0]._learner
            object.__setattr__(learner, "train", TrainSpec(lr=1e38, batch_size=8))
        return roles

    played = Played(course, replace(settings, rounds=2), build(family, n), recast=recast).play()
    causes = {event.cause for event in played.told(UpdateMissing) if event.peer == f"seat {SICK}"}
    assert causes == {"unusable"}


# -- F26: training that takes long -------------------------------------------------------------------------------------


class Drill(Request[Pong]):
    """Train, for as long as the gate is closed."""


class Trains:
    """Trains where hosts do."""

    def __init__(self) -> None:
        self.threads, self.gate = Threads(), Gate()

    @Drill.handler
    async def drill(self, ask: Drill, peer: Peer) -> Pong:
        assert await self.threads.run(self.gate) == "through"
        return Pong(0)


@pytest.mark.sockets
async def test_a_node_answers_and_pings_while_it_trains() -> None:
    """On a real loop: who trains on the loop itself answers nothing before the gate is open, and this hangs."""
    role = Trains()
    async with asyncio.timeout(60), linked(far=(role, Echo())) as (server, client):
        training = asyncio.create_task(server.peer("b").ask(Drill()))
        await asyncio.to_thread(role.gate.begun.wait)
        for n in range(20):
            assert (await server.peer("b").ask(Ping(n))).n == n + 1
        while server.peer("b").statistics().rtt_seconds is None:  # noqa: ASYNC110 - until a pong has come
            await asyncio.sleep(0.01)
        assert not training.done()
        role.gate.let.set()
        await training
        assert client.peer("a").connected
    await role.threads.close()


# -- F15: what comes twice ---------------------------------------------------------------------------------------------


class Stutters(Mixer):
    """Tells every model three times."""

    async def run(self, node: Node) -> None:
        once = node.tell_all

        async def thrice(peers: Iterable[Peer], message: Message) -> list[Peer]:
            there = list(peers)
            for _ in range(2):
                await once(there, message)
            return await once(there, message)

        node.tell_all = thrice  # type: ignore[method-assign]  # what a careless program may do
        await super().run(node)


@pytest.mark.parametrize("order", ["adapt", "combine"])
def test_a_model_that_comes_again_changes_nothing(order: str) -> None:
    def stuttering(seat: int, roles: tuple[object, ...]) -> tuple[object, ...]:
        if seat == SICK:
            roles[0].__class__ = Stutters
        return roles

    settings = DpsgdSettings(rounds=4, order=order)
    plain, again = (Played(DPSGD, settings, build("ring", 5), recast=recast) for recast in (keep, stuttering))
    assert again.play().bytes == plain.play().bytes
    sent = [played.world.seats[SICK].node.statistics().messages_sent for played in (plain, again)]
    assert sent[1] >= sent[0] + 2 * 2 * 4
    assert not again.told(UpdateMissing)


def keep(seat: int, roles: tuple[object, ...]) -> tuple[object, ...]:
    return roles


# -- F21: clocks -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", COURSES)
def test_all_nodes_of_a_host_that_slept_for_ten_minutes_go_on_as_if_nothing_had_been(name: str) -> None:
    """The loop of all of them stands still: nobody blames anybody for the silence, and nothing is lost."""
    course, settings, family, n = COURSES[name]

    def play(*weather: Coroutine[Any, Any, None]) -> Played:
        played = Played(course, settings, build(family, n), devices=DeviceSpec(20.0))
        played.world.settings = LIVELY
        return played.play(*weather)

    async def sleep() -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        for _ in range(3):
            await asyncio.sleep(1.3)
            loop.advance(600)

    slept, plain = play(sleep()), play()
    assert slept.events[-1][0] > 1800 > plain.events[-1][0]
    assert not slept.told(UpdateMissing)
    assert [
        event for at, _, event in slept.events if isinstance(event, PeerLost) and at < slept.events[-1][0] - 6
    ] == []
    assert rounds(slept) == rounds(plain)
    if course is not ADPSGD:  # whose result depends on who is met when
        assert slept.bytes == plain.bytes


@pytest.mark.parametrize("name", ["fedavg", "elected", "dpsgd", "adpsgd", "pushsum"])
def test_one_host_that_sleeps_for_ten_minutes_is_done_without_and_welcome_afterwards(name: str) -> None:
    """To the others it falls silent; what was under way arrives when it is awake, over links that they have ended."""
    course, settings, family, n = COURSES[name]
    lasting = replace(settings, rounds=50, evaluate_every=50)  # rounds of 20 s
    played = Played(course, lasting, build(family, n), devices=DeviceSpec(1.8))
    played.world.settings = LIVELY
    memory, since, until = played.world.memory, 10.0, 610.0

    async def sleep() -> None:
        await asyncio.sleep(since)
        sleeper, *others = [played.world.peer_id(seat) for seat in sorted(range(n), key=lambda seat: seat != SICK)]
        played.world.seats[SICK].device.examples_per_second /= 25
        for other in others:
            memory.partition(sleeper, other)
        await asyncio.sleep(until - since)
        for other in others:
            memory.heal(sleeper, other)
        played.world.seats[SICK].device.examples_per_second *= 25

    played.play(sleep())
    lost = [at for at, seat, event in played.events if seat != SICK and isinstance(event, PeerLost)]
    ends = [
        (at, event.participants) for at, seat, event in played.events if seat == 0 and isinstance(event, RoundEnded)
    ]
    assert min(lost) < since + 6, "its silence is noticed"
    assert sum(since + 60 < at < until for at, _ in ends) > 10, "the others go on"
    assert len(ends) == 50 and ends[-1][1] == max(each for _, each in ends), "and are all there in the end"
    assert bool(torch.stack(played.params).isfinite().all())
    assert not any(seat.node.statistics().violations for seat in played.world.seats.values())


# -- F27: coming and going in the middle of a round --------------------------------------------------------------------


def test_a_client_that_comes_in_the_middle_of_a_round_is_asked_in_the_next_and_one_that_goes_is_not() -> None:
    settings = FedAvgSettings(rounds=6, evaluate="none", rejoin_seconds=0.0)
    played = Played(FEDAVG, settings, build("star", 5), devices=DeviceSpec(3.6))  # rounds of 15 s
    played.world.mortal, played.world.settings = True, LIVELY

    async def weather() -> None:
        await asyncio.sleep(3.0)
        played.world.kill(SICK)
        await asyncio.sleep(17.0)
        await played.world.restart(SICK)
        await asyncio.sleep(13.0)
        played.world.kill(3, for_good=True)

    played.play(weather())
    begun, ended = ([event.participants for event in played.told(kind, 0)] for kind in (RoundStarted, RoundEnded))
    assert begun == [4, 3, 4, 3, 3, 3]
    assert ended == [3, 3, 3, 3, 3, 3]
    assert played.missing == [(1, f"seat {SICK}"), (3, "seat 3")]
    assert {event.cause for event in played.told(UpdateMissing)} == {"lost"}
