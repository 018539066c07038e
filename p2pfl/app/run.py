"""The folder that every run leaves: the resolved course, metrics as JSON lines, the final model, a log.

runs/fedavg-1a2b3c-20260102-030405/
    course.json          what was run, with all defaults; `p2pfl simulate` takes it back
    metrics.jsonl        one object per round
    log.txt              one line per event
    checkpoint.safetensors    the last checkpoint, if any were asked for; `--resume` goes on from it
    model.safetensors    the final model by parameter names
    report.json          figures of the whole run, with the model's hash
"""

from __future__ import annotations

import time
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, TextIO

import orjson
from safetensors.torch import save
from torch import Tensor

from p2pfl.app.checkpoint import CHECKPOINT
from p2pfl.app.config import Config, course_hash, to_mapping
from p2pfl.errors import ConfigError
from p2pfl.learn.params import Layout, model_hash

__all__ = ["RunFolder"]

_OF_A_RUN = (CHECKPOINT, "model.safetensors", "report.json")


class RunFolder:
    """Opened for one run; every line is flushed, so that a killed run leaves what it had."""

    def __init__(self, base: Path, config: Config[Any], name: str = "") -> None:
        """Makes the folder `base`/`name`, a new one by date if there is no name. Raises ConfigError if it cannot."""
        stamp = time.strftime("%Y%m%d-%H%M%S")
        wanted = name or f"{config.course.name}-{course_hash(config)[:6]}-{stamp}"
        self.path = _fresh(base, wanted) if not name else base / wanted
        self.earlier: list[dict[str, Any]] = []  # the lines of metrics.jsonl that were there already
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            for name in _OF_A_RUN:  # of another run under this name
                (self.path / name).unlink(missing_ok=True)
            (self.path / "course.json").write_bytes(orjson.dumps(to_mapping(config), option=orjson.OPT_INDENT_2))
            self._open("w")
        except OSError as error:
            raise self._unwritable(error) from error

    @classmethod
    def reopen(cls, path: Path, rounds: int) -> Self:
        """Go on with a run after so many rounds; what was written of later ones is dropped. Or ConfigError."""
        folder = cls.__new__(cls)
        folder.path = path
        try:
            kept = (path / "metrics.jsonl").read_bytes().splitlines(keepends=True)[:rounds]
            folder.earlier = [orjson.loads(line) for line in kept]
            folder._write("metrics.jsonl", b"".join(kept))
            folder._open("a")
        except (OSError, orjson.JSONDecodeError) as error:
            raise folder._unwritable(error) from error
        return folder

    def _open(self, mode: Literal["w", "a"]) -> None:
        self._metrics: TextIO = (self.path / "metrics.jsonl").open(mode, encoding="utf-8")
        self._log: TextIO = (self.path / "log.txt").open(mode, encoding="utf-8")

    def _unwritable(self, error: Exception) -> ConfigError:
        return ConfigError(f"--runs: {self.path} cannot be written ({error}); name another folder")

    def metrics(self, **row: object) -> None:
        """One line of metrics.jsonl."""
        self._metrics.write(orjson.dumps(row).decode() + "\n")
        self._metrics.flush()

    def log(self, line: str) -> None:
        """One line of log.txt, with the time of day."""
        self._log.write(f"{time.strftime('%H:%M:%S')} {line}\n")
        self._log.flush()

    def model(self, layout: Layout, params: Tensor) -> None:
        """model.safetensors, whole or not at all."""
        views = zip(layout.entries, layout.views(params), strict=True)
        named = {entry.name: view.contiguous().clone() for entry, view in views}
        self._write("model.safetensors", save(named, {"hash": model_hash(params)}))

    def report(self, figures: dict[str, object]) -> None:
        """report.json."""
        self._write("report.json", orjson.dumps(figures, option=orjson.OPT_INDENT_2))

    def _write(self, name: str, content: bytes) -> None:
        temporary = self.path / f".{name}.part"
        temporary.write_bytes(content)
        temporary.replace(self.path / name)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._metrics.close()
        self._log.close()

    def __repr__(self) -> str:
        return f"<RunFolder {self.path}>"


def _fresh(base: Path, name: str) -> Path:
    number, path = 2, base / name
    while path.exists():
        path, number = base / f"{name}-{number}", number + 1
    return path
