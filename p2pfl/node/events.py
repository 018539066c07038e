"""What a node tells about itself: typed events, to any number of listeners that may be slow."""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Literal, Protocol, Self

from p2pfl.errors import LinkError, RemoteProtocolError

__all__ = [
    "Cause",
    "CourseEnded",
    "Event",
    "EventStream",
    "HandlerFailed",
    "Listening",
    "Observer",
    "PeerJoined",
    "PeerLost",
    "PeerMisbehaved",
    "PeerRefused",
    "PeerUnreached",
    "RoundEnded",
    "RoundStarted",
    "UpdateMissing",
    "Waiting",
]


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened at a node. `str(event)` is one line worth showing to a person."""


@dataclass(frozen=True, slots=True)
class Listening(Event):
    """The node's doors are open."""

    addresses: tuple[str, ...]

    def __str__(self) -> str:
        return f"listening on {', '.join(self.addresses)}"


@dataclass(frozen=True, slots=True)
class PeerJoined(Event):
    """A link to a peer is up; asks and tells reach it from now on."""

    peer: str

    def __str__(self) -> str:
        return f"{self.peer[:10]} joined"


@dataclass(frozen=True, slots=True)
class PeerLost(Event):
    """The last link to a peer ended. If the node dials that peer, it goes on trying."""

    peer: str
    reason: str

    def __str__(self) -> str:
        return f"{self.peer[:10]} is gone: {self.reason}"


@dataclass(frozen=True, slots=True)
class PeerUnreached(Event):
    """An address was dialled in vain. The next try follows after `retry_seconds`; never, if these are infinite."""

    address: str
    reason: str
    retry_seconds: float

    def __str__(self) -> str:
        then = f"next try in {self.retry_seconds:.1f} s" if math.isfinite(self.retry_seconds) else "not tried again"
        return f"no link to {self.address}: {self.reason} ({then})"


@dataclass(frozen=True, slots=True)
class PeerRefused(Event):
    """Somebody who dialled us was turned away."""

    address: str
    reason: str

    def __str__(self) -> str:
        return f"turned {self.address} away: {self.reason}"


@dataclass(frozen=True, slots=True)
class PeerMisbehaved(Event):
    """A peer sent what it must not. After `settings.strikes` of these it is put into quarantine."""

    peer: str
    reason: str

    def __str__(self) -> str:
        return f"{self.peer[:10]} broke the protocol: {self.reason}"


@dataclass(frozen=True, slots=True)
class HandlerFailed(Event):
    """A handler of ours raised. The peer that asked was told `reason`; the log has the traceback."""

    peer: str
    message: str
    reason: str

    def __str__(self) -> str:
        return f"{self.message} of {self.peer[:10]} failed here: {self.reason}"


@dataclass(frozen=True, slots=True)
class Waiting(Event):
    """Something has been waited for this long. Comes again and again until it is there."""

    what: str
    seconds: float

    def __str__(self) -> str:
        return f"waiting for {self.what} ({self.seconds:.0f} s)"


@dataclass(frozen=True, slots=True)
class RoundStarted(Event):
    """A round of a course begins; rounds are counted from 1, for people."""

    round: int
    participants: int

    def __str__(self) -> str:
        return f"round {self.round} started with {self.participants}"


@dataclass(frozen=True, slots=True)
class RoundEnded(Event):
    """A round is over. `metrics` are numbers by name, such as accuracy and loss."""

    round: int
    participants: int
    metrics: dict[str, float] = field(default_factory=dict)

    def __str__(self) -> str:
        shown = "  ".join(f"{name} {value:.4f}" for name, value in self.metrics.items())
        return f"round {self.round} ended with {self.participants}  {shown}".rstrip()


Cause = Literal["late", "lost", "failed", "unusable"]
"""Why an update is missing, in one word. `failed`: who owes it could not make it; `unusable`: who got it refused it."""


@dataclass(frozen=True, slots=True)
class UpdateMissing(Event):
    """A round goes on without this peer's update: it failed, was lost, was late, or sent what cannot be used."""

    round: int
    peer: str
    reason: str
    cause: Cause

    @classmethod
    def because(cls, round: int, peer: str, error: Exception) -> Self:
        """It is missing because of this error, of whoever was to give it or of whoever was to take it."""
        return cls(round, peer, str(error) or "no answer in time", _cause(error))

    def __str__(self) -> str:
        return f"round {self.round} goes on without {self.peer}: {self.reason}"


@dataclass(frozen=True, slots=True)
class CourseEnded(Event):
    """The node has come to the end of its course, and why."""

    rounds: int
    reason: str

    def __str__(self) -> str:
        return f"the course ended after round {self.rounds}: {self.reason}"


def _cause(error: Exception) -> Cause:
    match error:
        case TimeoutError():
            return "late"
        case RemoteProtocolError() | ValueError():
            return "unusable"
        case LinkError():
            return "lost"
        case _:
            return "failed"


class Observer(Protocol):
    """Takes the events of a node as they happen; it must not block, and must not raise."""

    def push(self, event: Event) -> None:
        """Take one event."""

    def finish(self) -> None:
        """Nothing more will come."""


class EventStream:
    """The events of a node from now on: `with node.events() as events: async for event in events: ...`.

    Ends when the node stops. A listener that falls behind by `size` events misses the oldest; `missed` counts them.
    """

    def __init__(self, leave: Callable[[EventStream], object], size: int = 1000) -> None:
        self.missed = 0
        self._leave = leave
        self._queue: deque[Event] = deque(maxlen=size)
        self._more: asyncio.Future[None] | None = None
        self._over = False

    def push(self, event: Event) -> None:
        """Called by the node."""
        self.missed += len(self._queue) == self._queue.maxlen
        self._queue.append(event)
        self._wake()

    def finish(self) -> None:
        """Called by the node: nothing more will come."""
        self._over = True
        self._wake()

    def _wake(self) -> None:
        if self._more is not None and not self._more.done():
            self._more.set_result(None)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._leave(self)
        self.finish()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        while not self._queue:
            if self._over:
                raise StopAsyncIteration
            self._more = asyncio.get_running_loop().create_future()
            await self._more
        return self._queue.popleft()
