"""Options of every command that links to nodes: who we are, whom we trust, in which network; and its transport."""

from __future__ import annotations

import fcntl
import itertools
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from p2pfl.crypto.identity import Identity, NetworkKey
from p2pfl.errors import IdentityError
from p2pfl.link.tls import TlsSettings
from p2pfl.link.trust import parse_trust
from p2pfl.link.websocket import WebSocketTransport

__all__ = ["IdentityOptions", "make_transport", "own_identity"]


@dataclass(frozen=True, slots=True)
class IdentityOptions:
    """Who this node is, whom it trusts, and which network it belongs to."""

    identity: Path | None = None
    """Key file of this node; it is made if it is not there. By default .p2pfl/identity.key or, while other nodes run
    from this folder, the first of identity-2.key, identity-3.key ... that none of them holds."""
    trust: tuple[str, ...] = ()
    """allow_list, tofu, network_key, open; several: all must agree. By default allow_list or network_key where one of
    these is given, else open, which is for this machine only."""
    allow: tuple[str, ...] = ()
    """Peer ids that are admitted (allow_list)."""
    allow_file: Path | None = None
    """A file with a peer id per line (allow_list); it is read again when it changes."""
    known_peers: Path = Path(".p2pfl/known_peers.json")
    """Where pinned peers are kept (tofu)."""
    network_key: Path | None = None
    """A file with the network's key; `p2pfl key FILE` makes one."""
    network: str = "p2pfl"
    """Name of the network; nodes of another do not link."""
    insecure_open: bool = False
    """Let trust open go beyond this machine: anybody who can reach it may join."""
    tls_cert: Path | None = None
    """Certificate for TLS underneath the encrypted links."""
    tls_key: Path | None = None
    """Its private key."""
    tls_ca: Path | None = None
    """Certificates that other ends must be signed by."""

    @property
    def policies(self) -> tuple[str, ...]:
        """The names of the trust policies, with those that follow from other options."""
        given = {"allow_list": self.allow or self.allow_file, "network_key": self.network_key}
        return self.trust or tuple(name for name, value in given.items() if value) or ("open",)

    @property
    def tls(self) -> TlsSettings | None:
        """TLS under the links, if any file of it is named."""
        if not (self.tls_cert or self.tls_ca):
            return None
        return TlsSettings(self.tls_cert, self.tls_key, self.tls_ca)


def own_identity(path: Path | None) -> tuple[Identity, ExitStack]:
    """The identity in a file, which is held until what is given with it is closed: two nodes with one identity would
    end each other's links.

    Without a path: the first file in .p2pfl that no other process holds. Raises IdentityError.
    """
    held = ExitStack()
    if path is not None:
        identity = Identity.load_or_create(path)
        if not _holds(path, held):
            raise IdentityError(f"identity: {path} is that of a node which runs; give this one another --identity")
        return identity, held
    for number in itertools.count(1):
        file = Path(".p2pfl") / (f"identity-{number}.key" if number > 1 else "identity.key")
        identity = Identity.load_or_create(file)
        if _holds(file, held):
            break
    return identity, held


def _holds(file: Path, held: ExitStack) -> bool:
    """Whether it is ours now, and no other process has it."""
    handle = file.open("rb")
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        handle.close()
        return False
    held.enter_context(handle)
    return True


def make_transport(options: IdentityOptions) -> tuple[WebSocketTransport, ExitStack]:
    """How this host reaches others, and what to close at the end. Raises UserError for options that cannot work."""
    key = NetworkKey.load(options.network_key) if options.network_key else None
    trust = parse_trust(
        options.policies,
        allow=options.allow,
        allow_file=options.allow_file,
        known_peers=options.known_peers,
        insecure_open=options.insecure_open,
    )
    if options.tls is not None:
        options.tls.client_context()  # loads all files once, so that wrong ones are told before anything else
    identity, held = own_identity(options.identity)  # last: nothing is held by a command line that cannot work
    transport = WebSocketTransport(
        identity, trust=trust, network_key=key, network_name=options.network, tls=options.tls
    )
    return transport, held
