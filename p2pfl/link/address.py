"""Addresses of links over sockets: what a user writes, checked, and what is dialled or bound."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import urlsplit

from p2pfl.errors import ConfigError

__all__ = ["PATH", "Address", "parse_address"]

PATH = "/p2pfl/v1"
LOOPBACK = "127.0.0.1"

_PORTS = {"ws": 80, "wss": 443}


@dataclass(frozen=True, slots=True)
class Address:
    """A place to dial, or to listen at."""

    host: str
    port: int
    tls: bool = False
    path: str = PATH

    @property
    def label(self) -> str:
        """ "host:port", as trust policies pin it; an IPv6 host is in brackets."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def __str__(self) -> str:
        return f"{'wss' if self.tls else 'ws'}://{self.label}{self.path}"


def parse_address(text: str, *, tls: bool = False) -> Address:
    """An address from "host:port", "port", "ws://host[:port][/path]" or "wss://...". Raises ConfigError.

    A host that is left out is 127.0.0.1; `tls` is for the forms that do not say. Port 0 is for listening.

    >>> str(parse_address("hospital-a.example:9000"))
    'ws://hospital-a.example:9000/p2pfl/v1'
    >>> str(parse_address("wss://[::1]/fl"))
    'wss://[::1]:443/fl'
    """
    scheme, separator, rest = text.strip().rpartition("://")
    if separator and scheme not in _PORTS:
        raise _wrong(text, f"the scheme {scheme!r} is unknown")
    if rest.isdecimal() and not separator:
        rest = f":{rest}"
    try:
        parts = urlsplit(f"//{rest}")
        host, port = parts.hostname or LOOPBACK, parts.port
    except ValueError as error:
        raise _wrong(text, str(error)) from error
    if parts.username is not None or parts.query or parts.fragment or any(map(str.isspace, text.strip())):
        raise _wrong(text, "there is more in it than a host, a port and a path")
    if port is None and not separator:
        raise _wrong(text, "the port is missing")
    path = parts.path if parts.path not in ("", "/") else PATH
    if port is None:
        port = _PORTS[scheme]
    return Address(host, port, tls if not separator else scheme == "wss", path)


def _wrong(text: str, reason: str) -> ConfigError:
    return ConfigError(f"address {text!r} cannot be used: {reason}: write host:port, or ws://host:port{PATH}")
