"""The conversation over one link as a state machine: ids, replies, cancellation, credit, keepalive, goodbye.

Sans I/O: methods return the packet to send, `receive` returns what happened. The clock is a number that is passed in.
Every ask ends with exactly one reply or failure, also when it was cancelled; that is how its place is given back.
Links may deliver in another order than was sent, since short packets overtake bulk: nothing here depends on the order.

    kind     id                content
    tell     running number    a message
    ask      running number    a message
    reply    id of the ask     a message
    fail     id of the ask     {"reason": ...}
    cancel   id of the ask     nothing: the answer is no longer wanted
    credit   how many          nothing: so many tells have been handled, send on
    ping     token             nothing; answered by pong, same token
    bye      0                 {"reason": ...}: the last thing that is asked or told
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from p2pfl.errors import LinkSilent, RemoteProtocolError
from p2pfl.wire.codec import Body, Incoming, pack, unpack
from p2pfl.wire.packet import Packet

__all__ = [
    "Asked", "Cancelled", "Credited", "Failed", "Farewell", "Heartbeat", "Pinged", "Ponged", "Replied", "Session",
    "SessionLimits", "Told",
]  # fmt: skip


class Told(NamedTuple):
    content: Incoming


class Asked(NamedTuple):
    number: int
    content: Incoming


class Replied(NamedTuple):
    number: int
    content: Incoming


class Failed(NamedTuple):
    number: int
    reason: str
    unready: bool = False  # nobody there handles such a request yet


class Cancelled(NamedTuple):
    number: int


class Credited(NamedTuple):
    """Room was made: a tell or an ask that waited can be sent."""


class Pinged(NamedTuple):
    answer: Packet


class Ponged(NamedTuple):
    seconds: float


class Farewell(NamedTuple):
    reason: str


class Heartbeat(NamedTuple):
    """What the clock demands: a packet to send, if any, and when to look again (seconds on the caller's clock)."""

    packet: Packet | None
    next_at: float


Event = Told | Asked | Replied | Failed | Cancelled | Credited | Pinged | Ponged | Farewell | None


_PINGS = 32  # that a peer may send at once: what has gathered in a stall arrives together ...
_PINGS_PER_SECOND = 10.0  # ... and for long; who bears 5 s of silence sends one in 1.25 s


@dataclass(frozen=True, slots=True)
class SessionLimits:
    """Bounds that both ends keep. A peer that goes beyond them breaks the protocol."""

    tells: int = 32  # told and not handled yet
    asks: int = 64  # asked and not answered yet
    silence_seconds: float = 5.0  # nothing heard for so long: the link is dead. A quarter of it idle: ping


class Session:
    """One end of a conversation. `tells_left` and `asks_left` say whether there is room to send."""

    __slots__ = (
        "_alive_at", "_arriving", "_cancelled", "_handled", "_heard_at", "_last_out", "_open_in", "_open_out",
        "_ping_at", "_pinged_at", "_pings", "_tells_open", "limits", "said_bye", "tells_left",
    )  # fmt: skip

    def __init__(self, now: float, limits: SessionLimits | None = None) -> None:
        self.limits = limits or SessionLimits()
        self.tells_left = self.limits.tells
        self.said_bye = False
        self._last_out = 0
        self._open_out: set[int] = set()  # our asks without an answer
        self._cancelled: set[int] = set()  # those of them whose answer nobody wants
        self._open_in: set[int] = set()  # the peer's asks that we have not answered
        self._pings = 0.0  # of the peer, of late
        self._ping_at = now
        self._tells_open = 0  # the peer's tells that hold one of its places
        self._handled = 0  # tells handled since the last credit
        self._heard_at = now  # the last packet
        self._alive_at = now  # the last bytes, of which a packet may still be missing the rest
        self._arriving = 0  # bytes since the last packet, as far as we know
        self._pinged_at: float | None = None

    @property
    def asks_left(self) -> int:
        """How many more asks may be sent now."""
        return self.limits.asks - len(self._open_out)

    @property
    def idle(self) -> bool:
        """Whether no ask is open in either direction."""
        return not self._open_out and not self._open_in

    # -- sending ---------------------------------------------------------------------------------------------------

    def tell(self, body: Body) -> Packet:
        """Needs `tells_left`."""
        assert self.tells_left > 0
        self.tells_left -= 1
        self._last_out += 1
        return pack("tell", self._last_out, body)

    def ask(self, body: Body) -> tuple[int, Packet]:
        """The ask's id, and the packet. Needs `asks_left`."""
        assert self.asks_left > 0
        self._last_out += 1
        self._open_out.add(self._last_out)
        return self._last_out, pack("ask", self._last_out, body)

    def cancel(self, number: int) -> Packet:
        """Want the answer to our open ask no longer. It keeps its place until the peer has answered all the same."""
        assert number in self._open_out
        self._cancelled.add(number)
        return pack("cancel", number)

    def withdrawn(self, number: int) -> None:
        """Our ask was taken back before it had left, so the peer will never answer it: its place is free."""
        self._open_out.remove(number)
        self._cancelled.discard(number)

    def reply(self, number: int, body: Body) -> Packet:
        self._open_in.discard(number)
        return pack("reply", number, body)

    def fail(self, number: int, reason: str, *, unready: bool = False) -> Packet:
        """Answer a peer's ask with a failure; `reason` is cut to 1,000 characters.

        `unready`: nobody here handles such a request yet.
        """
        self._open_in.discard(number)
        return pack("fail", number, reason=_printable(reason), unready=unready)

    def handled(self) -> Packet | None:
        """A tell of the peer has been dealt with. Now and then this gives a credit packet to send."""
        self._handled += 1
        if self._handled * 2 < self.limits.tells:
            return None
        granted, self._handled = self._handled, 0
        self._tells_open -= granted
        return pack("credit", granted)

    def bye(self, reason: str) -> Packet:
        """Announce that nothing more will be asked or told by us."""
        self.said_bye = True
        return pack("bye", 0, reason=_printable(reason))

    # -- receiving -------------------------------------------------------------------------------------------------

    def receive(self, packet: Packet, now: float) -> Event:
        """What a packet means. Raises RemoteProtocolError for one that must not come now."""
        self._heard_at = self._alive_at = now
        self._arriving = 0
        kind, number, content = unpack(packet)
        match kind:
            case "tell":
                self._tells_open += 1
                if self._tells_open > self.limits.tells:
                    raise RemoteProtocolError(f"more than {self.limits.tells} messages were told without credit")
                return Told(content)
            case "ask":
                if number in self._open_in:
                    raise RemoteProtocolError(f"ask {number} came again while it was open")
                self._open_in.add(number)
                if len(self._open_in) > self.limits.asks:
                    raise RemoteProtocolError(f"more than {self.limits.asks} asks are open")
                return Asked(number, content)
            case "reply":
                return Replied(number, content) if self._answered(number) else Credited()
            case "fail":
                reason, unready = _text(content, "reason"), content.fields.get("unready") is True
                return Failed(number, reason, unready) if self._answered(number) else Credited()
            case "cancel":
                return Cancelled(number) if number in self._open_in else None
            case "credit":
                return self._credited(number)
            case _:
                return self._housekeeping(kind, number, content, now)

    def _housekeeping(self, kind: str, number: int, content: Incoming, now: float) -> Event:
        match kind:
            case "ping":
                self._count_ping(now)
                return Pinged(pack("pong", number))
            case "pong":
                sent, self._pinged_at = self._pinged_at, None
                return None if sent is None else Ponged(now - sent)
            case "bye":
                return Farewell(_text(content, "reason"))
        raise RemoteProtocolError(f"a head has the kind {kind[:20]!r}, which is none of ours")

    def _count_ping(self, now: float) -> None:
        passed, self._ping_at = now - self._ping_at, now
        self._pings = max(0.0, self._pings - _PINGS_PER_SECOND * passed) + 1
        if self._pings > _PINGS:
            raise RemoteProtocolError("pings come faster than they are of use")

    def _answered(self, number: int) -> bool:
        """Close our ask; whether anybody still waits for it."""
        if number not in self._open_out:
            raise RemoteProtocolError(f"an answer came to ask {number}, which is not open")
        self._open_out.remove(number)
        wanted = number not in self._cancelled
        self._cancelled.discard(number)
        return wanted

    def _credited(self, granted: int) -> Event:
        if self.tells_left + granted > self.limits.tells:
            raise RemoteProtocolError("credit was given for messages that were never told")
        self.tells_left += granted
        return Credited()

    # -- keepalive -------------------------------------------------------------------------------------------------

    def excuse(self, now: float) -> None:
        """Start the silence anew: it was our own clock or loop that stood still."""
        self._heard_at = self._alive_at = now
        self._pinged_at = None

    def heartbeat(self, now: float, arriving: int = 0) -> Heartbeat:
        """To be called at the start, and whenever `next_at` has come. Raises LinkSilent when the peer is gone.

        `arriving`: bytes that have come since the last packet. While they grow the peer is there, though its answers
        wait behind them; and so that it hears of us too, who hears nothing else, it is pinged all the while.
        """
        silence = self.limits.silence_seconds
        if arriving > self._arriving:
            self._alive_at, self._arriving = now, arriving
        if now - self._alive_at >= silence:
            raise LinkSilent(f"nothing was heard for {now - self._alive_at:.1f} s")
        if now - self._heard_at < silence / 4:
            return Heartbeat(None, self._heard_at + silence / 4)
        if self._pinged_at is None or self._pinged_at < self._heard_at:
            self._pinged_at = now
        elif not arriving:
            return Heartbeat(None, self._alive_at + silence)
        next_at = now + silence / 4 if arriving else self._alive_at + silence
        return Heartbeat(pack("ping", int(now * 1000) & 0xFFFFFFFF), next_at)


def _printable(reason: str) -> str:
    """Of bounded length, and without what UTF-8 cannot write, such as a file name that is no text."""
    return reason[:1000].encode(errors="replace").decode()


def _text(content: Incoming, name: str) -> str:
    value = content.fields.get(name)
    if not isinstance(value, str):
        raise RemoteProtocolError(f"a head has no {name}")
    return value[:1000]
