"""`p2pfl fuzz`: a course against seeded schedules of faults, and the smallest schedule that breaks it.

Each seed is a run of its own on virtual time, with a tiny model; see Trial. What fails once fails again under its seed.
"""

from __future__ import annotations

import argparse
import logging
import math
import multiprocessing
import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from p2pfl.app.config import COURSES, load_config
from p2pfl.app.console import Display
from p2pfl.app.exits import Exit
from p2pfl.app.modules import load_module
from p2pfl.app.trial import Trial, settled_memory
from p2pfl.courses.course import Course
from p2pfl.errors import ConfigError, require
from p2pfl.learn.specs import MetricsSpec
from p2pfl.privacy.spec import PrivacySpec
from p2pfl.sim.checkers import CHECKERS, Violation, checked
from p2pfl.sim.nemesis import FAULTS, Fault, schedule, shrink
from p2pfl.topology.families import AnySchedule, build
from p2pfl.topology.file import loads

__all__ = ["Failure", "fuzz_command", "try_seed"]

_SEED = "P2PFL_SEED"
_PREFIX = "fuzzed."
_SEATS = {"star": 5, "hierarchy": 7, "ring": 6, "regular": 8, "torus": 9, "full": 5}  # where --topologies gives none
_SOME_SEATS = 6
_MOST_LINES = 40  # of the history of a failure


@dataclass(frozen=True, slots=True)
class Failure:
    """A seed under which something does not hold."""

    seed: int
    violations: tuple[Violation, ...]
    faults: tuple[Fault, ...]
    """As few as still break it."""
    drawn: int
    """Faults that the seed has drawn."""
    history: tuple[str, ...]
    """What happened under these few faults, as far as it may tell why."""

    def lines(self) -> Iterator[str]:
        """For a person."""
        yield from (str(violation) for violation in self.violations)
        yield f"of the {self.drawn} faults of this seed, these are enough:" if self.faults else "it takes no fault:"
        yield from (f"    {fault}" for fault in self.faults)
        yield "what happened then:"
        yield from (f"    {line}" for line in self.history)


def try_seed(trial: Trial, kinds: Sequence[str], seed: int) -> Failure | None:
    """Run one seed; what fails is run again with fewer faults, until none can be left out."""
    faults = schedule(seed, trial.ground, kinds)
    found, history = trial.violations(seed, faults)
    if not found:
        return None
    broken = {violation.invariant for violation in found}

    def fails(fewer: Sequence[Fault]) -> bool:
        return not broken.isdisjoint(violation.invariant for violation in trial.violations(seed, fewer)[0])

    few = shrink(faults, fails)
    found, history = trial.violations(seed, few)
    culprits = [entry for violation in found for entry in violation.entries]
    shown = tuple(str(entry) for entry in history.around(culprits, _MOST_LINES))
    return Failure(seed, tuple(found), few, len(faults), shown)


def fuzz_command(arguments: list[str]) -> int:
    """Run a course under many seeds, each with faults of its own, and check that what must hold of it holds."""
    options = _options(arguments)
    torch.set_num_threads(1)
    logging.getLogger("p2pfl").addHandler(logging.NullHandler())  # that handlers fail is part of what is tried
    course, settings, own, metrics, privacy = _course(options.course)
    asked = _names("--faults", options.faults, FAULTS)
    invariants = _names("--invariants", options.invariants, CHECKERS) or checked(course.name, settings, privacy)
    topologies = [_topology(text) for text in options.topologies.split(",")] if options.topologies else [own]
    trials = [
        Trial(course, settings, topology, invariants, metrics=metrics, privacy=privacy) for topology in topologies
    ]
    kinds = asked or trials[0].bears
    seeds = range(options.seeds) if options.seed is None else range(options.seed, options.seed + 1)
    total, done, failed = len(seeds) * len(trials), 0, 0
    with settled_memory(), Display(as_json=False, total=total) as display:
        display.line(f"{course.name} on {', '.join(map(repr, topologies))}: {', '.join(invariants)} must hold")
        for trial, failure in _in_time(_attempts(trials, kinds, seeds, options.jobs), options.seconds):
            done, failed = done + 1, failed + (failure is not None)
            display.step(done, f"{failed} failed")
            if failure is not None:
                _show(display, failure, trial, options)
        display.line(f"{done} of {total} runs, of which {failed} failed")
    return Exit.FAILED if failed else Exit.DONE


def _options(arguments: list[str]) -> Any:
    parser = argparse.ArgumentParser("p2pfl fuzz", description=fuzz_command.__doc__)
    parser.add_argument("course", help="a course file, the name of a course, or a module that has a Course")
    parser.add_argument("--seeds", type=int, default=200, help="how many seeds, from 0 on (default: 200)")
    parser.add_argument("--seed", type=int, help=f"only this one; so does the environment's {_SEED}")
    parser.add_argument("--faults", default="", help=f"kinds of faults, by commas, of {', '.join(FAULTS)}; all if none")
    parser.add_argument("--topologies", default="", help="such as star:5,ring:6; the course's own if none")
    parser.add_argument("--invariants", default="", help="what to check, by commas, such as I8,I11; all if none")
    parser.add_argument("--seconds", type=float, default=0.0, help="begin no more runs after so many seconds")
    parser.add_argument("--jobs", type=int, default=1, help="processes that run seeds side by side (default: 1)")
    options = parser.parse_args(arguments)
    if options.seed is None and (seed := os.environ.get(_SEED)):
        require(seed.isdecimal(), f"{_SEED} is {seed!r}; give it a seed, which is a number, or unset it")
        options.seed = int(seed)
    require(options.seeds >= 1, f"--seeds is {options.seeds}; it must be at least 1")
    require(options.jobs >= 1, f"--jobs is {options.jobs}; it must be at least 1")
    return options


def _course(name: str) -> tuple[Course, Any, AnySchedule, MetricsSpec, PrivacySpec]:
    """The course of a file, a name or a module, its settings, its own topology, what it measures, and its privacy."""
    if name.endswith(".toml") or Path(name).is_dir():
        config = load_config(Path(name))
        course, spec = COURSES[config.course.name], config.topology
        own = loads(spec.text).schedule if spec.file else build(spec.family or course.family, spec.n, **spec.parameters)
        return course, config.course, own, config.metrics, config.privacy
    course = COURSES[name] if name in COURSES else _course_of_module(name)
    return course, course.settings(), _topology(course.family), MetricsSpec(), PrivacySpec()


def _course_of_module(name: str) -> Course:
    values = vars(load_module(name, _PREFIX)).values()
    courses = [value for value in values if isinstance(value, Course) and value not in COURSES.values()]
    if len(courses) != 1:
        raise ConfigError(f"{name} has {len(courses)} courses of its own; give a module with one Course")
    return courses[0]


def _topology(text: str) -> AnySchedule:
    family, _, n = text.partition(":")
    require(not n or n.isdecimal(), f"--topologies has {text!r}; write a family and a number of seats, such as ring:6")
    return build(
        family, int(n) if n else _SEATS.get(family, _SOME_SEATS), **({"degree": 3} if family == "regular" else {})
    )


def _names(option: str, given: str, known: Sequence[str] | dict[str, Any] | Any) -> tuple[str, ...]:
    names = tuple(given.split(",")) if given else ()
    for name in names:
        require(name in known, f"{option} has {name!r}; choose some of {', '.join(known)}")
    return names


Attempt = tuple[Trial, Failure | None]
_SUBJECT: ContextVar[tuple[Trial, Sequence[str]]] = ContextVar("subject")  # of a worker process


def _attempts(trials: Sequence[Trial], kinds: Sequence[str], seeds: Sequence[int], jobs: int) -> Iterator[Attempt]:
    """Each trial under each seed, in order."""
    for trial in trials:
        if jobs == 1:
            yield from ((trial, try_seed(trial, kinds, seed)) for seed in seeds)
            continue
        fork = multiprocessing.get_context("fork")  # a user's course cannot be sent, and need not be
        with ProcessPoolExecutor(jobs, fork, _SUBJECT.set, ((trial, kinds),)) as pool:
            yield from ((trial, failure) for failure in pool.map(_try_subject, seeds, chunksize=4))


def _try_subject(seed: int) -> Failure | None:
    return try_seed(*_SUBJECT.get(), seed)


def _in_time(attempts: Iterator[Attempt], seconds: float) -> Iterator[Attempt]:
    """Those that begin before so many seconds are over; all of them, if it is 0."""
    end = time.monotonic() + (seconds or math.inf)
    while time.monotonic() < end and (attempt := next(attempts, None)) is not None:
        yield attempt


def _show(display: Display, failure: Failure, trial: Trial, options: Any) -> None:
    display.line(f"\n{_SEED}={failure.seed} fails on {trial.topology!r}")
    for line in failure.lines():
        display.line(f"  {line}")
    where = f" --topologies {trial.topology.family}:{trial.n}" if options.topologies else ""
    faults = f" --faults {options.faults}" if options.faults else ""
    display.line(f"  to see it again: {_SEED}={failure.seed} p2pfl fuzz {options.course}{where}{faults}\n")
