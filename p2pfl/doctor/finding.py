"""What `p2pfl doctor` has found out about one peer."""

from __future__ import annotations

import errno
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal

import aiohttp

from p2pfl.crypto.identity import short_id
from p2pfl.doctor.reach import Answer, Knock
from p2pfl.errors import (
    ConfigError,
    HandshakeFailed,
    LinkRefused,
    LinkToSelf,
    P2pflError,
    PeerUnreachable,
    UntrustedPeer,
    VersionMismatch,
)
from p2pfl.node.probing import Description

__all__ = ["Finding", "Trouble", "trouble_of_dial", "trouble_of_knocks", "trouble_of_link"]


class Trouble(StrEnum):
    """Why there is no link, in the words of the table."""

    NO_DOOR = "dials out only"
    ADDRESS = "no address"
    NAME = "unknown name"
    REFUSED = "connection refused"
    SILENT = "no answer"
    NO_ROUTE = "no route"
    TLS = "TLS failed"
    STRANGER = "no p2pfl node"
    NETWORK = "handshake failed"
    OTHER = "another node"
    UNTRUSTED = "not trusted here"
    TURNED_AWAY = "does not trust us"
    VERSION = "other protocol"
    SELF = "this node itself"
    FULL = "takes no link"
    LOST = "link lost"


@dataclass(slots=True)
class Finding:
    """All that is known of one peer. What could not be found out is None or empty."""

    address: str  # that it was dialled at; of a peer that only dials out: empty
    peer_id: str = ""
    trouble: Trouble | None = None
    error: str = ""  # the words that go with the trouble, or with the lack of a description
    knocks: Sequence[Knock] = ()
    twin: str = ""  # another address of the same node, under which the rest is told
    suite: str = ""  # of the link, once there was one
    trust: str = ""  # which policies admitted it
    description: Description | None = None
    rtt_seconds: float | None = None
    clock_offset_seconds: float | None = None
    down: float | None = None  # bytes a second from it to us
    up: float | None = None
    dialled_back: Literal["reached", "unreached", "busy", ""] = ""  # empty: it was not asked to
    astray: Mapping[str, str] = field(default_factory=dict)  # addresses it tells others, and why they do not work

    @property
    def label(self) -> str:
        """The peer in a sentence."""
        name = self.description.name if self.description is not None else ""
        known = " ".join(filter(None, (name, self.peer_id and f"({short_id(self.peer_id)})")))
        return " at ".join(filter(None, (known, self.address)))

    @property
    def probed(self) -> bool:
        """Whether it has answered, so that there is more to tell than that it is there."""
        return self.description is not None

    def failed(self, trouble: Trouble, error: object = "") -> None:
        """There is no link, or none any more."""
        self.trouble, self.error = trouble, str(error)


def trouble_of_knocks(knocks: Sequence[Knock]) -> Trouble | None:
    """What stands in the way of TCP, if anything does: the answer that says the most."""
    answers = {knock.answer for knock in knocks}
    if Answer.OPEN in answers:
        return None
    for answer, trouble in _OF_ANSWERS.items():
        if answer in answers:
            return trouble
    return Trouble.NAME


_OF_ANSWERS = {
    Answer.REFUSED: Trouble.REFUSED,
    Answer.SILENT: Trouble.SILENT,
    Answer.NO_ROUTE: Trouble.NO_ROUTE,
}


def trouble_of_dial(error: P2pflError, expect: str | None) -> Trouble:
    """Why an attempt to link came to nothing. `expect` is the peer id that was to answer."""
    cause = error.__cause__
    if isinstance(cause, aiohttp.ClientSSLError):
        return Trouble.TLS
    if isinstance(cause, aiohttp.ClientConnectorError):  # it was open a moment ago
        return Trouble.REFUSED if cause.os_error.errno == errno.ECONNREFUSED else Trouble.NO_ROUTE
    if expect is not None and isinstance(error, HandshakeFailed) and short_id(expect) in str(error):
        return Trouble.OTHER
    if isinstance(cause, aiohttp.ClientError):
        return Trouble.FULL if isinstance(error, LinkRefused) else _of_stranger(error)
    return next((trouble for kind, trouble in _OF_ERRORS.items() if isinstance(error, kind)), Trouble.LOST)


def _of_stranger(error: P2pflError) -> Trouble:
    return Trouble.VERSION if isinstance(error, VersionMismatch) else Trouble.STRANGER


_OF_ERRORS: dict[type[P2pflError], Trouble] = {  # the first that fits
    ConfigError: Trouble.ADDRESS,
    UntrustedPeer: Trouble.UNTRUSTED,
    VersionMismatch: Trouble.VERSION,
    HandshakeFailed: Trouble.NETWORK,
    LinkToSelf: Trouble.SELF,
    LinkRefused: Trouble.FULL,
    PeerUnreachable: Trouble.SILENT,
}


def trouble_of_link(error: P2pflError) -> Trouble:
    """Why a link ended that had been made: our end was satisfied before the other had looked at who we are."""
    if isinstance(error, HandshakeFailed):
        return Trouble.TURNED_AWAY
    return Trouble.FULL if isinstance(error, LinkRefused) else Trouble.LOST
