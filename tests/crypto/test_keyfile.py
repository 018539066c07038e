import os
import stat
from pathlib import Path

import pytest

from p2pfl.crypto import keyfile
from p2pfl.crypto.keyfile import read_secret, write_secret
from p2pfl.errors import IdentityError


def test_is_private_and_whole(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "key"
    write_secret(path, b"secret", "identity")
    assert read_secret(path, "identity") == b"secret"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert [file.name for file in path.parent.iterdir()] == ["key"]


def test_a_lax_umask_opens_nothing(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        write_secret(tmp_path / "key", b"secret", "identity")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "key").stat().st_mode) == 0o600


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o602, 0o610, 0o666])
def test_a_file_open_to_others_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "key"
    write_secret(path, b"secret", "identity")
    path.chmod(mode)
    with pytest.raises(IdentityError, match=f"chmod 600 {path}"):
        read_secret(path, "identity")


def test_nothing_is_overwritten_unasked(tmp_path: Path) -> None:
    path = tmp_path / "key"
    write_secret(path, b"old", "identity")
    with pytest.raises(IdentityError, match="exists already"):
        write_secret(path, b"new", "identity")
    assert read_secret(path, "identity") == b"old"
    write_secret(path, b"new", "identity", replace=True)
    assert read_secret(path, "identity") == b"new"
    assert [file.name for file in tmp_path.iterdir()] == ["key"]


@pytest.mark.parametrize("replace", [True, False])
def test_a_full_disk_leaves_the_old_file_and_no_rubbish(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, replace: bool
) -> None:
    path = tmp_path / "key"
    write_secret(path, b"old", "identity")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(keyfile.os, "fsync", full)
    with pytest.raises(IdentityError, match="No space left on device"):
        write_secret(path, b"new", "identity", replace=replace)
    assert read_secret(path, "identity") == b"old"
    assert [file.name for file in tmp_path.iterdir()] == ["key"]


def test_what_is_no_key_file(tmp_path: Path) -> None:
    with pytest.raises(IdentityError, match=r"^network key: .*absent cannot be read \(No such file"):
        read_secret(tmp_path / "absent", "network key")
    with pytest.raises(IdentityError, match="Is a directory"):
        read_secret(tmp_path, "identity")
    with pytest.raises(IdentityError, match="is not a file"):
        read_secret(Path("/dev/null"), "identity")
    write_secret(tmp_path / "large", bytes(5000), "identity")
    with pytest.raises(IdentityError, match="too large"):
        read_secret(tmp_path / "large", "identity")
    with pytest.raises(IdentityError, match="cannot be written"):
        write_secret(tmp_path / "large" / "inside a file", b"", "identity")
