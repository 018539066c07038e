"""`p2pfl key` and `p2pfl id`."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from p2pfl.app.cli import main
from p2pfl.crypto.identity import Identity, NetworkKey


def test_a_key_is_made_for_the_owner_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "network.key"
    assert main(["key", str(file)]) == 0
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    NetworkKey.load(file)
    assert file.read_text().strip() not in capsys.readouterr().out


def test_a_key_is_not_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "network.key"
    assert main(["key", str(file)]) == 0
    before = file.read_bytes()
    assert main(["key", str(file)]) == 2
    assert "exists already" in capsys.readouterr().err
    assert file.read_bytes() == before


def test_an_id_stays_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "deep" / "identity.key"
    assert main(["id", str(file)]) == 0
    first = capsys.readouterr().out
    assert main(["id", str(file)]) == 0
    assert capsys.readouterr().out == first == f"{Identity.load(file).peer_id}\n"


def test_a_key_file_that_others_can_read_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "identity.key"
    assert main(["id", str(file)]) == 0
    file.chmod(0o640)
    assert main(["id", str(file)]) == 2
    assert "chmod 600" in capsys.readouterr().err
