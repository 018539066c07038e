"""Federated learning as ordinary asyncio: typed messages, encrypted links, one course for simulation and deployment.

The names below are all that most programs need. Each is loaded when it is first used, so that `import p2pfl` costs
little and loads neither torch nor aiohttp.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from p2pfl.crypto.identity import Identity, NetworkKey
    from p2pfl.errors import (
        ConfigError,
        CourseError,
        HandshakeFailed,
        IdentityError,
        LinkClosed,
        LinkError,
        MessageError,
        MissingPackage,
        P2pflError,
        PeerUnreachable,
        RemoteError,
        RemoteProtocolError,
        UntrustedPeer,
        UserError,
    )
    from p2pfl.link.memory import MemoryNetwork
    from p2pfl.link.websocket import WebSocketTransport
    from p2pfl.node.events import (
        CourseEnded,
        Event,
        HandlerFailed,
        Listening,
        PeerJoined,
        PeerLost,
        PeerMisbehaved,
        PeerRefused,
        PeerUnreached,
        RoundEnded,
        RoundStarted,
        UpdateMissing,
        Waiting,
    )
    from p2pfl.node.node import Node
    from p2pfl.node.peer import Peer
    from p2pfl.node.replies import Replies
    from p2pfl.node.settings import NodeSettings
    from p2pfl.topology.graph import Topology
    from p2pfl.wire.message import Message, Request, Vocabulary
    from p2pfl.wire.tensor import Tensors, TensorSpec

__all__ = [
    "ConfigError", "CourseEnded", "CourseError", "Event", "HandlerFailed", "HandshakeFailed", "Identity",
    "IdentityError", "LinkClosed", "LinkError", "Listening", "MemoryNetwork", "Message", "MessageError",
    "MissingPackage", "NetworkKey", "Node", "NodeSettings", "P2pflError", "Peer", "PeerJoined", "PeerLost",
    "PeerMisbehaved", "PeerRefused", "PeerUnreachable", "PeerUnreached", "RemoteError", "RemoteProtocolError",
    "Replies", "Request", "RoundEnded", "RoundStarted", "TensorSpec", "Tensors", "Topology", "UntrustedPeer",
    "UpdateMissing", "UserError", "Vocabulary", "Waiting", "WebSocketTransport",
]  # fmt: skip

_HOMES = {
    "ConfigError": "p2pfl.errors",
    "CourseEnded": "p2pfl.node.events",
    "CourseError": "p2pfl.errors",
    "Event": "p2pfl.node.events",
    "HandlerFailed": "p2pfl.node.events",
    "HandshakeFailed": "p2pfl.errors",
    "Identity": "p2pfl.crypto.identity",
    "IdentityError": "p2pfl.errors",
    "LinkClosed": "p2pfl.errors",
    "LinkError": "p2pfl.errors",
    "Listening": "p2pfl.node.events",
    "MemoryNetwork": "p2pfl.link.memory",
    "Message": "p2pfl.wire.message",
    "MessageError": "p2pfl.errors",
    "MissingPackage": "p2pfl.errors",
    "NetworkKey": "p2pfl.crypto.identity",
    "Node": "p2pfl.node.node",
    "NodeSettings": "p2pfl.node.settings",
    "P2pflError": "p2pfl.errors",
    "Peer": "p2pfl.node.peer",
    "PeerJoined": "p2pfl.node.events",
    "PeerLost": "p2pfl.node.events",
    "PeerMisbehaved": "p2pfl.node.events",
    "PeerRefused": "p2pfl.node.events",
    "PeerUnreachable": "p2pfl.errors",
    "PeerUnreached": "p2pfl.node.events",
    "RemoteError": "p2pfl.errors",
    "RemoteProtocolError": "p2pfl.errors",
    "Replies": "p2pfl.node.replies",
    "Request": "p2pfl.wire.message",
    "RoundEnded": "p2pfl.node.events",
    "RoundStarted": "p2pfl.node.events",
    "TensorSpec": "p2pfl.wire.tensor",
    "Tensors": "p2pfl.wire.tensor",
    "Topology": "p2pfl.topology.graph",
    "UntrustedPeer": "p2pfl.errors",
    "UpdateMissing": "p2pfl.node.events",
    "UserError": "p2pfl.errors",
    "Vocabulary": "p2pfl.wire.message",
    "Waiting": "p2pfl.node.events",
    "WebSocketTransport": "p2pfl.link.websocket",
}


if not TYPE_CHECKING:  # type checkers would take it for a promise that every name exists

    def __getattr__(name: str) -> Any:
        home = _HOMES.get(name)
        if home is None:
            raise AttributeError(f"module 'p2pfl' has no attribute {name!r}")
        value = getattr(importlib.import_module(home), name)
        globals()[name] = value  # found at once from now on
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
