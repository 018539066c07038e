"""All nodes of a course in one event loop: a MemoryNetwork between them, a modelled device for each."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

from p2pfl.compute.job import Compute
from p2pfl.link.memory import MemoryNetwork
from p2pfl.node.events import Event, PeerLost
from p2pfl.node.node import Node
from p2pfl.node.settings import NodeSettings
from p2pfl.sim.availability import Availability, AvailabilitySpec
from p2pfl.sim.backlog import Backlog
from p2pfl.sim.devices import Device, DeviceSpec
from p2pfl.sim.loop import Stalled
from p2pfl.sim.losses import Losses
from p2pfl.sim.network import Network, NetworkSpec
from p2pfl.sim.presence import Presence
from p2pfl.sim.register import Register
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
    life: asyncio.Task[None] | None = None


@dataclass(slots=True, eq=False)
class _Tap:
    """An observer of one node's events."""

    seat: int
    observe: Observer
    loop: asyncio.AbstractEventLoop

    def push(self, event: Event) -> None:
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
    seats: dict[int, Seat] = field(default_factory=dict, init=False)
    wire: Network = field(init=False)
    _memory: MemoryNetwork = field(init=False)
    _register: Register = field(init=False)
    _availability: Availability = field(init=False)
    _presence: Presence = field(init=False)
    _backlog: Backlog = field(init=False)
    _group: asyncio.TaskGroup = field(init=False)
    _observe: Observer = field(init=False)
    _ending: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        self._register = Register(self.n, self.sleepers, lambda seat: self._presence.online(seat))
        leading = {member.id for seat in self.coordinators if (member := self._register.member(seat)) is not None}
        self.wire = Network(self.network, self.seed, leading)
        losses = Losses(self.network.loss_every_seconds, self.seed) if self.network.loss_every_seconds else None
        self._memory = MemoryNetwork(lines=self.wire.line, wake=self._wake, opened=losses)
        self._availability = Availability(self.availability, self.seed, self.n, self.coordinators)
        self._presence = Presence(self._availability, self._memory, self.wire)
        self._backlog = Backlog(self.compute)
        self._group = asyncio.TaskGroup()

    async def run(self, observe: Observer) -> None:
        """Enter all nodes, let them play to the end, and stop them. The first error of a role ends it all."""
        self._observe = observe
        try:
            residents = [self._make(seat) for seat in range(self.n) if seat not in self.sleepers]
            for seat in residents:
                await seat.node.__aenter__()
            for number, seat in self.seats.items():
                self._presence.begin(number, seat.node.id)
            async with self._group:
                watch = self._group.create_task(self._watch())
                await self._through({number: self._begin(seat) for number, seat in self.seats.items()})
                watch.cancel()
                self._ending = True
                for seat in tuple(self.seats.values()):  # of those that sleep, too, if they are awake
                    await seat.node.stop()
        except BaseExceptionGroup as errors:
            raise _first(errors) from None  # the others are its consequences
        finally:
            self._ending = True
            self._presence.close()
            for seat in tuple(self.seats.values()):
                await seat.node.stop()

    def waits(self) -> list[str]:
        """What each node waits for at this moment. Call it on the running loop."""
        return [f"seat {number}: {what}" for number, seat in self.seats.items() for what, _ in seat.node.waits()]

    async def _through(self, lives: dict[int, asyncio.Task[None]]) -> None:
        """Wait for all, except for those who were cut off when their coordinators ended: they never hear of it."""
        leading = [life for number, life in lives.items() if number in self.coordinators]
        if leading and (self._availability.moves_any or self.network.loss_every_seconds):
            await asyncio.wait(leading)
            await asyncio.wait(lives.values(), timeout=_PARTING_SECONDS)
        else:
            await asyncio.wait(lives.values())

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
        device = Device(self.devices, self.seed, number, self._backlog, coordinates=leads)
        roles = tuple(self.play(number, device))
        members = self._register.membership(number)
        peer_id = members.own.id
        transport = self._memory.transport(peer_id)
        node = Node(*roles, transport=transport, listen=peer_id, members=members, settings=_SETTINGS)
        node.observe(_Tap(number, self._seen, asyncio.get_running_loop()))
        self.seats[number] = Seat(node, roles, device)
        return self.seats[number]

    def _begin(self, seat: Seat) -> asyncio.Task[None]:
        seat.life = self._group.create_task(_live(seat.node))
        return seat.life

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
        await seat.node.__aenter__()
        self._presence.begin(number, peer_id)
        self._begin(seat)

    async def _lull(self, number: int, seat: Seat) -> None:
        await seat.node.stop()
        if self.seats.get(number) is seat:  # nobody has woken it anew
            del self.seats[number]
            self._presence.end(seat.node.id)
            self.wire.forget(seat.node.id)
            self._register.drop(number)


async def _live(node: Node) -> None:
    """As on a host: play the roles, then say goodbye and be gone."""
    await node.run()
    await node.stop()


def _first(errors: BaseExceptionGroup[BaseException]) -> BaseException:
    error = errors.exceptions[0]
    return _first(error) if isinstance(error, BaseExceptionGroup) else error
