"""The handshake of a link, sans I/O: feed it the other end's messages, send what it gives back, take the channel.

Noise XX (with a network key: XXpsk0+psk3), in which each end signs the handshake hash with its Ed25519 identity, as
libp2p's noise does with the static key (https://github.com/libp2p/specs/tree/master/noise); signing the hash instead
binds the signature to this one session. Each message travels as one binary WebSocket message.

    dialler                                             listener
    offered = offered_subprotocols()
                          -- upgrade, offered -->       chosen = choose_subprotocol(offered)
    Handshake(settings, initiator=True, ...)            Handshake(settings, initiator=False, ...)
    begin()               ------------------->          receive()
    receive()             <-------------------
                          ------------------->          receive()
    channel                                             channel

What was offered and chosen goes into the prologue, so that whoever tampers with the list breaks the handshake. All
that can go wrong raises HandshakeFailed (or its kinds) or LinkToSelf, with a sentence for our own log: the other end
is told nothing.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from struct import Struct
from typing import Final

import orjson

from p2pfl.crypto.aead import AESGCM, CHACHAPOLY, Aead, Buffer, aes_available
from p2pfl.crypto.identity import Identity, NetworkKey, peer_id_of, short_id, verify
from p2pfl.crypto.noise import HandshakeState
from p2pfl.errors import ConfigError, HandshakeFailed, LinkToSelf, VersionMismatch
from p2pfl.link.channel import MAX_MESSAGE, MAX_RECORD, MAX_RECORDS, RECORD_OVERHEAD, SecureChannel
from p2pfl.link.trust import TrustPolicy

__all__ = [
    "MAX_HANDSHAKE",
    "MAX_MESSAGE",
    "MAX_RECORD",
    "MAX_RECORDS",
    "RECORD_OVERHEAD",
    "VERSIONS",
    "Handshake",
    "SecureChannel",
    "SecuritySettings",
    "Versions",
    "choose_subprotocol",
    "offered_subprotocols",
]

MAX_HANDSHAKE: Final = (1024, 2048, 2048)  # bytes of handshake messages 1, 2 and 3
MAX_CAPS: Final = 1024  # bytes of canonical JSON
MAX_OFFERED: Final = 16  # subprotocols ...
MAX_NAME: Final = 64  # ... of so many characters

_CIPHERS: Final[dict[str, Aead]] = {"aesgcm": AESGCM, "chachapoly": CHACHAPOLY}  # best first
_SUBPROTOCOL: Final = re.compile(r"p2pfl\.v([1-9][0-9]{0,3})\.([a-z0-9]{1,32})")
_PAYLOAD: Final = Struct(">B32s64sH")  # version, public key, signature, length of the caps that follow
_PAYLOAD_VERSION: Final = 1
_SIGNED: Final = b"p2pfl noise id v1"


@dataclass(frozen=True, slots=True)
class Versions:
    """The protocol versions that one end speaks, from the lowest to the highest."""

    lowest: int
    highest: int

    def __post_init__(self) -> None:
        if not 1 <= self.lowest <= self.highest <= 9999:
            raise ValueError(f"versions from {self.lowest} to {self.highest}")

    def common(self, theirs: Versions) -> int:
        """The highest version that both ends speak. Raises VersionMismatch, which says who should upgrade.

        >>> Versions(1, 3).common(Versions(2, 5))
        3
        """
        if self.highest < theirs.lowest:
            raise VersionMismatch(f"the other end speaks protocol {theirs}, we only {self}: upgrade p2pfl here")
        if theirs.highest < self.lowest:
            raise VersionMismatch(f"the other end speaks protocol {theirs}, we only {self}: upgrade p2pfl there")
        return min(self.highest, theirs.highest)

    def __str__(self) -> str:
        if self.lowest == self.highest:
            return f"version {self.lowest}"
        return f"versions {self.lowest} to {self.highest}"


VERSIONS: Final = Versions(1, 1)  # what this code speaks


def offered_subprotocols(versions: Versions = VERSIONS) -> tuple[str, ...]:
    """What a dialler offers, best first. AES-GCM only where the processor has instructions for it."""
    ciphers = [name for name in _CIPHERS if _usable(name)]
    newest_first = range(versions.highest, versions.lowest - 1, -1)
    return tuple(f"p2pfl.v{version}.{cipher}" for version in newest_first for cipher in ciphers)


def choose_subprotocol(offered: Sequence[str], versions: Versions = VERSIONS) -> str:
    """What a listener answers: the highest common version with the fastest common cipher.

    Raises VersionMismatch; HandshakeFailed if nothing of p2pfl, or no cipher that we have, was offered.
    """
    version = versions.common(_offered_versions(offered))
    for cipher in _CIPHERS:
        choice = f"p2pfl.v{version}.{cipher}"
        if choice in offered and _usable(cipher):
            return choice
    raise HandshakeFailed(f"the other end offers no cipher for protocol version {version} that we have")


@dataclass(frozen=True, slots=True, kw_only=True)
class SecuritySettings:
    """What one node brings to all of its handshakes. Raises ConfigError for what cannot work."""

    identity: Identity
    trust: TrustPolicy
    network_key: NetworkKey | None = None
    network_name: str = "p2pfl"  # two networks with different names never link
    caps: dict[str, object] = field(default_factory=dict)  # what we say about ourselves: JSON, at most 1 KiB

    def __post_init__(self) -> None:
        if self.trust.needs_network_key and self.network_key is None:
            raise ConfigError("trust: 'network_key' needs a network key: give its file in network_key")
        if not 1 <= len(self.network_name.encode()) <= 255:
            raise ConfigError("network_name: it has 1 to 255 bytes: choose another name")
        try:
            same = orjson.loads(self.caps_json) == self.caps
        except TypeError as error:
            raise ConfigError(f"caps: they are not JSON ({error}): use strings, numbers, lists and dicts") from error
        if not same:  # NaN would silently become null
            raise ConfigError("caps: they do not survive JSON: use strings, finite numbers, lists and dicts")
        if len(self.caps_json) > MAX_CAPS:
            raise ConfigError(f"caps: {len(self.caps_json)} bytes of JSON, at most {MAX_CAPS} are sent: say less")

    @property
    def caps_json(self) -> bytes:
        """The canonical form that is sent."""
        return orjson.dumps(self.caps, option=orjson.OPT_SORT_KEYS)


class Handshake:
    """One end of one handshake. After any exception it is dead."""

    def __init__(
        self,
        settings: SecuritySettings,
        *,
        initiator: bool,
        offered: Sequence[str],
        chosen: str,
        expect: str | None = None,
        label: str | None = None,
    ) -> None:
        """`offered` is what the dialler offered, in its order, and `chosen` what the listener answered.

        `expect` is the peer id that must be at the other end; `label` the address that we dialled, None if we were
        dialled. Raises HandshakeFailed if `chosen` was not offered or is none of ours.
        """
        aead = _agreed_cipher(offered, chosen)
        self._settings = settings
        self._expect = expect
        self._label = label
        self._messages = 0  # that went through, of three
        self._channel: SecureChannel | None = None
        pattern, psks = ("XXpsk0+psk3", settings.network_key.psks) if settings.network_key else ("XX", ())
        suite = f"Noise_{pattern}_25519_{aead.name}_SHA256"
        self._noise = HandshakeState(
            pattern,
            aead,
            initiator=initiator,
            prologue=_prologue(suite, settings.network_name, offered, chosen),
            s=settings.identity.noise_static,
            psks=psks,
        )

    @property
    def done(self) -> bool:
        """Whether there is a channel. What the last `receive` gave must still be sent."""
        return self._channel is not None

    @property
    def channel(self) -> SecureChannel:
        """The channel, once `done`."""
        if self._channel is None:
            raise HandshakeFailed("the handshake is not over")
        return self._channel

    def begin(self) -> bytes:
        """Message 1: the initiator's first step."""
        message = self._noise.write_message()
        self._messages = 1
        return message

    def receive(self, message: Buffer) -> bytes:
        """Take the next message of the other end; gives what to send back, or b"" if there is nothing to say.

        Raises HandshakeFailed, UntrustedPeer, LinkToSelf.
        """
        index = self._messages
        if index >= len(MAX_HANDSHAKE):
            raise HandshakeFailed("a handshake message after the last")
        if len(message) > MAX_HANDSHAKE[index]:
            raise HandshakeFailed(f"handshake message {index + 1} is too large: {len(message)} bytes")
        payload = self._read(bytes(message), index)
        self._messages = index + 1
        if index == 0:
            self._messages = 2
            return self._noise.write_message(self._introduce)
        remote, caps = self._recognise(payload)
        reply = self._noise.write_message(self._introduce) if self._noise.initiator else b""
        self._messages = len(MAX_HANDSHAKE)
        self._channel = SecureChannel(
            self._noise.split(),
            local=self._settings.identity.peer_id,
            remote=remote,
            initiator=self._noise.initiator,
            remote_caps=caps,
            channel_id=self._noise.handshake_hash,
            suite=self._noise.protocol_name,
        )
        return reply

    def _read(self, message: bytes, index: int) -> bytes:
        try:
            payload = self._noise.read_message(message)
        except HandshakeFailed as error:
            raise HandshakeFailed(f"{error}{self._guess(message, index)}") from error
        if index == 0 and payload:
            raise HandshakeFailed("the first handshake message is not empty: the other end has a network key, we none")
        return payload

    def _guess(self, message: bytes, index: int) -> str:
        """Why a message failed, as far as an honest other end can be at fault."""
        if index == 0 and self._settings.network_key and len(message) == 32:
            return ": the other end has no network key, we have one"
        if index == 0 and self._settings.network_key:
            return ": the other end has another network key or network name"
        if index == 1:
            return ": the other end may be in a network of another name"
        return ""

    def _introduce(self, session: bytes) -> bytes:
        """The payload that proves who we are to this session."""
        identity, caps = self._settings.identity, self._settings.caps_json
        statement = _statement(self._noise.initiator, session, identity.noise_static.public)
        head = _PAYLOAD.pack(_PAYLOAD_VERSION, identity.public_key, identity.sign(statement), len(caps))
        return head + caps

    def _recognise(self, payload: bytes) -> tuple[str, dict[str, object]]:
        """The peer id that a payload proves, and its caps; refuses whom we do not want."""
        if len(payload) < _PAYLOAD.size:
            raise HandshakeFailed("the other end does not say who it is")
        version, public_key, signature, caps_size = _PAYLOAD.unpack_from(payload)
        caps = payload[_PAYLOAD.size :]
        if version != _PAYLOAD_VERSION or caps_size != len(caps) or caps_size > MAX_CAPS:
            raise HandshakeFailed("the other end says who it is in a form that we do not know")
        statement = _statement(not self._noise.initiator, self._noise.payload_hash, self._noise.rs)
        if not verify(public_key, statement, signature):
            raise HandshakeFailed("the other end does not prove its identity: the signature is wrong")
        remote = peer_id_of(public_key)
        if public_key == self._settings.identity.public_key:
            raise LinkToSelf(
                "the other end is this node itself, or has its identity: give each node a key file of its own"
            )
        if self._expect is not None and remote != self._expect:
            raise HandshakeFailed(f"{short_id(remote)} answers where {short_id(self._expect)} was expected")
        said = _parse_caps(caps)
        self._settings.trust.admit(remote, self._label)  # last: it may pin the peer
        return remote, said

    def __repr__(self) -> str:
        return f"<Handshake {self._noise.protocol_name}, {self._messages} of {len(MAX_HANDSHAKE)} messages>"


def _usable(cipher: str) -> bool:
    return cipher != "aesgcm" or aes_available()


def _offered_versions(offered: Sequence[str]) -> Versions:
    matches = [match for name in offered[:MAX_OFFERED] if (match := _SUBPROTOCOL.fullmatch(name))]
    if not matches:
        raise HandshakeFailed("the other end does not offer to speak p2pfl")
    found = [int(match[1]) for match in matches]
    return Versions(min(found), max(found))


def _agreed_cipher(offered: Sequence[str], chosen: str) -> Aead:
    if len(offered) > MAX_OFFERED or not all(name.isascii() and len(name) <= MAX_NAME for name in offered):
        raise HandshakeFailed("the other end offers more than it may")
    match = _SUBPROTOCOL.fullmatch(chosen)
    if match is None or chosen not in offered:
        raise HandshakeFailed("the other end chose what was not offered")
    VERSIONS.common(Versions(int(match[1]), int(match[1])))
    if match[2] not in _CIPHERS or not _usable(match[2]):
        raise HandshakeFailed(f"cipher {match[2]} was chosen, and is not available here")
    return _CIPHERS[match[2]]


def _prologue(suite: str, network_name: str, offered: Sequence[str], chosen: str) -> bytes:
    """What both ends must agree on without saying it once more; every part is delimited."""
    versions, name = _offered_versions(offered), network_name.encode()
    return b"".join(
        (
            b"p2pfl/1\0" + suite.encode() + b"\0",
            len(name).to_bytes(2, "big") + name,
            versions.lowest.to_bytes(2, "big") + versions.highest.to_bytes(2, "big"),
            bytes([len(offered)]),
            *(bytes([len(each)]) + each.encode() for each in (*offered, chosen)),
        )
    )


def _statement(initiator: bool, session: bytes, static_key: bytes) -> bytes:
    return _SIGNED + (b"I" if initiator else b"R") + session + static_key


def _parse_caps(data: bytes) -> dict[str, object]:
    """Canonical JSON only: an object that means one thing to everybody, without a key said twice."""
    try:
        caps = orjson.loads(data)
        canonical = orjson.dumps(caps, option=orjson.OPT_SORT_KEYS) == data
    except (ValueError, TypeError) as error:
        raise HandshakeFailed("what the other end says about itself is not JSON") from error
    if not isinstance(caps, dict) or not canonical:
        raise HandshakeFailed("what the other end says about itself is not a canonical JSON object")
    return caps
