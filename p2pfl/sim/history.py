"""What has happened in a world, for checkers to look at: events, packets, files, faults, and how it all ended."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
from torch import Tensor

from p2pfl.courses.durable import RoundCommitted
from p2pfl.courses.mass import Purse
from p2pfl.courses.secagg import Masked, Seeds
from p2pfl.errors import JournalError
from p2pfl.journal.disk import Disk
from p2pfl.learn.params import from_buffer, model_hash
from p2pfl.link.memory import MemoryLink
from p2pfl.node.events import Event, PeerJoined, PeerLost, RoundEnded, RoundStarted
from p2pfl.privacy.ledger import PrivacyLedger
from p2pfl.privacy.spent import Spent
from p2pfl.sim.nemesis import Fault
from p2pfl.sim.process import Process
from p2pfl.wire.codec import unpack
from p2pfl.wire.packet import Packet

__all__ = [
    "NOBODY", "Charged", "Entry", "History", "Injected", "Opened", "Sent", "WatchedDisk", "WatchedLedger", "Wrote",
]  # fmt: skip

WhatT = TypeVar("WhatT")
_HOUSEKEEPING = ("ping", "pong", "credit")
_FLOAT_BYTES = 4
_CLEAR_BELOW = 1 << 24
NOBODY = -1
"""The seat of what happens to no seat."""
_SEAT = "seat"  # what peer ids in a world begin with


@dataclass(frozen=True, slots=True)
class Sent:
    """A packet left for another seat. `hashes` are those of the models in it."""

    to: str
    kind: str
    tag: str
    number: int
    round: int | None
    hashes: tuple[str, ...]

    def __str__(self) -> str:
        about = "" if self.round is None else f" of round {self.round + 1}"
        models = f" with model {', '.join(found[:8] for found in self.hashes)}" if self.hashes else ""
        return f"-> seat {_seat_of(self.to)}: {self.kind} {self.number} {self.tag}{about}{models}".rstrip()


@dataclass(frozen=True, slots=True)
class Opened:
    """A seat has revealed, in a session, shares of the own seeds of some clients, and of the mask keys of others."""

    seat: int
    session: str
    own: frozenset[str]
    mask: frozenset[str]


@dataclass(frozen=True, slots=True)
class Wrote:
    """A file is on its way to the disk, or is there for good."""

    name: str
    synced: bool

    def __str__(self) -> str:
        return f"{self.name} is {'there for good' if self.synced else 'being written'}"


@dataclass(frozen=True, slots=True)
class Charged:
    """A privacy ledger was charged for a round: epsilon before and after, and what it may be at most (0: anything)."""

    round: int
    before: float
    after: float
    most: float

    def __str__(self) -> str:
        return f"round {self.round + 1} is paid for: epsilon {self.after:.4g}"


@dataclass(frozen=True, slots=True)
class Injected:
    """A fault has begun, or is over."""

    fault: Fault
    begins: bool

    def __str__(self) -> str:
        return f"{'FAULT' if self.begins else 'over'}: {self.fault.what}"


@dataclass(frozen=True, slots=True)
class Entry:
    """Something that happened, and when, in seconds of virtual time. `seat` is NOBODY's for faults."""

    seconds: float
    seat: int
    what: Event | Sent | Wrote | Charged | Injected

    def __str__(self) -> str:
        who = "        " if self.seat == NOBODY else f"seat {self.seat:3d}"
        what = str(self.what)
        if (peer := getattr(self.what, "peer", "")).startswith(_SEAT):  # events shorten ids, to what all seats share
            what = what.replace(peer[:10], f"seat {_seat_of(peer)}")
        return f"{self.seconds:9.3f} s  {who}  {what}"


@dataclass(slots=True)
class History:
    """Records a world of `n` seats whose models have `numel` numbers."""

    n: int
    numel: int
    entries: list[Entry] = field(default_factory=list)
    vectors: dict[str, Tensor] = field(default_factory=dict)
    """All models that were sent, by their hashes."""
    models: dict[int, Tensor] = field(default_factory=dict)
    """What those nodes hold that have come to their end, by seat."""
    masked: dict[str, float] = field(default_factory=dict)
    """All masked updates that were sent, by their hashes, with the share of entries that may be in the clear."""
    seeds: list[Opened] = field(default_factory=list)
    """What was revealed in secure aggregations."""
    purses: dict[int, Purse] = field(default_factory=dict)
    """The mass of push-sum that each node has in the end, by seat."""
    most_queued: int = 0
    """Bytes that lay on one link at most."""
    largest: int = 0
    """Bytes of the largest packet."""
    failure: BaseException | None = None
    """What the world raised."""
    waits: list[str] = field(default_factory=list)
    """Who waited for what, when there was no time left."""
    leftovers: list[str] = field(default_factory=list)
    """Tasks that were there after all nodes had stopped, and errors that nobody has asked for."""

    # -- what tells it ---------------------------------------------------------------------------------------------

    def event(self, seconds: float, seat: int, event: Event) -> None:
        """An Observer of a World."""
        self.entries.append(Entry(seconds, seat, event))

    def packet(self, link: MemoryLink, packet: Packet) -> None:
        """To be told of each packet; see MemoryNetwork. Pings and credit are not recorded."""
        self.most_queued = max(self.most_queued, link.queued)
        self.largest = max(self.largest, packet.size)
        kind, number, content = unpack(packet)
        if kind in _HOUSEKEEPING:
            return
        round = content.fields.get("round")
        if content.tag == Masked.tag:
            hashes = tuple(self._note_masked(buffer) for buffer in packet.buffers)
        else:
            hashes = tuple(self._hash(buffer) for buffer in packet.buffers if self._is_model(buffer))
        if content.tag == Seeds.tag:
            seeds = content.fields
            self.seeds.append(
                Opened(_seat_of(link.local), seeds["session"], frozenset(seeds["own"]), frozenset(seeds["mask"]))
            )
        sent = Sent(link.remote, kind, content.tag, number, round if isinstance(round, int) else None, hashes)
        self._add(_seat_of(link.local), sent)

    def wrote(self, seat: int, name: str, *, synced: bool) -> None:
        """Told by a WatchedDisk."""
        self._add(seat, Wrote(name, synced))

    def charged(self, seat: int, charged: Charged) -> None:
        """Told by a WatchedLedger."""
        self._add(seat, charged)

    def fault(self, fault: Fault, begins: bool) -> None:
        """To be told by `haunt`."""
        self._add(NOBODY, Injected(fault, begins))

    def unhandled(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """An exception handler of the loop."""
        error = context.get("exception")
        self.leftovers.append(f"{context['message']}{'' if error is None else f': {error!r}'}")

    def _add(self, seat: int, what: Sent | Wrote | Charged | Injected) -> None:
        self.entries.append(Entry(asyncio.get_running_loop().time(), seat, what))

    def _is_model(self, buffer: memoryview) -> bool:
        return buffer.nbytes == self.numel * _FLOAT_BYTES

    def _hash(self, buffer: memoryview) -> str:
        vector = from_buffer(buffer, self.numel)
        found = model_hash(vector)
        self.vectors.setdefault(found, vector)
        return found

    def _note_masked(self, buffer: memoryview) -> str:
        """Entries of what is not masked are below 2^24; of what is, one in 256 is."""
        found = hashlib.sha256(buffer).hexdigest()
        self.masked[found] = float((np.frombuffer(buffer, dtype="<u4") < _CLEAR_BELOW).mean())
        return found

    # -- what is asked of it ---------------------------------------------------------------------------------------

    def of(self, kind: type[WhatT]) -> Iterator[tuple[Entry, WhatT]]:
        """All that happened of one kind."""
        return ((entry, entry.what) for entry in self.entries if isinstance(entry.what, kind))

    def around(self, culprits: Iterable[Entry], most: int = 30) -> list[Entry]:
        """Entries that may tell why: the faults, the rounds, what became of links; and the culprits in any case."""
        telling = Charged | Injected | RoundStarted | RoundEnded | RoundCommitted | PeerLost | PeerJoined
        named = {id(entry) for entry in culprits}
        chosen = [entry for entry in self.entries if id(entry) in named or isinstance(entry.what, telling)]
        return chosen[-most:]

    def __len__(self) -> int:
        return len(self.entries)

    def __repr__(self) -> str:
        return f"<History of {self.n} seats, {len(self.entries)} entries>"


class WatchedDisk:
    """The disk of a seat, as the process that it is made in sees it. A process that was killed writes no more."""

    def __init__(self, disk: Disk, seat: int, history: History) -> None:
        self._disk = disk
        self._seat = seat
        self._history = history
        self._process = Process.current()

    async def write(self, name: str, content: bytes) -> None:
        """See Disk."""
        if self._process is not None and self._process.killed:
            raise JournalError(f"{name} cannot be written: the process was killed")
        self._history.wrote(self._seat, name, synced=False)
        await self._disk.write(name, content)
        self._history.wrote(self._seat, name, synced=True)

    def read(self, name: str) -> bytes | None:
        """See Disk."""
        return self._disk.read(name)

    def names(self) -> Iterable[str]:
        """See Disk."""
        return self._disk.names()

    async def delete(self, name: str) -> None:
        """See Disk."""
        await self._disk.delete(name)

    def __repr__(self) -> str:
        return f"<WatchedDisk of seat {self._seat}: {self._disk!r}>"


class WatchedLedger(PrivacyLedger):
    """The privacy ledger of a seat, in memory: it outlives the seat's processes as a file does."""

    def __init__(self, seat: int, history: History) -> None:
        super().__init__(f"data of seat {seat}")
        self._seat = seat
        self._history = history

    def charge(self, run: str, round: int, cost: Spent, most: float, delta: float) -> None:
        """See PrivacyLedger."""
        before = self.spent.epsilon(delta)
        super().charge(run, round, cost, most, delta)
        self._history.charged(self._seat, Charged(round, before, self.spent.epsilon(delta), most))


def _seat_of(peer_id: str) -> int:
    return int(peer_id.removeprefix(_SEAT))
