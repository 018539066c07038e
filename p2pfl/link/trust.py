"""Whom a node admits: policies over proven peer ids, combined with `&` (all must agree).

A policy is asked once per handshake, when the other end has proven its identity and before anything of the
application is sent or read.
"""

from __future__ import annotations

import ipaddress
import logging
import os
import tempfile
from abc import abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import orjson

from p2pfl.crypto.identity import Succession, is_peer_id, peer_id_of, short_id
from p2pfl.errors import ConfigError, UntrustedPeer

__all__ = ["AllOf", "AllowList", "NetworkKeyTrust", "Open", "Tofu", "TrustPolicy", "parse_trust"]

log = logging.getLogger(__name__)


class TrustPolicy(Protocol):
    """Who may be at the other end of a link. A policy of one's own subclasses it and says whom to `admit`."""

    @abstractmethod
    def admit(self, peer_id: str, label: str | None) -> None:
        """Raise UntrustedPeer unless the peer is admitted.

        `label` is the address that we dialled; None if the peer dialled us.
        """

    @property
    def needs_network_key(self) -> bool:
        """Whether the policy is void without a network key."""
        return False

    def check_listen(self, host: str) -> None:
        """Raise ConfigError if the policy is too weak for listening on this host."""
        return  # most are strong enough anywhere

    def __and__(self, other: TrustPolicy) -> TrustPolicy:
        """The policy that admits whom both admit."""
        return AllOf((self, other))


@dataclass(frozen=True, slots=True)
class AllOf(TrustPolicy):
    """Admits whom all of the policies admit."""

    policies: tuple[TrustPolicy, ...]

    def admit(self, peer_id: str, label: str | None) -> None:
        for policy in self.policies:
            policy.admit(peer_id, label)

    @property
    def needs_network_key(self) -> bool:
        return any(policy.needs_network_key for policy in self.policies)

    def check_listen(self, host: str) -> None:
        for policy in self.policies:
            policy.check_listen(host)


class AllowList(TrustPolicy):
    """Admits the peers on a list: given as ids, or a text file with one id per line ("#" begins a comment).

    A file is read again when it changed, so that peers can be added and removed while the node runs. A file that went
    bad admits nobody until it is mended: a slip of the editor must not keep a banned peer in.
    """

    def __init__(self, ids: Iterable[str] = (), *, file: str | Path | None = None) -> None:
        """Raises ConfigError for a text that is no peer id, a file that cannot be read, or a list without peers."""
        self._given = frozenset(_checked(ids, "trust.allow"))
        self._file = None if file is None else Path(file)
        self._stamp: tuple[int, ...] = ()
        self._listed: frozenset[str] = frozenset()
        self.reload()
        if not self.ids and self._file is None:
            raise ConfigError("trust.allow: the list has no peers: give the peer ids, or a file of them")

    @property
    def ids(self) -> frozenset[str]:
        """Who is admitted at the moment."""
        return self._given | self._listed

    def reload(self) -> None:
        """Read the file again if it changed. Raises ConfigError; nobody of the file is admitted then."""
        if self._file is None:
            return
        try:
            status = self._file.stat()
            stamp = (status.st_mtime_ns, status.st_size, status.st_ino)
            if stamp == self._stamp:
                return
            self._stamp, self._listed = (), frozenset()
            lines = self._file.read_text("utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            self._stamp, self._listed = (), frozenset()
            raise ConfigError(f"trust.allow_file: {self._file} cannot be read ({error}): check the path") from error
        self._listed = frozenset(_checked(_entries(lines), f"trust.allow_file: {self._file}"))
        self._stamp = stamp

    def admit(self, peer_id: str, label: str | None) -> None:
        try:
            self.reload()
        except ConfigError as error:
            log.error("%s", error)
        if peer_id not in self.ids:
            raise UntrustedPeer(f"{short_id(peer_id)} is not on the allow list: add {peer_id} if it belongs there")

    def __repr__(self) -> str:
        return f"<AllowList of {len(self.ids)} peers>"


class Tofu(TrustPolicy):
    """Trust on first use: the id first met at a dialled address is pinned, and must be there ever after.

    Protects the addresses that this node dials. A peer that dials in has no address worth pinning and is admitted:
    combine with a network key or an allow list where strangers can reach the port.
    """

    def __init__(self, path: str | Path) -> None:
        """`path` is the JSON file of the pins (label -> peer id). Raises ConfigError if it is damaged."""
        self._path = Path(path)
        self._pins: dict[str, str] = {}
        try:
            pins = orjson.loads(self._path.read_bytes())
        except FileNotFoundError:
            return
        except (OSError, ValueError) as error:
            raise ConfigError(f"trust.known_peers: {path} cannot be read ({error}): mend it or move it away") from error
        if not isinstance(pins, dict) or not all(isinstance(pin, str) and is_peer_id(pin) for pin in pins.values()):
            raise ConfigError(f"trust.known_peers: {path} does not map addresses to peer ids: mend it or move it away")
        self._pins = pins

    @property
    def pins(self) -> dict[str, str]:
        """A copy of what is pinned: label -> peer id."""
        return dict(self._pins)

    def admit(self, peer_id: str, label: str | None) -> None:
        if label is None:
            return
        pinned = self._pins.get(label)
        if pinned is None:
            self._pin(label, peer_id)
        elif pinned != peer_id:
            raise UntrustedPeer(
                f"{label} was {pinned} and now answers as {peer_id}: if the peer did change its key, "
                f"remove the line of {label} from {self._path}"
            )

    def succeed(self, succession: Succession) -> None:
        """Move the pins of the old key to the new one. Raises UntrustedPeer if the old key did not sign that."""
        old, new = peer_id_of(succession.old_key), peer_id_of(succession.new_key)
        if not succession.valid:
            raise UntrustedPeer(f"{short_id(old)} did not sign that {short_id(new)} succeeds it: keep the old pin")
        for label in [label for label, pinned in self._pins.items() if pinned == old]:
            self._pin(label, new)

    def _pin(self, label: str, peer_id: str) -> None:
        pins = self._pins | {label: peer_id}
        try:
            _replace_file(self._path, orjson.dumps(pins, option=orjson.OPT_INDENT_2 | orjson.OPT_SORT_KEYS))
        except OSError as error:  # an unsaved pin would be no pin after the next start
            raise UntrustedPeer(
                f"{short_id(peer_id)} cannot be pinned, {self._path} cannot be written ({error.strerror}): mend that"
            ) from error
        self._pins = pins

    def __repr__(self) -> str:
        return f"<Tofu {self._path}, {len(self._pins)} pins>"


@dataclass(frozen=True, slots=True)
class NetworkKeyTrust(TrustPolicy):
    """Admits every holder of the network key: the handshake has proven that the peer holds it."""

    def admit(self, peer_id: str, label: str | None) -> None:
        """Everybody: without the key there is no handshake to come from."""

    @property
    def needs_network_key(self) -> bool:
        return True


@dataclass(frozen=True, slots=True)
class Open(TrustPolicy):
    """Admits everybody, on loopback only; elsewhere if `insecure_open`."""

    insecure_open: bool = False

    def admit(self, peer_id: str, label: str | None) -> None:
        if label is not None and not self.insecure_open and not _is_loopback(_host_of(label)):
            raise UntrustedPeer(
                f"{short_id(peer_id)} at {label} is not on this host, and trust is 'open': "
                "choose another trust policy, or set insecure_open"
            )

    def check_listen(self, host: str) -> None:
        if not self.insecure_open and not _is_loopback(host):
            raise ConfigError(
                f"trust: 'open' listens on loopback only, not on {host or 'all addresses'}: "
                "choose another trust policy, or set insecure_open"
            )


def parse_trust(
    names: Iterable[str],
    *,
    allow: Iterable[str] = (),
    allow_file: str | Path | None = None,
    known_peers: str | Path = "known_peers.json",
    insecure_open: bool = False,
) -> TrustPolicy:
    """The policy of a configuration: each of `names` is allow_list, tofu, network_key or open, and all must agree.

    Raises ConfigError for an unknown name, for no name, and for what the named policies lack.
    """
    makers: dict[str, Callable[[], TrustPolicy]] = {
        "allow_list": lambda: AllowList(allow, file=allow_file),
        "tofu": lambda: Tofu(known_peers),
        "network_key": NetworkKeyTrust,
        "open": lambda: Open(insecure_open),
    }
    policies: list[TrustPolicy] = []
    for name in names:
        if name not in makers:
            raise ConfigError(f"trust: '{name}' is none of {', '.join(makers)}: choose one of these")
        policies.append(makers[name]())
    if not policies:
        raise ConfigError(f"trust: no policy is named: choose of {', '.join(makers)}")
    return policies[0] if len(policies) == 1 else AllOf(tuple(policies))


def _checked(ids: Iterable[str], field_name: str) -> Iterable[str]:
    for peer_id in ids:
        if not is_peer_id(peer_id):
            raise ConfigError(f"{field_name}: '{peer_id}' is no peer id: give all 52 characters")
        yield peer_id


def _entries(lines: Iterable[str]) -> Iterable[str]:
    return (entry for line in lines if (entry := line.partition("#")[0].strip()))


def _host_of(label: str) -> str:
    """The host of "host", "host:port", "[v6]:port" or "ws://host:port/path"."""
    label = label.rpartition("://")[2].partition("/")[0]
    if label.startswith("["):
        return label[1:].partition("]")[0]
    return label if label.count(":") > 1 else label.partition(":")[0]


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _replace_file(path: Path, data: bytes) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    temporary = Path(name)
    try:
        with open(descriptor, "wb") as file:  # noqa: PTH123 - Path.open takes no descriptor
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
