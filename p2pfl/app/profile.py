"""`p2pfl simulate --profile`: what the time of a simulation was spent on.

Every few milliseconds a timer interrupts the main thread, and the time since the last look counts for the purpose of
what the thread is at. Every moment belongs to one such stretch, so the parts add up to the whole.

It is a signal and not a thread that looks: a thread gets its turn where the other lets go of the interpreter, in torch
and in select(), and so would see little else.
"""

from __future__ import annotations

import asyncio
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from enum import StrEnum
from functools import lru_cache
from types import FrameType

from rich.table import Table

from p2pfl.app.console import table
from p2pfl.errors import ConfigError
from p2pfl.sim.loop import VirtualLoop

__all__ = ["PURPOSES", "Profile", "Purpose", "profile_table", "profiling", "purpose_of"]

_INTERVAL_SECONDS = 0.005


class Purpose(StrEnum):
    """What time is spent on."""

    TRAINING = "training"  # with waiting for the threads or processes that train
    AGGREGATION = "aggregation"  # means, mixing
    MESSAGES = "messages"  # nodes, encoding, links, the modelled network
    EVALUATION = "evaluation"
    LOOP = "loop"  # asyncio itself, timers
    OTHER = "other"  # data, model, set-up of nodes, reports, code of courses


PURPOSES = {
    "p2pfl.learn.train": Purpose.TRAINING,
    "p2pfl.learn.evaluate": Purpose.EVALUATION,
    "p2pfl.compute": Purpose.TRAINING,
    "p2pfl.compute.daemons.Daemons._serve_one": Purpose.OTHER,  # waits for work
    "p2pfl.aggregators": Purpose.AGGREGATION,
    "p2pfl.courses": Purpose.OTHER,
    "p2pfl.courses.dpsgd.Mixer._mix": Purpose.AGGREGATION,
    "p2pfl.courses.adpsgd.Pair._average": Purpose.AGGREGATION,
    "p2pfl.courses.adpsgd.Pair.swap": Purpose.AGGREGATION,
    "p2pfl.courses.gossiplearning.merged": Purpose.AGGREGATION,
    "p2pfl.courses.mass.Purse": Purpose.AGGREGATION,
    "p2pfl.courses.pushsum.Pusher._merge": Purpose.AGGREGATION,
    "p2pfl.courses.swift.Poster._average": Purpose.AGGREGATION,
    "p2pfl.courses.parts": Purpose.MESSAGES,
    "p2pfl.node": Purpose.MESSAGES,
    "p2pfl.wire": Purpose.MESSAGES,
    "p2pfl.link": Purpose.MESSAGES,
    "p2pfl.sim.world": Purpose.OTHER,
    "p2pfl.sim.register": Purpose.OTHER,
    "p2pfl.sim.report": Purpose.OTHER,
    "p2pfl.sim.network": Purpose.MESSAGES,
    "p2pfl.sim.backlog": Purpose.TRAINING,
    "p2pfl.sim.devices": Purpose.TRAINING,
    "p2pfl.sim.loop": Purpose.LOOP,
    "p2pfl.app": Purpose.OTHER,
    "asyncio": Purpose.LOOP,
    "selectors": Purpose.LOOP,
}
"""Dotted names of code, with what it is for. The longest that a function's name begins with holds. What is not listed,
as torch, works for whoever called it."""

_CALLERS = (Purpose.MESSAGES, Purpose.LOOP)  # they call whatever a role is; the others only what is a part of them
_LIBRARIES = sys.stdlib_module_names | {"p2pfl", "torch", "numpy"}


def purpose_of(names: Iterable[str]) -> Purpose:
    """What a stack of functions is for. They have dotted names, as "p2pfl.learn.train.fit"; the innermost comes first.

    Somebody's own model or loss is a part of training or evaluation; other code that is not ours is a course's.

    >>> purpose_of(["torch.nn.functional.linear", "my_models.Net.forward", "p2pfl.learn.train.fit"])
    <Purpose.TRAINING: 'training'>
    >>> purpose_of(["torch.sort", "my_course.Server.run", "asyncio.events.Handle._run"])
    <Purpose.OTHER: 'other'>
    """
    foreign = False
    for name in names:
        purpose = _listed(name)
        if purpose is not None:
            return Purpose.OTHER if foreign and purpose in _CALLERS else purpose
        foreign = foreign or name.partition(".")[0] not in _LIBRARIES
    return Purpose.OTHER


@lru_cache(maxsize=4096)
def _listed(name: str) -> Purpose | None:
    while name and name not in PURPOSES:
        name = name.rpartition(".")[0]
    return PURPOSES.get(name)


def _clocks() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


class Profile:
    """Seconds by purpose: of the wall clock, and of the process's CPU time (that of worker processes is not in it)."""

    def __init__(self, clocks: Callable[[], tuple[float, float]] = _clocks) -> None:
        """`clocks` tells both times, in seconds."""
        self.seconds = dict.fromkeys(Purpose, 0.0)
        self.cpu_seconds = dict.fromkeys(Purpose, 0.0)
        self._clocks = clocks
        self._last = clocks()

    def note(self, purpose: Purpose) -> None:
        """The time since the last note, however long it is, was spent on this."""
        now = self._clocks()
        before, self._last = self._last, now
        self.seconds[purpose] += now[0] - before[0]
        self.cpu_seconds[purpose] += now[1] - before[1]

    def figures(self) -> dict[str, dict[str, float]]:
        """Seconds and shares by purpose, and of all together. The time since the last note is put to `other`."""
        self.note(Purpose.OTHER)
        seconds, cpu_seconds = dict(self.seconds), dict(self.cpu_seconds)  # more may be noted meanwhile
        whole, cpu_whole = sum(seconds.values()), sum(cpu_seconds.values())

        def row(wall: float, cpu: float) -> dict[str, float]:
            shares = {"share": wall / whole if whole else 0.0, "cpu_share": cpu / cpu_whole if cpu_whole else 0.0}
            return {"seconds": wall, "cpu_seconds": cpu, **shares}

        rows = {purpose.value: row(seconds[purpose], cpu_seconds[purpose]) for purpose in Purpose}
        return {**rows, "all": row(whole, cpu_whole)}

    def __repr__(self) -> str:
        return f"<Profile of {sum(self.seconds.values()):.2f} s>"


def profile_table(figures: Mapping[str, Mapping[str, float]]) -> Table:
    """The figures of a profile for a person."""
    kinds = {"seconds": ".2f", "share": ".1%", "cpu_seconds": ".2f", "cpu_share": ".1%"}
    rows = [[name, *(format(row[kind], style) for kind, style in kinds.items())] for name, row in figures.items()]
    return table("where the time went", ["", "seconds", "share", "CPU seconds", "share"], rows)


@contextmanager
def profiling() -> Iterator[Profile]:
    """Profile the main thread, which must be the one that asks, as long as the block lasts.

    SIGALRM and its timer are taken for that time, and given back. Raises ConfigError where there are none.
    """
    if not hasattr(signal, "setitimer"):
        raise ConfigError("--profile needs interval timers, which this operating system has not; leave it out")
    profile, ended = Profile(), threading.Event()

    def look(_: int, frame: FrameType | None) -> None:
        profile.note(_at(frame))
        if not ended.is_set():  # set anew each time, so that one look cannot be interrupted by the next
            signal.setitimer(signal.ITIMER_REAL, _INTERVAL_SECONDS)

    handler = signal.signal(signal.SIGALRM, look)
    signal.siginterrupt(signal.SIGALRM, False)  # not every library in C goes on after an interrupted system call
    timer = signal.setitimer(signal.ITIMER_REAL, _INTERVAL_SECONDS)
    try:
        yield profile
    finally:
        ended.set()
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler or signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_REAL, *timer)


def _at(frame: FrameType | None) -> Purpose:
    """What the main thread is at; where it waits for other threads, what these are at."""
    if frame is None or _module(frame) != "selectors" or not _computing():
        return purpose_of(_names(frame))
    main = threading.get_ident()
    others = {purpose_of(_names(top)) for thread, top in sys._current_frames().items() if thread != main}
    jobs = others & {Purpose.TRAINING, Purpose.EVALUATION}  # of those in other processes nothing is to be seen
    return Purpose.EVALUATION if jobs == {Purpose.EVALUATION} else Purpose.TRAINING


def _computing() -> bool:
    """Whether jobs of the running loop are computed on other threads or processes."""
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        return False
    return isinstance(loop, VirtualLoop) and loop.computing > 0


def _module(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__", ""))


def _names(frame: FrameType | None) -> Iterator[str]:
    while frame is not None:
        yield f"{_module(frame)}.{frame.f_code.co_qualname}"
        frame = frame.f_back
