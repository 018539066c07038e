"""Files that hold a secret: written whole or not at all, readable by their owner only."""

from __future__ import annotations

import os
import secrets
import stat
from contextlib import suppress
from pathlib import Path

from p2pfl.errors import IdentityError

__all__ = ["read_secret", "write_secret"]

MAX_BYTES = 4096
POSIX = os.name == "posix"  # elsewhere there are no mode bits to check, nor folders to sync


def read_secret(path: Path, what: str) -> bytes:
    """The bytes of a key file. `what` names it in errors: "identity", "network key".

    Raises IdentityError if it is missing, not a file, larger than 4 KiB, or open to group or others.
    """
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())  # of the open file: what was checked is what is read
            if not stat.S_ISREG(status.st_mode):
                raise IdentityError(f"{what}: {path} is not a file: give the path of a key file")
            if POSIX and status.st_mode & 0o077:
                raise IdentityError(f"{what}: {path} can be used by others than its owner: chmod 600 {path}")
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise IdentityError(
            f"{what}: {path} cannot be read ({error.strerror}): check the path and its owner"
        ) from error
    if len(data) > MAX_BYTES:
        raise IdentityError(f"{what}: {path} is too large to be a key file: check the path")
    return data


def write_secret(path: Path, data: bytes, what: str, *, replace: bool = False) -> None:
    """Put `data` at `path` with mode 0600, durably; a crash leaves the whole file or none. Makes the folder with 0700.

    Raises IdentityError, also for a file that is there already unless `replace`.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            _write_new(temporary, data)
            if replace:
                temporary.replace(path)
            else:
                _link(temporary, path, what)
        finally:
            with suppress(FileNotFoundError):
                temporary.unlink()
        _sync_folder(path.parent)
    except OSError as error:
        raise IdentityError(f"{what}: {path} cannot be written ({error.strerror}): choose another path") from error


def _write_new(path: Path, data: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o600)
    with open(descriptor, "wb") as file:  # noqa: PTH123 - Path.open takes no descriptor
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _link(temporary: Path, path: Path, what: str) -> None:
    try:
        path.hardlink_to(temporary)  # as atomic as a rename, and fails if somebody was faster
    except FileExistsError as error:
        raise IdentityError(f"{what}: {path} exists already: move it away first, or choose another path") from error


def _sync_folder(folder: Path) -> None:
    if POSIX:
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
