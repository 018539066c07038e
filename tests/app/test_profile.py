"""`p2pfl simulate --profile`: who is charged, that nothing is lost, and that the process is left as it was."""

from __future__ import annotations

import asyncio
import pkgutil
import signal
import threading
from collections.abc import Callable, Iterator
from itertools import accumulate
from pathlib import Path
from types import FunctionType

import orjson
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from p2pfl.app import profile as profile_module
from p2pfl.app.cli import main
from p2pfl.app.profile import PURPOSES, Profile, Purpose, profile_table, profiling, purpose_of
from p2pfl.errors import ConfigError
from p2pfl.sim.loop import VirtualLoop

COURSE = """
course = { name = "fedavg", rounds = 2 }
topology = { n = 3 }
"""
TURN = ["asyncio.events.Handle._run", "asyncio.base_events.BaseEventLoop._run_once", "p2pfl.sim.loop.run_virtual"]
COMPUTED = ["p2pfl.compute.job.FitJob.__call__", "p2pfl.compute.inline.Inline.run_all", "p2pfl.sim.backlog.Backlog.x"]


@pytest.mark.parametrize(
    ("purpose", "stack"),
    [
        (Purpose.TRAINING, ["torch.autograd.grad", "p2pfl.learn.train.fit", *COMPUTED]),
        (Purpose.TRAINING, ["p2pfl.learn.data.Dataset.batch", "p2pfl.learn.train._batches", "p2pfl.learn.train.fit"]),
        (Purpose.TRAINING, ["my_models.Net.forward", "torch.nn.Module._call_impl", "p2pfl.learn.train.fit"]),
        (Purpose.TRAINING, ["p2pfl.learn.some_other_way.fit_all", "p2pfl.compute.some_other_place.Place.run_all"]),
        (Purpose.TRAINING, ["p2pfl.sim.backlog.Backlog._batch", *TURN]),
        (Purpose.EVALUATION, ["p2pfl.learn.model.Model._bind", "p2pfl.learn.evaluate.evaluate", *COMPUTED]),
        (Purpose.AGGREGATION, ["p2pfl.aggregators.mean.WeightedMean.add", "p2pfl.courses.rounds.Clients.train", *TURN]),
        (Purpose.AGGREGATION, ["p2pfl.learn.params.is_finite", "p2pfl.courses.dpsgd.Mixer._mix", *TURN]),
        (Purpose.AGGREGATION, ["p2pfl.courses.dpsgd.Mixer._mix.<locals>.<dictcomp>"]),
        (Purpose.MESSAGES, ["p2pfl.wire.codec.encode", "p2pfl.node.peer.Peer.ask", "p2pfl.courses.fedavg.x", *TURN]),
        (Purpose.MESSAGES, ["heapq.merge", "p2pfl.link.memory.MemoryNetwork.schedule"]),
        (Purpose.MESSAGES, ["random.Random.random", "p2pfl.sim.some_law.draw", "p2pfl.sim.network.Network._delay"]),
        (Purpose.MESSAGES, ["p2pfl.learn.params.is_finite", "p2pfl.courses.parts.Parts.vector"]),
        (Purpose.LOOP, ["asyncio.events.TimerHandle.__lt__", *TURN]),
        (Purpose.LOOP, ["selectors.EpollSelector.select", "p2pfl.sim.loop._Jump.select", *TURN]),
        (Purpose.OTHER, ["p2pfl.courses.rounds.RoundRules.asked", *TURN]),
        (Purpose.OTHER, ["my_course.Server.run", "p2pfl.node.playing.Stage.play", *TURN]),
        (Purpose.OTHER, ["torch.sort", "my_course.Server.run", *TURN]),
        (Purpose.OTHER, ["p2pfl.app.run.RunFolder.log", "p2pfl.sim.world.World._seen", "p2pfl.node.node.Node.emit"]),
        (Purpose.OTHER, ["p2pfl.learn.data.load_dataset", "p2pfl.app.build.prepare"]),
        (Purpose.OTHER, ["p2pfl.coursesque.f", ".nameless"]),
        (Purpose.OTHER, []),
    ],
)
def test_the_innermost_that_tells_its_purpose_is_charged(purpose: Purpose, stack: list[str]) -> None:
    assert purpose_of(stack) is purpose


@pytest.mark.parametrize("name", PURPOSES)
def test_what_is_listed_exists(name: str) -> None:
    assert pkgutil.resolve_name(name)


@given(st.lists(st.tuples(st.sampled_from(Purpose), st.integers(0, 10**6), st.integers(0, 10**6))))
def test_every_moment_is_in_one_part(stretches: list[tuple[Purpose, int, int]]) -> None:
    ticks = accumulate(
        ((wall, cpu) for _, wall, cpu in stretches), lambda a, b: (a[0] + b[0], a[1] + b[1]), initial=(5, 7)
    )
    clock: Iterator[tuple[float, float]] = iter([*(whole := list(ticks)), whole[-1]])
    profile = Profile(lambda: next(clock))
    for purpose, _, _ in stretches:
        profile.note(purpose)
    figures = profile.figures()
    for purpose in Purpose:
        assert figures[purpose]["seconds"] == sum(wall for at, wall, _ in stretches if at is purpose)
    whole_row = figures.pop("all")
    assert (whole_row["seconds"], whole_row["cpu_seconds"]) == (whole[-1][0] - 5, whole[-1][1] - 7)
    for kind, share in (("seconds", "share"), ("cpu_seconds", "cpu_share")):
        assert sum(row[kind] for row in figures.values()) == whole_row[kind]
        assert sum(row[share] for row in figures.values()) == pytest.approx(1.0 if whole_row[kind] else 0.0)


def test_what_was_not_looked_at_in_the_end_is_not_lost() -> None:
    clock = iter([(0.0, 0.0), (3.0, 2.0), (4.0, 2.5)])
    profile = Profile(lambda: next(clock))
    profile.note(Purpose.TRAINING)
    figures = profile.figures()
    assert figures["training"] == {"seconds": 3.0, "share": 0.75, "cpu_seconds": 2.0, "cpu_share": 0.8}
    assert figures["other"] == {"seconds": 1.0, "share": 0.25, "cpu_seconds": 0.5, "cpu_share": 0.2}
    console = Console(width=80)
    with console.capture() as shown:
        console.print(profile_table(figures))
    (line,) = (line for line in shown.get().splitlines() if "training" in line)
    assert [word for word in line.split() if word[0].isdigit()] == ["3.00", "75.0%", "2.00", "80.0%"]
    assert repr(profile) == "<Profile of 4.00 s>"


def _looked_at() -> None:
    signal.raise_signal(signal.SIGALRM)


def _in(module: str, function: Callable[[], None]) -> Callable[[], None]:
    """The function, as if it stood in that module."""
    return FunctionType(function.__code__, {**function.__globals__, "__name__": module}, closure=function.__closure__)


@pytest.fixture
def _unasked(monkeypatch: pytest.MonkeyPatch) -> None:
    """No timer comes in between."""
    monkeypatch.setattr(profile_module, "_INTERVAL_SECONDS", 10_000.0)


@pytest.mark.usefixtures("_unasked")
def test_a_look_charges_what_the_main_thread_is_at() -> None:
    with profiling() as profile:
        _in("p2pfl.wire.codec", _looked_at)()
    assert profile.seconds.pop(Purpose.MESSAGES) > 0
    assert not any(profile.seconds.values())


@pytest.mark.usefixtures("_unasked")
@pytest.mark.parametrize(
    ("module", "purpose"),
    [
        ("p2pfl.learn.train", Purpose.TRAINING),
        ("p2pfl.learn.evaluate", Purpose.EVALUATION),
        ("multiprocessing.connection", Purpose.TRAINING),  # it waits for another process
    ],
)
async def test_waiting_for_other_threads_is_charged_to_their_work(module: str, purpose: Purpose) -> None:
    begun, released, loop = threading.Event(), threading.Event(), asyncio.get_running_loop()
    assert isinstance(loop, VirtualLoop)

    def job() -> None:
        begun.set()
        released.wait()

    with profiling() as profile:
        done = loop.run_in_executor(None, _in(module, job))
        try:
            begun.wait()
            _in("selectors", _looked_at)()
        finally:
            released.set()
        await done
    assert profile.seconds.pop(purpose) > 0
    assert not any(profile.seconds.values())


@pytest.mark.usefixtures("_unasked")
async def test_where_no_thread_computes_the_selector_is_the_loops() -> None:
    with profiling() as profile:
        _in("selectors", _looked_at)()
    assert profile.seconds[Purpose.LOOP] > 0


@pytest.mark.parametrize("end", [None, ValueError, KeyboardInterrupt])
def test_the_signal_and_its_timer_are_given_back(end: type[BaseException] | None) -> None:
    heard: list[int] = []

    def handler(number: int, frame: object) -> None:
        heard.append(number)

    before, timer = signal.signal(signal.SIGALRM, handler), signal.setitimer(signal.ITIMER_REAL, 5000.0, 70.0)
    try:
        if end is None:
            with profiling():
                signal.raise_signal(signal.SIGALRM)
        else:
            with pytest.raises(end), profiling():
                raise end
        assert signal.getsignal(signal.SIGALRM) is handler
        left, interval = signal.getitimer(signal.ITIMER_REAL)
        assert 0 < left <= 5000.0
        assert interval == 70.0
        assert not heard
    finally:
        signal.signal(signal.SIGALRM, before)
        signal.setitimer(signal.ITIMER_REAL, *timer)


def test_without_timers_it_is_a_mistake_with_its_mend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(signal, "setitimer")
    with pytest.raises(ConfigError, match=r"--profile .* leave it out"), profiling():
        pass


def run(tmp_path: Path, name: str, *more: str) -> dict[str, object]:
    """The report of a small course."""
    torch.set_num_threads(1)
    course = tmp_path / "course.toml"
    course.write_text(COURSE)
    assert main(["simulate", str(course), "--runs", str(tmp_path), "--run", name, *more]) == 0
    report: dict[str, object] = orjson.loads((tmp_path / name / "report.json").read_bytes())
    return report


@pytest.mark.parametrize("compute", ["inline", "threads"])
def test_the_parts_of_a_run_are_the_whole(compute: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plain = run(tmp_path, "plain")
    assert "profile" not in plain
    capsys.readouterr()
    report = run(tmp_path, "profiled", "--profile", "--json", "--compute", compute)
    for figure in ("model_hash", "trace", "metrics"):
        assert report[figure] == plain[figure]
    rows = [orjson.loads(line) for line in capsys.readouterr().out.splitlines()]
    (row,) = (row for row in rows if row.pop("kind") == "profile")
    assert row == report["profile"]
    whole = row.pop("all")
    assert row.keys() == set(Purpose)
    for figure, total in whole.items():
        assert sum(part[figure] for part in row.values()) == pytest.approx(total)
    assert whole["seconds"] >= report["seconds"]
    assert whole["share"] == pytest.approx(1.0)


def test_a_person_sees_a_table_and_is_told_of_the_option(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(tmp_path, "shown", "--profile")
    shown = capsys.readouterr().out
    assert "where the time went" in shown
    assert all(purpose in shown for purpose in Purpose)
    with pytest.raises(SystemExit):
        main(["simulate", str(tmp_path / "course.toml"), "--help"])
    assert "--profile" in capsys.readouterr().out
