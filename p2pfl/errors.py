"""Every exception of p2pfl.

P2pflError
├── UserError                 a mistake in what the user gave; the sentence names the field and the mend
│   ├── ConfigError           a course file, a topology file, an option
│   ├── IdentityError         a key file that is missing, readable by others, or damaged
│   └── MissingPackage        an optional package; the sentence has the install command
├── LinkError                 a link could not be made, or ended
│   ├── PeerUnreachable       nobody answers at the address
│   ├── ListenFailed          the port is in use, or may not be bound
│   ├── LinkClosed            the other end said goodbye
│   ├── LinkTruncated         the bytes ended without a goodbye
│   ├── LinkSilent            nothing was heard for too long
│   ├── LinkRefused           the other end, or we, do not want this link (duplicate, full)
│   │   └── LinkToSelf        the address that was dialled is our own
│   ├── HandshakeFailed       no secure channel: garbage, another network key, a broken signature
│   │   ├── UntrustedPeer     the identity is proven, and the trust policy does not admit it
│   │   └── VersionMismatch   the two ends share no protocol version
│   └── RemoteProtocolError   the peer sent what the protocol forbids
├── MessageError              a message of our own that cannot be sent (a type, a field, a size)
├── RemoteError               the peer's handler failed; names the node, the request and the reason
│   └── RemoteUnready         no role of the peer handles the request: it may come yet
├── CourseError               a course that cannot go on
│   ├── PeersLost             no node of the course could be reached for too long
│   ├── AggregationAborted    a secure aggregation that must not go on; names who has broken it
│   └── PrivacySpent          more would be released of somebody's data than was allowed
├── JournalError              what must outlive the process cannot be written, or read
└── ComputeError              a job that could not be computed where it was sent
"""

from __future__ import annotations


class P2pflError(Exception):
    """The root: `except P2pflError` catches everything that this package raises on purpose."""


class UserError(P2pflError):
    """What the user gave cannot work. One sentence: the field, what is wrong with it, and the mend."""


class ConfigError(UserError):
    """A course file, a topology file or an option is wrong."""


class IdentityError(UserError):
    """A key file is missing, readable by others, or damaged."""


class MissingPackage(UserError):
    """An optional package is needed. The sentence has the command that installs it."""

    def __init__(self, need: str, install: str) -> None:
        super().__init__(f"{need} needs a package that is not installed: {install}")


class LinkError(P2pflError):
    """A link could not be made, or it ended."""


class PeerUnreachable(LinkError):
    """Nobody answers at the address."""


class ListenFailed(LinkError):
    """The address cannot be listened on."""


class LinkClosed(LinkError):
    """The other end said goodbye."""


class LinkTruncated(LinkError):
    """The bytes ended without a goodbye: a crash, a cut cable, or an attacker."""


class LinkSilent(LinkError):
    """Nothing was heard from the other end for too long."""


class LinkRefused(LinkError):
    """One end does not want this link: a duplicate, a full house."""


class LinkToSelf(LinkRefused):
    """The address that was dialled leads back to this node."""


class HandshakeFailed(LinkError):
    """No secure channel came about."""


class UntrustedPeer(HandshakeFailed):
    """The identity is proven, and the trust policy does not admit it."""


class VersionMismatch(HandshakeFailed):
    """The two ends share no protocol version."""


class RemoteProtocolError(LinkError):
    """The peer sent what the protocol forbids."""


class MessageError(P2pflError):
    """A message of our own cannot be sent."""


class RemoteError(P2pflError):
    """A peer's handler failed.

    `node` is the peer that failed, `request` the tag of what it was asked, `reason` its own words.
    """

    def __init__(self, node: str, request: str, reason: str) -> None:
        super().__init__(f"{node} failed at {request}: {reason}")
        self.node = node
        self.request = request
        self.reason = reason


class RemoteUnready(RemoteError):
    """No role of the peer handles the request. One may come yet: a node that has just started first looks around."""


class CourseError(P2pflError):
    """A course cannot go on."""


class PeersLost(CourseError):
    """No node of the course could be reached for too long. What was committed is safe."""


class AggregationAborted(CourseError):
    """A secure aggregation must not go on. `culprits` are the peer ids of who has broken it, if that can be told."""

    def __init__(self, sentence: str, culprits: tuple[str, ...] = ()) -> None:
        super().__init__(f"{', '.join(culprits)} {sentence}" if culprits else sentence)
        self.culprits = culprits


class PrivacySpent(CourseError):
    """More would be released of somebody's data than was allowed. Nothing was."""


class JournalError(P2pflError):
    """What must outlive the process cannot be written, or what was written cannot be read."""


class ComputeError(P2pflError):
    """A job could not be computed where it was sent."""


def require(holds: bool, sentence: str) -> None:
    """Raise ConfigError with this sentence unless what the user gave can be."""
    if not holds:
        raise ConfigError(sentence)
