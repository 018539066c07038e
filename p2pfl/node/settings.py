"""How patient a node is, and how much it takes from a peer."""

from __future__ import annotations

from dataclasses import dataclass, field

from p2pfl.wire.session import SessionLimits

__all__ = ["NodeSettings"]


@dataclass(frozen=True, slots=True)
class NodeSettings:
    """Times and bounds of one node; the defaults suit hosts on the internet."""

    session: SessionLimits = field(default_factory=SessionLimits)
    report_seconds: float = 5.0  # what is waited for is told so often
    drain_seconds: float = 3.0  # a stopping node lets handlers run on for so long
    close_seconds: float = 2.0  # and then gives its goodbyes so long
    backoff_first_seconds: float = 0.5  # upper end of the first random pause before a redial; doubles each time ...
    backoff_most_seconds: float = 30.0  # ... up to this
    yield_dial_seconds: float = 1.0  # the node with the larger id leaves the other so long to dial first
    strikes: int = 3  # violations within `strike_seconds` that put a peer into quarantine: it has no link to us
    strike_seconds: float = 600.0
    quarantine_seconds: float = 600.0  # the first time; doubles each time ...
    quarantine_most_seconds: float = 86_400.0  # ... up to this, until it has kept out of it for as long
    relay: bool = True  # whether it carries tunnels between two peers of which neither can dial the other
    tunnels: int = 128  # that it carries at once ...
    tunnels_per_peer: int = 32  # ... and with one peer at an end; as many ends of its own lead over one peer
    tunnel_bytes: int = 1 << 20  # under way in each direction of a tunnel that it carries: a slow reader costs no more
    tunnel_seconds: float = 5.0  # within which a tunnel is opened
    direct_seconds: float = 300.0  # a peer that is linked through others, and has addresses, is dialled so often
