"""The folder that every run leaves: the resolved course, metrics as JSON lines, the final model, a log.

runs/fedavg-1a2b3c-20260102-030405/
    course.json          what was run, with all defaults; `p2pfl simulate` takes it back
    metrics.jsonl        one object per round
    clients.jsonl        one object per client and evaluation, if `metrics.clients` has `each`
    log.txt              one line per event
    checkpoint.safetensors    of a simulation: the last checkpoint, if any were asked for; `--resume` goes on from it
    run.json             of a host: which run, which node, which seat; the same command goes on with it
    journal.sqlite, round-*.safetensors, kept-*.safetensors    of a host: what was committed; see p2pfl/journal
    model.safetensors    the final model by parameter names
    report.json          figures of the whole run, with the model's hash
"""

from __future__ import annotations

import fcntl
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import msgspec
import orjson
from safetensors.torch import save
from torch import Tensor

from p2pfl.app.checkpoint import CHECKPOINT
from p2pfl.app.config import Config, course_hash, to_mapping
from p2pfl.app.lines import Lines, rows_of
from p2pfl.errors import ConfigError, JournalError
from p2pfl.journal.ledger import LEDGER
from p2pfl.learn.params import Layout, model_hash

__all__ = ["RunFolder", "RunMark", "unfinished"]

_MARK, _REPORT, _LOG, _CLIENTS = "run.json", "report.json", "log.txt", "clients.jsonl"
_OF_A_RUN = (CHECKPOINT, "model.safetensors", _MARK, _REPORT, _CLIENTS, f"{LEDGER}*", "round-*", "kept-*")


@dataclass(frozen=True, slots=True)
class RunMark:
    """Whose folder it is."""

    run: str  # the same at all nodes of the run
    course: str  # its hash
    peer: str
    seat: int
    addresses: tuple[str, ...] = ()  # of other nodes of the run, at last


def unfinished(
    base: Path, peer: str, *, course: str | None = None, run: str | None = None, name: str = ""
) -> tuple[Path, RunMark] | None:
    """The newest folder of a run that this node has begun and not ended, and that no other process is at.

    `course`, `run`: only of that course, of that run; `name`: only the folder of that name.
    """
    for path in [base / name] if name else sorted(_folders(base), key=_age):
        mark = _mark(path)
        if mark is None or mark.peer != peer or (path / _REPORT).exists():
            continue
        if course in (None, mark.course) and run in (None, mark.run) and _is_free(path):
            return path, mark
    return None


def _folders(base: Path) -> Iterator[Path]:
    return (path.parent for path in base.glob(f"*/{_MARK}"))


def _age(path: Path) -> float:
    return -(path / _LOG).stat().st_mtime if (path / _LOG).exists() else 0.0


def _mark(path: Path) -> RunMark | None:
    try:
        return msgspec.json.decode((path / _MARK).read_bytes(), type=RunMark)
    except (OSError, msgspec.MsgspecError):  # none, or one that is damaged: then it is of no use
        return None


def _is_free(path: Path) -> bool:
    try:
        with (path / _LOG).open("ab") as log:
            fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


class RunFolder:
    """Opened for one run. What is lost on a full disk are lines; a file that cannot be written is a JournalError."""

    def __init__(self, base: Path, config: Config[Any], name: str = "") -> None:
        """Makes the folder `base`/`name`, a new one by date if there is no name. Raises ConfigError if it cannot."""
        stamp = time.strftime("%Y%m%d-%H%M%S")
        wanted = name or f"{config.course.name}-{course_hash(config)[:6]}-{stamp}"
        self.path = _fresh(base, wanted) if not name else base / wanted
        self.earlier: list[dict[str, Any]] = []  # the lines of metrics.jsonl that were there already
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            for pattern in _OF_A_RUN:  # of another run under this name
                for old in self.path.glob(pattern):
                    old.unlink()
            (self.path / "course.json").write_bytes(orjson.dumps(to_mapping(config), option=orjson.OPT_INDENT_2))
            self._open("w")
        except OSError as error:
            raise self._unwritable(error) from error

    @classmethod
    def reopen(cls, path: Path, rounds: int) -> Self:
        """Go on with a run after so many rounds; what was written of later ones is dropped. Or ConfigError.

        A line that was being written when the process died is dropped as well, and one that has rotted.
        """
        folder = cls.__new__(cls)
        folder.path = path
        try:
            rows = rows_of((path / "metrics.jsonl").read_bytes())
            folder.earlier = [row for row in rows if row["round"] <= rounds]
            folder._write("metrics.jsonl", _lines(folder.earlier))
            if (path / _CLIENTS).exists():
                rows = rows_of((path / _CLIENTS).read_bytes())
                folder._write(_CLIENTS, _lines(row for row in rows if row["round"] <= rounds))
            folder._open("a")
        except (OSError, JournalError) as error:
            raise folder._unwritable(error) from error
        return folder

    def _open(self, mode: Literal["w", "a"]) -> None:
        self._metrics = Lines(self.path / "metrics.jsonl", mode)
        self._clients: Lines | None = None  # few runs have any
        self._log = Lines(self.path / _LOG, mode)
        fcntl.flock(self._log, fcntl.LOCK_EX | fcntl.LOCK_NB)  # to the end of the process: it is ours

    def _unwritable(self, error: Exception) -> ConfigError:
        return ConfigError(f"--runs: {self.path} cannot be written ({error}); name another folder")

    def metrics(self, **row: object) -> None:
        """One line of metrics.jsonl."""
        self._metrics.add(orjson.dumps(row).decode())

    def clients(self, round: int, found: Mapping[int, Mapping[str, float]]) -> None:
        """A line of clients.jsonl for each client: what it has found after a round, by its seat."""
        if self._clients is None:
            self._clients = Lines(self.path / _CLIENTS, "a")
        for seat, metrics in found.items():
            self._clients.add(orjson.dumps({"round": round, "seat": seat, **metrics}).decode())

    def log(self, line: str) -> None:
        """One line of log.txt, with the time of day."""
        self._log.add(f"{time.strftime('%H:%M:%S')} {line}")

    def model(self, layout: Layout, params: Tensor) -> None:
        """model.safetensors, whole or not at all."""
        views = zip(layout.entries, layout.views(params), strict=True)
        named = {entry.name: view.contiguous().clone() for entry, view in views}
        self._write("model.safetensors", save(named, {"hash": model_hash(params)}))

    def mark(self, mark: RunMark) -> None:
        """run.json."""
        self._write(_MARK, orjson.dumps(asdict(mark), option=orjson.OPT_INDENT_2))

    def report(self, figures: dict[str, object]) -> None:
        """report.json, which ends the run."""
        self._write(_REPORT, orjson.dumps(figures, option=orjson.OPT_INDENT_2))

    def _write(self, name: str, content: bytes) -> None:
        temporary = self.path / f".{name}.part"
        try:
            temporary.write_bytes(content)
            temporary.replace(self.path / name)
        except OSError as error:
            raise JournalError(f"{self.path / name} cannot be written: {error.strerror or error}") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for lines in (self._metrics, self._log, self._clients):
            if lines is not None:
                lines.close()

    def __repr__(self) -> str:
        return f"<RunFolder {self.path}>"


def _lines(rows: Iterable[Mapping[str, Any]]) -> bytes:
    return b"".join(orjson.dumps(row) + b"\n" for row in rows)


def _fresh(base: Path, name: str) -> Path:
    number, path = 2, base / name
    while path.exists():
        path, number = base / f"{name}-{number}", number + 1
    return path
