"""Log lines on stderr, for a person or, as JSON, for a collector. Only commands install them, never a node."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from types import TracebackType
from typing import Literal, Self

import orjson

from p2pfl.app.progress import CourseProgress
from p2pfl.errors import P2pflError
from p2pfl.node.events import Event, HandlerFailed, PeerMisbehaved, UpdateMissing, Waiting
from p2pfl.node.node import Node

__all__ = ["JsonLines", "LogOptions", "NodeLog", "Patience", "StderrLog"]

Fields = Callable[[], Mapping[str, object]]
Level = Literal["auto", "debug", "info", "warning", "error"]

_TROUBLES = (HandlerFailed, PeerMisbehaved, UpdateMissing)
_MOST_WAITS = 20  # that are remembered


@dataclass(frozen=True, slots=True)
class LogOptions:
    """What is logged on stderr, and how."""

    log: Literal["text", "json"] = "text"
    """json: one JSON object per line on stderr, the node's events among them; on stdout is then what --json says, if
    that is given, and nothing else."""
    log_level: Level = "auto"
    """The least level that is logged. auto: warning, and with --log json info."""

    @property
    def level(self) -> int:
        """As logging counts them."""
        if self.log_level == "auto":
            return logging.INFO if self.log == "json" else logging.WARNING
        return logging.getLevelNamesMapping()[self.log_level.upper()]


class JsonLines(logging.Formatter):
    """One JSON object per record, on one line. `fields`: what every line says besides."""

    def __init__(self, fields: Fields = dict) -> None:
        super().__init__()
        self.fields = fields

    def format(self, record: logging.LogRecord) -> str:
        """Time in UTC (RFC 3339), level, logger, message; then `fields`, the event's type and the traceback, if any."""
        row: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC)
            .isoformat(timespec="milliseconds")
            .replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": _sound(record.getMessage()),
            **self.fields(),
        }
        if event := getattr(record, "event", None):
            row["event"] = event
        if record.exc_info:
            row["exception"] = _sound(self.formatException(record.exc_info))
        return orjson.dumps(row, default=str).decode()


class StderrLog:
    """The log of one command: `with StderrLog(options) as log: ...`. Afterwards logging is as it was before."""

    def __init__(self, options: LogOptions) -> None:
        self._level = options.level
        self._json = JsonLines() if options.log == "json" else None
        self._handler = logging.StreamHandler()  # stderr
        self._handler.setFormatter(self._json or _text_lines())
        self._ours, self._root = logging.getLogger("p2pfl"), logging.getLogger()
        self._before = self._ours.level

    def __enter__(self) -> Self:
        self._root.addHandler(self._handler)  # what libraries warn of must not stand among the lines as something else
        self._ours.setLevel(self._level)
        logging.captureWarnings(self._json is not None)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        logging.captureWarnings(False)
        self._ours.setLevel(self._before)
        self._root.removeHandler(self._handler)

    def follow(self, node: Node) -> None:
        """In JSON, say in every line which node it is, its seat and round; and log its events.

        In text there is no need: a person reads them on stdout.
        """
        if self._json is not None:
            self._json.fields = NodeLog(node).fields

    def last_words(self, error: P2pflError) -> bool:
        """Log what ends the command, in JSON; False in text, where whoever runs the command says it."""
        if self._json is not None:
            logging.getLogger("p2pfl.app").error("%s", error)
        return self._json is not None


class NodeLog:
    """Logs the events of a node, and knows what is to be said of it in every line. An observer."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._log = logging.getLogger("p2pfl.events")
        self._progress = CourseProgress()
        self._patience = Patience()
        node.observe(self)

    def fields(self) -> dict[str, object]:
        """Which node, where it sits, how far it is."""
        return {"node": self._node.id, "seat": self._node.seat, "round": self._progress.round}

    def push(self, event: Event) -> None:
        """Called by the node."""
        self._progress.push(event)
        if self._patience.tells(event):
            level = logging.WARNING if isinstance(event, _TROUBLES) else logging.INFO
            self._log.log(level, "%s", event, extra={"event": type(event).__name__})

    def finish(self) -> None:
        """Called by the node: nothing more will come."""


class Patience:
    """Tells of a wait ever more seldom: that it goes on is no news."""

    def __init__(self) -> None:
        self._told: dict[str, float] = {}  # what was told to be waited for of late, and for how long then

    def tells(self, event: Event) -> bool:
        """Whether to tell of this event; it is told then."""
        if not isinstance(event, Waiting):
            return True
        told = self._told.get(event.what, 0.0)
        if told <= event.seconds < 2 * told:
            return False
        self._told.pop(event.what, None)
        self._told[event.what] = event.seconds
        if len(self._told) > _MOST_WAITS:
            del self._told[next(iter(self._told))]
        return True


def _text_lines() -> logging.Formatter:
    lines = logging.Formatter("%(asctime)s.%(msecs)03dZ %(levelname)s %(name)s: %(message)s", "%Y-%m-%dT%H:%M:%S")
    lines.converter = time.gmtime
    return lines


def _sound(text: str) -> str:
    """Names of files may hold bytes that are no UTF-8, which JSON cannot."""
    return text.encode("utf-8", "backslashreplace").decode()
