"""What was spent of the privacy of one body of data, over all runs: a file that only grows, and is never behind.

A charge is on the disk before the noise that it pays for is drawn. So a crash may cost a round that nobody got to see,
and can never hide one that somebody did. Each line has the hash of the one before it: one that is changed or left out
in the middle is noticed, and then nothing more is released. Whoever may write the file can still cut lines off its end.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

import msgspec

from p2pfl.errors import JournalError, PrivacySpent
from p2pfl.privacy.spent import Spent

__all__ = ["Charge", "PrivacyLedger"]


_ROUNDING = 1 + 1e-9  # of a sum of many costs that is to come out at the limit


class Charge(msgspec.Struct, frozen=True):
    """One line: what a round of a run costs."""

    run: str
    round: int
    mu_squared: float
    curve: tuple[float, ...]
    before: str  # the hash of the line before; of the name of the data, for the first

    @property
    def spent(self) -> Spent:
        """What it adds to."""
        return Spent(self.mu_squared, self.curve)


class PrivacyLedger:
    """Of one body of data, which its `fingerprint` names. Without a file, it lasts as long as the process."""

    def __init__(self, fingerprint: str, path: Path | None = None) -> None:
        """Raises JournalError for a file that is damaged, not to be written, or held by another process."""
        self.path = path
        self.spent = Spent()
        self.charges: list[Charge] = []
        self._head = _hash(fingerprint.encode())
        self._file: BinaryIO | None = None
        if path is not None:
            try:
                self._file = _opened(path)
                self._read(self._file, path)
            except BlockingIOError as error:
                raise JournalError(
                    f"the privacy ledger {path} is held by another process, which spends the same budget: end it first"
                ) from error
            except OSError as error:
                raise JournalError(f"the privacy ledger {path} cannot be used: {error.strerror or error}") from error

    def charge(self, run: str, round: int, cost: Spent, most: float, delta: float) -> None:
        """Note it durably, before the noise is drawn; it waits for the disk, which takes milliseconds.

        Raises PrivacySpent if then more than epsilon = `most` would be spent at this delta (0: there is no limit), and
        JournalError if it cannot be noted. Nothing may be released in either case.
        """
        after = self.spent + cost
        if most and after.epsilon(delta) > most * _ROUNDING:
            raise PrivacySpent(
                f"the privacy budget is spent: round {round + 1} would make epsilon {after.epsilon(delta):.4g} of at "
                f"most {most:g}, at delta {delta:g}; {len(self.charges)} charges are in "
                f"{self.path or 'the ledger of this process'}"
            )
        charge = Charge(run, round, cost.mu_squared, cost.curve, self._head)
        line = msgspec.json.encode(charge)
        if self._file is not None:
            self._append(self._file, line)
        self._take(charge, line)

    def of(self, run: str) -> list[Charge]:
        """The charges of one run."""
        return [charge for charge in self.charges if charge.run == run]

    def close(self) -> None:
        """Let other processes have the file."""
        if self._file is not None:
            self._file.close()

    def _append(self, file: BinaryIO, line: bytes) -> None:
        if file.closed:
            raise JournalError(f"the privacy ledger {self.path} is closed: after it could not be written, nothing is")
        end = file.seek(0, os.SEEK_END)
        try:
            if file.write(line + b"\n") <= len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(file.fileno())
        except OSError as error:
            with suppress(OSError):  # what is left of the line would be dropped when the file is opened next
                file.truncate(end)
            file.close()  # what the disk holds now is known only to who reads it anew
            raise JournalError(
                f"the privacy ledger {self.path} cannot be written: {error.strerror or error}"
            ) from error

    def _take(self, charge: Charge, line: bytes) -> None:
        self.spent += charge.spent
        self.charges.append(charge)
        self._head = _hash(line)

    def _read(self, file: BinaryIO, path: Path) -> None:
        content = file.read()
        whole = content[: content.rfind(b"\n") + 1]
        for number, line in enumerate(whole.splitlines(), start=1):
            try:
                charge = msgspec.json.decode(line, type=Charge, strict=True)
                if charge.before != self._head:
                    raise ValueError("it does not follow the line before")
                self._take(charge, line)
            except (msgspec.MsgspecError, ValueError) as error:
                file.close()
                raise JournalError(
                    f"the privacy ledger {path} is damaged in line {number} ({error}); nothing is released from these "
                    "data until it is restored from a copy"
                ) from error
        if len(whole) < len(content):  # a charge that was being written: it was not confirmed, so nothing was released
            file.truncate(len(whole))
            os.fsync(file.fileno())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<PrivacyLedger {self.path or 'in memory'}, {len(self.charges)} charges>"


def _opened(path: Path) -> BinaryIO:
    """The file, made if it is not there, for its owner only; ours as long as it is open."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o600), "r+b", buffering=0)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError:
        file.close()
        raise
    return file


def _hash(line: bytes) -> str:
    return hashlib.blake2b(line, digest_size=16, person=b"p2pfl-privacy").hexdigest()
