"""What a user may write for an address."""

from __future__ import annotations

import doctest

import pytest

from p2pfl.errors import ConfigError
from p2pfl.link import address
from p2pfl.link.address import Address, parse_address


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("host:9000", Address("host", 9000)),
        (" host:9000 ", Address("host", 9000)),
        ("9000", Address("127.0.0.1", 9000)),
        (":9000", Address("127.0.0.1", 9000)),
        ("0", Address("127.0.0.1", 0)),
        ("[::1]:9000", Address("::1", 9000)),
        ("ws://host", Address("host", 80)),
        ("ws://host/", Address("host", 80)),
        ("wss://host", Address("host", 443, tls=True)),
        ("wss://host:1/a/b", Address("host", 1, tls=True, path="/a/b")),
        ("ws://127.0.0.1:0/p2pfl/v1", Address("127.0.0.1", 0)),
    ],
)
def test_accepted(text: str, expected: Address) -> None:
    assert parse_address(text) == expected
    assert parse_address(str(expected)) == expected


def test_tls_holds_where_the_address_does_not_say() -> None:
    assert parse_address("host:1", tls=True).tls
    assert not parse_address("ws://host:1", tls=True).tls


@pytest.mark.parametrize(
    "text",
    [
        *("", "host", "host:", "host:port", "host:70000", "host:-1", "http://host:1", "memory:bob", "user@host:1"),
        *("host:1?q", "host:1#f", "ho st:1", "[::1:1", "::1:9000"),
    ],
)
def test_refused_with_the_mend(text: str) -> None:
    with pytest.raises(ConfigError, match="write host:port"):
        parse_address(text)


def test_label_is_what_trust_pins() -> None:
    assert Address("::1", 1).label == "[::1]:1"
    assert Address("host", 2, tls=True, path="/x").label == "host:2"


def test_examples() -> None:
    assert doctest.testmod(address).failed == 0
