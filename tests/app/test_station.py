"""A node on this host. Signals, exit codes and logs are tried on real processes, in tests/test_operations.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from p2pfl.app.station import Station, StationOptions
from p2pfl.errors import ConfigError, ListenFailed, PeersLost

pytestmark = pytest.mark.sockets


def options(tmp_path: Path, **more: object) -> StationOptions:
    return StationOptions(identity=tmp_path / "identity.key", json=True, **more)  # type: ignore[arg-type]  # by name


async def test_it_says_who_and_where_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    station = Station(options(tmp_path, listen=(":0",), advertise=("hub.example:7700",)))
    async with station.up() as node:
        assert node is station.node
        assert list(node.addresses) == ["hub.example:7700"]
    assert f'"id":"{node.id}"' in capsys.readouterr().out


async def test_a_port_alone_is_for_this_machine(tmp_path: Path) -> None:
    async with Station(options(tmp_path, listen=(":0",))).up() as node:
        assert node.addresses[0].startswith("ws://127.0.0.1:")


async def test_what_it_plays_ends_it(tmp_path: Path) -> None:
    station = Station(options(tmp_path))
    with pytest.raises(PeersLost):
        async with station.up():
            raise PeersLost("nobody")
    with pytest.raises(ListenFailed):
        async with Station(options(tmp_path, listen=("192.0.2.1:1",), trust=("tofu",))).up():
            pass


def test_patience_is_not_negative(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--patience-seconds is -1"):
        options(tmp_path, patience_seconds=-1)
