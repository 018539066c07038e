"""Logs of a command: lines of JSON, lines of text, and logging as it was before when the command is over."""

from __future__ import annotations

import logging
import re
import sys
import warnings
from datetime import datetime
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pfl.app.logs import JsonLines, LogOptions, NodeLog, Patience, StderrLog
from p2pfl.errors import CourseError
from p2pfl.link.memory import MemoryNetwork
from p2pfl.node.events import PeerJoined, PeerMisbehaved, RoundStarted, UpdateMissing, Waiting
from tests.node.kit import make

log = logging.getLogger("p2pfl.tests")
JSON = LogOptions(log="json")


@pytest.fixture(autouse=True)
def logging_is_as_it_was_before() -> Any:
    ours, root = logging.getLogger("p2pfl"), logging.getLogger()
    before = ours.level, root.level, list(root.handlers), warnings.showwarning
    yield
    assert (ours.level, root.level, list(root.handlers), warnings.showwarning) == before


def rows(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [orjson.loads(line) for line in capsys.readouterr().err.splitlines()]


def failed() -> tuple[Any, ...]:
    try:
        raise ValueError("it is negative")
    except ValueError:
        return sys.exc_info()


def test_a_record_is_one_object_on_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with StderrLog(JSON):
        log.error("handler of %s failed\nbadly", "Train", exc_info=failed())
    [row] = rows(capsys)
    assert list(row) == ["time", "level", "logger", "message", "exception"]
    assert (row["level"], row["logger"], row["message"]) == ("error", "p2pfl.tests", "handler of Train failed\nbadly")
    assert row["exception"].startswith("Traceback") and row["exception"].endswith("ValueError: it is negative")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", row["time"])


def test_time_is_utc() -> None:
    record = logging.LogRecord("p2pfl", logging.INFO, "", 0, "x", None, None)
    record.created = 1767323045.25
    assert orjson.loads(JsonLines().format(record))["time"] == "2026-01-02T03:04:05.250Z"
    assert datetime.fromisoformat("2026-01-02T03:04:05.250Z").timestamp() == record.created


@given(st.text() | st.text(st.characters(codec=None, categories=["Cs"])), st.none() | st.integers() | st.text())
def test_whatever_is_said_is_a_line_of_json(message: str, field: object) -> None:
    record = logging.LogRecord("p2pfl", logging.INFO, "", 0, "%s", (message,), None)
    line = JsonLines(lambda: {"seat": 3}).format(record)
    assert "\n" not in line
    row = orjson.loads(line)
    assert row["seat"] == 3
    assert row["message"] == message.encode("utf-8", "backslashreplace").decode()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (LogOptions(), ["warning"]),
        (LogOptions(log_level="debug"), ["debug", "info", "warning"]),
        (LogOptions(log_level="error"), []),
        (JSON, ["info", "warning"]),
        (LogOptions(log="json", log_level="warning"), ["warning"]),
    ],
)
def test_levels(options: LogOptions, said: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with StderrLog(options):
        for level in ("debug", "info", "warning"):
            getattr(log, level)("a message")
        logging.getLogger("aiohttp").info("chatter of a library")
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == len(said)
    assert all(level in line.lower() for level, line in zip(said, lines, strict=True))


def test_text_is_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    with StderrLog(LogOptions()) as lines:
        log.warning("the disk is full")
        assert not lines.last_words(CourseError("no update came"))  # the command says it
    assert re.fullmatch(
        r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z WARNING p2pfl\.tests: the disk is full\n", capsys.readouterr().err
    )


def test_warnings_and_last_words_are_json_too(capsys: pytest.CaptureFixture[str]) -> None:
    with StderrLog(JSON) as lines, warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn("this is old", stacklevel=1)
        assert lines.last_words(CourseError("no update came"))
    warned, failed = rows(capsys)
    assert (warned["level"], warned["logger"]) == ("warning", "py.warnings")
    assert (failed["level"], failed["message"]) == ("error", "no update came")


async def test_events_are_logged_and_every_line_says_which_node_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    async with make(MemoryNetwork(), "a", seat=3) as node:
        with StderrLog(JSON) as lines:
            lines.follow(node)
            node.emit(PeerJoined("b"))
            node.emit(RoundStarted(7, 2))
            node.emit(UpdateMissing(7, "b", "it is late", "late"))
            log.warning("something else")
            await node.stop()
    told = rows(capsys)
    assert {(row["node"], row["seat"]) for row in told} == {("a", 3)}
    assert [(row.get("event"), row["level"], row["round"]) for row in told] == [
        ("PeerJoined", "info", 0), ("RoundStarted", "info", 7), ("UpdateMissing", "warning", 7), (None, "warning", 7),
    ]  # fmt: skip
    assert told[2]["message"] == "round 7 goes on without b: it is late"


async def test_in_text_events_are_left_to_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    async with make(MemoryNetwork(), "a") as node:
        with StderrLog(LogOptions(log_level="debug")) as lines:
            lines.follow(node)
            node.emit(PeerMisbehaved("b", "nonsense"))
    assert not capsys.readouterr().err


async def test_a_wait_is_told_ever_more_seldom() -> None:
    patience = Patience()
    told = [seconds for seconds in range(5, 200, 5) if patience.tells(Waiting("rain", seconds))]
    assert told == [5, 10, 20, 40, 80, 160]
    assert patience.tells(Waiting("rain", 5))  # anew
    assert not patience.tells(Waiting("rain", 5))
    assert patience.tells(PeerJoined("b")) and patience.tells(PeerJoined("b"))


async def test_two_waits_at_once_do_not_disturb_each_other() -> None:
    patience = Patience()
    told = [what for seconds in range(5, 41, 5) for what in ("rain", "snow") if patience.tells(Waiting(what, seconds))]
    assert told == ["rain", "snow"] * 4
    for number in range(1000):
        patience.tells(Waiting(f"round {number}", 5))
    assert len(patience._told) == 20


async def test_a_node_logs_its_events_where_they_can_be_filtered(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "p2pfl.events")
    async with make(MemoryNetwork(), "a") as node:
        NodeLog(node)
        node.emit(PeerJoined("b"))
    assert [(record.name, record.getMessage()) for record in caplog.records] == [("p2pfl.events", "b joined")]
