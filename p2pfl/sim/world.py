"""All nodes of a course in one event loop: a MemoryNetwork between them, a modelled device for each."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count

from p2pfl.compute.job import Compute
from p2pfl.link.memory import MemoryNetwork
from p2pfl.node.events import Event, PeerLost
from p2pfl.node.node import Node
from p2pfl.node.settings import NodeSettings
from p2pfl.sim.availability import Availability, AvailabilitySpec
from p2pfl.sim.backlog import Backlog
from p2pfl.sim.devices import Device, DeviceSpec
from p2pfl.sim.disk import SimulatedDisk
from p2pfl.sim.loop import Stalled
from p2pfl.sim.losses import Losses
from p2pfl.sim.network import Network, NetworkSpec
from p2pfl.sim.presence import Presence
from p2pfl.sim.process import Process, note_tasks
from p2pfl.sim.register import Register
from p2pfl.sim.signer import SimulatedSigner
from p2pfl.wire.session import SessionLimits

__all__ = ["Observer", "Seat", "World"]

Observer = Callable[[float, int, Event], None]
"""Told of every event: seconds of virtual time, seat, event."""

# A link of this network ends visibly or never, and we watch for stalls: no pings, no reports.
_SETTINGS = NodeSettings(SessionLimits(silence_seconds=math.inf), report_seconds=math.inf)
_PARTING_SECONDS = 30.0  # in which those who hear that the course is over leave


@dataclass(slots=True)
class Seat:
    """A simulated node, with its roles."""

    node: Node
    roles: tuple[object, ...]
    device: Device
    tap: _Tap
    process: Process | None = None  # where nodes may be killed
    life: asyncio.Task[None] | None = None
    through: bool = False  # it has come to the end of what it plays by itself


@dataclass(slots=True, eq=False)
class _Tap:
    """An observer of one node's events."""

    seat: int
    observe: Observer
    loop: asyncio.AbstractEventLoop
    over: bool = False  # the node was killed

    def push(self, event: Event) -> None:
        if not self.over:
            self.observe(self.loop.time(), self.seat, event)

    def finish(self) -> None:
        return None


@dataclass(slots=True)
class World:
    """`n` nodes that know each other from the start, as if a registrar had seated them.

    `play(seat, compute)` gives the roles of a seat. Run it on a VirtualLoop.
    """

    n: int
    play: Callable[[int, Compute], Sequence[object]]
    compute: Compute
    network: NetworkSpec = field(default_factory=NetworkSpec)
    devices: DeviceSpec = field(default_factory=DeviceSpec)
    seed: int = 0
    sleepers: Collection[int] = ()
    """Seats whose nodes are made when somebody dials them, and are gone when their last link has ended. A million of
    them cost nothing. They have no state from one waking to the next."""
    availability: AvailabilitySpec = field(default_factory=AvailabilitySpec)
    coordinators: Collection[int] = ()
    """Seats that lead the others. They stay online, and have machines and bandwidths of their own."""
    patience_seconds: float = 21_600.0
    """Nothing sent and nothing computed for so long on the virtual clock: the run is stalled. Lost peers are redialled
    for ever, so the loop alone would not notice. Where nodes may be offline, it takes longer."""
    settings: NodeSettings = _SETTINGS
    """How patient the nodes are. With pings a run never counts as stalled."""
    mortal: bool = False
    """Whether nodes may be killed. Which node has made which task is noted then, and `play` runs in its process."""
    disks: Mapping[int, SimulatedDisk] = field(default_factory=dict)
    """What outlives the nodes, by seat."""
    seats: dict[int, Seat] = field(default_factory=dict, init=False)
    wire: Network = field(init=False)
    memory: MemoryNetwork = field(init=False)
    _register: Register = field(init=False)
    _availability: Availability = field(init=False)
    _presence: Presence = field(init=False)
    _backlog: Backlog = field(init=False)
    _group: asyncio.TaskGroup = field(init=False)
    _observe: Observer = field(init=False)
    _ending: bool = field(default=False, init=False)
    _down: dict[int, asyncio.Future[None]] = field(default_factory=dict, init=False)  # killed; done once restarted
    _killed: set[int] = field(default_factory=set, init=False)  # seats whose nodes were killed at some time
    _lives: count[int] = field(default_factory=count, init=False)  # of nodes, however often each begins anew

    def __post_init__(self) -> None:
        self._register = Register(self.n, self.sleepers, lambda seat: self._presence.online(seat))
        leading = {member.id for seat in self.coordinators if (member := self._register.member(seat)) is not None}
        self.wire = Network(self.network, self.seed, leading)
        losses = Losses(self.network.loss_every_seconds, self.seed) if self.network.loss_every_seconds else None
        self.memory = MemoryNetwork(lines=self.wire.line, wake=self._wake, opened=losses)
        self._availability = Availability(self.availability, self.seed, self.n, self.coordinators)
        self._presence = Presence(self._availability, self.memory, self.wire)
        self._backlog = Backlog(self.compute)
        self._group = asyncio.TaskGroup()

    async def run(self, observe: Observer) -> None:
        """Enter all nodes, let them play to the end, and stop them. The first error of a role ends it all."""
        self._observe = observe
        if self.mortal:
            note_tasks(asyncio.get_running_loop())
        try:
            residents = [number for number in range(self.n) if number not in self.sleepers]
            for number in residents:
                await self._enter(self._make(number))
            for number, seat in self.seats.items():
                self._presence.begin(number, seat.node.id)
            async with self._group:
                watch = self._group.create_task(self._watch())
                for seat in tuple(self.seats.values()):
                    self._begin(seat)
                await self._through(residents)
                watch.cancel()
                await self._close()
        except BaseExceptionGroup as errors:
            raise _first(errors) from None  # the others are its consequences
        finally:
            self._presence.close()
            await self._close()

    async def _close(self) -> None:
        """Stop all nodes, those that sleep too, if they are awake. What was killed is gone already."""
        self._ending = True
        for seat in tuple(self.seats.values()):
            if not seat.tap.over:
                await seat.node.stop()

    def kill(self, number: int, *, silently: bool = False, for_good: bool = False) -> None:
        """End the process of a node: without a goodbye, in the middle of whatever it does. On the running loop.

        What was written and not synced is lost, what its device computed, too. Its peers are told that the links have
        ended; if it goes `silently`, as by a cut of its power, they have to find out. The run waits for its `restart`,
        unless it goes `for_good`.
        """
        seat = self.seats[number]
        assert seat.process is not None, "only nodes of a mortal world can be killed"
        self.memory.kill(seat.node.id, silently=silently)
        self.wire.forget(seat.node.id)
        self._presence.end(seat.node.id)
        if number in self.disks:
            self.disks[number].crash()
        seat.tap.over = True
        seat.process.kill()
        self._killed.add(number)
        if not for_good and number not in self._down:
            self._down[number] = asyncio.get_running_loop().create_future()

    async def restart(self, number: int) -> None:
        """Begin the process of a node that was killed anew: another node, with roles as `play` gives them now."""
        if self._ending:
            return
        seat = self._make(number)
        await self._enter(seat)
        self._presence.begin(number, seat.node.id)
        self._begin(seat)
        self._down.pop(number).set_result(None)

    def alive(self, number: int) -> bool:
        """Whether the node of that seat is there, and has not come to its end."""
        seat = self.seats.get(number)
        return seat is not None and not seat.tap.over and seat.life is not None and not seat.life.done()

    def down(self, number: int) -> bool:
        """Whether the node of that seat was killed, and is to be restarted."""
        return number in self._down

    def peer_id(self, number: int) -> str:
        """The peer id of a seat."""
        member = self._register.member(number)
        assert member is not None, f"there is no seat {number}"
        return member.id

    def waits(self) -> list[str]:
        """What each node waits for at this moment. Call it on the running loop."""
        return [f"seat {number}: {what}" for number, seat in self.seats.items() for what, _ in seat.node.waits()]

    async def _through(self, residents: Sequence[int]) -> None:
        """Wait for all, except for those who were cut off when those who lead had ended: they never hear of it."""
        while waiting := [end for number in self._leading(residents) if not (end := self._end(number)).done()]:
            await asyncio.wait(waiting)
        if late := [end for number in residents if not (end := self._end(number)).done()]:
            await asyncio.wait(late, timeout=_PARTING_SECONDS)

    def _leading(self, residents: Sequence[int]) -> Sequence[int]:
        """Who is waited for in any case: who coordinates, or was never killed. All, if nobody can be cut off."""
        may_be_cut_off = self.mortal or self._availability.moves_any or self.network.loss_every_seconds
        if may_be_cut_off and (leading := [number for number in residents if number in self.coordinators]):
            return leading
        return [number for number in residents if number not in self._killed] or residents

    def _end(self, number: int) -> asyncio.Future[None]:
        """Done once the node of that seat has come to its end, or is another than now."""
        end = self._down.get(number) or self.seats[number].life
        assert end is not None, "it has begun"
        return end

    async def _watch(self) -> None:
        patience = self.patience_seconds + self._availability.quiet_seconds
        while True:
            before = self.wire.bytes  # not packets: what tells of an end has none
            await asyncio.sleep(patience)
            if self.wire.bytes == before and not any(seat.device.busy for seat in self.seats.values()):
                waits = self.waits()
                shown = "; ".join(waits[:5]) + (f" and {len(waits) - 5} more" if len(waits) > 5 else "")
                raise Stalled(f"nothing happened for {patience:.0f} virtual seconds: {shown}")

    def _make(self, number: int) -> Seat:
        leads = number in self.coordinators
        before = self.seats.get(number)
        clock = before.process.wall_seconds if before is not None and before.process is not None else 0.0
        process = Process(clock) if self.mortal else None
        device = Device(self.devices, self.seed, number, self._backlog, coordinates=leads)
        roles = tuple(self.play(number, device) if process is None else process.context.run(self.play, number, device))
        members = self._register.membership(number)
        peer_id = members.own.id
        transport = self.memory.transport(peer_id, signer=SimulatedSigner(peer_id, f"{self.seed}/{next(self._lives)}"))
        node = Node(*roles, transport=transport, listen=peer_id, members=members, settings=self.settings)
        tap = _Tap(number, self._seen, asyncio.get_running_loop())
        node.observe(tap)
        self.seats[number] = Seat(node, roles, device, tap, process)
        return self.seats[number]

    async def _enter(self, seat: Seat) -> None:
        if seat.process is None:
            await seat.node.__aenter__()
        else:
            await asyncio.get_running_loop().create_task(_enter(seat.node), context=seat.process.context)

    def _begin(self, seat: Seat) -> None:
        context = None if seat.process is None else seat.process.context
        seat.life = self._group.create_task(self._live(seat), context=context)

    async def _live(self, seat: Seat) -> None:
        """As on a host: play the roles, then say goodbye and be gone."""
        try:
            await seat.node.run()
            seat.through = not self._ending
            await seat.node.stop()
        except Exception:
            if not seat.tap.over:  # what a process says as it is killed is heard by nobody
                raise

    def _seen(self, seconds: float, number: int, event: Event) -> None:
        self._observe(seconds, number, event)
        if isinstance(event, PeerLost) and number in self.sleepers and not self._ending:
            seat = self.seats[number]
            if not seat.node.peers:
                self._group.create_task(self._lull(number, seat))

    async def _wake(self, peer_id: str) -> None:
        """Somebody dials a node that does not listen: if it is one that sleeps, it is made now."""
        number = self._register.seat_of(peer_id)
        if number not in self.sleepers:
            return
        if (falling_asleep := self.seats.get(number)) is not None and falling_asleep.life is not None:
            await asyncio.wait([falling_asleep.life])
        if not self._presence.online(number):
            return
        seat = self._make(number)
        await self._enter(seat)
        self._presence.begin(number, peer_id)
        self._begin(seat)

    async def _lull(self, number: int, seat: Seat) -> None:
        await seat.node.stop()
        if self.seats.get(number) is seat:  # nobody has woken it anew
            del self.seats[number]
            self._presence.end(seat.node.id)
            self.wire.forget(seat.node.id)
            self._register.drop(number)


async def _enter(node: Node) -> None:
    await node.__aenter__()


def _first(errors: BaseExceptionGroup[BaseException]) -> BaseException:
    error = errors.exceptions[0]
    return _first(error) if isinstance(error, BaseExceptionGroup) else error
