"""All nodes of a course in one event loop: a MemoryNetwork between them, a modelled device for each."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from p2pfl.compute.job import Compute
from p2pfl.link.memory import MemoryNetwork
from p2pfl.node.events import Event
from p2pfl.node.membership import Directory, Member
from p2pfl.node.node import Node
from p2pfl.node.settings import NodeSettings
from p2pfl.sim.backlog import Backlog
from p2pfl.sim.devices import Device, DeviceSpec
from p2pfl.sim.loop import Stalled
from p2pfl.sim.network import Network, NetworkSpec
from p2pfl.wire.session import SessionLimits

__all__ = ["Observer", "Seat", "World"]

Observer = Callable[[float, int, Event], None]
"""Told of every event: seconds of virtual time, seat, event."""


@dataclass(slots=True)
class Seat:
    """A simulated node, with its roles."""

    node: Node
    roles: tuple[object, ...]
    device: Device


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
    patience_seconds: float = 21_600.0
    """Nothing sent and nothing computed for so long on the virtual clock: the run is stalled. Lost peers are redialled
    for ever, so the loop alone would not notice."""
    seats: list[Seat] = field(default_factory=list, init=False)
    wire: Network = field(init=False)

    def __post_init__(self) -> None:
        self.wire = Network(self.network, self.seed)

    async def run(self, observe: Observer) -> None:
        """Enter all nodes, let them play to the end, and stop them. The first error of a role ends it all."""
        self._fill_seats(observe)
        try:
            for seat in self.seats:
                await seat.node.__aenter__()
            async with asyncio.TaskGroup() as group:
                watch = group.create_task(self._watch())
                await asyncio.wait([group.create_task(_live(seat.node)) for seat in self.seats])
                watch.cancel()
        except BaseExceptionGroup as errors:
            raise _first(errors) from None  # the others are its consequences
        finally:
            for seat in self.seats:
                await seat.node.stop()

    async def _watch(self) -> None:
        while True:
            before = self.wire.packets
            await asyncio.sleep(self.patience_seconds)
            if self.wire.packets == before and not any(seat.device.busy for seat in self.seats):
                waits = self.waits()
                shown = "; ".join(waits[:5]) + (f" and {len(waits) - 5} more" if len(waits) > 5 else "")
                raise Stalled(f"nothing happened for {self.patience_seconds:.0f} virtual seconds: {shown}")

    def _fill_seats(self, observe: Observer) -> None:
        loop = asyncio.get_running_loop()
        backlog = Backlog(self.compute)
        memory = MemoryNetwork(lines=self.wire.line)
        ids = [f"seat{number:06d}" for number in range(self.n)]
        directory = Directory(
            Member(peer_id, f"seat {number}", (f"memory:{peer_id}",), number) for number, peer_id in enumerate(ids)
        )
        # A link of this network ends visibly or never, and we watch for stalls: no pings, no reports.
        settings = NodeSettings(SessionLimits(silence_seconds=math.inf), report_seconds=math.inf)
        for number, peer_id in enumerate(ids):
            device = Device(self.devices, self.seed, number, backlog)
            roles = tuple(self.play(number, device))
            members = directory.membership(peer_id)
            node = Node(*roles, transport=memory.transport(peer_id), listen=peer_id, members=members, settings=settings)
            node.observe(_Tap(number, observe, loop))
            self.seats.append(Seat(node, roles, device))

    def waits(self) -> list[str]:
        """What each node waits for at this moment. Call it on the running loop."""
        return [f"seat {number}: {what}" for number, seat in enumerate(self.seats) for what, _ in seat.node.waits()]


async def _live(node: Node) -> None:
    """As on a host: play the roles, then say goodbye and be gone."""
    await node.run()
    await node.stop()


def _first(errors: BaseExceptionGroup[BaseException]) -> BaseException:
    error = errors.exceptions[0]
    return _first(error) if isinstance(error, BaseExceptionGroup) else error
