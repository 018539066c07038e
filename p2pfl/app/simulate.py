"""`p2pfl simulate`: a course file in one process, on virtual time."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Generic, TypeVar

import torch
import tyro
from torch import Tensor

from p2pfl.app.build import Setup, make_compute, prepare, topology_notes
from p2pfl.app.config import Config, course_hash
from p2pfl.app.console import Display, table
from p2pfl.app.options import parse_options
from p2pfl.app.run import RunFolder, model_hash
from p2pfl.compute.inline import Inline
from p2pfl.compute.job import Compute
from p2pfl.courses.course import HoldsModel
from p2pfl.node.events import CourseEnded, Event, UpdateMissing
from p2pfl.sim.loop import run_virtual
from p2pfl.sim.report import Recorder, Round
from p2pfl.sim.world import Observer, World

__all__ = ["Outcome", "SimulateOptions", "simulate", "simulate_command"]

SettingsT = TypeVar("SettingsT")


@dataclass(frozen=True, slots=True)
class SimulateOptions(Generic[SettingsT]):
    """Run a course in one process, on virtual time."""

    config: Annotated[Config[SettingsT], tyro.conf.arg(name="")]
    runs: Path = Path("runs")
    """Where run folders are made."""
    run: str = ""
    """Name of the run folder; by default course, hash and date."""
    compute: str = "inline"
    """Where training runs: inline or threads."""
    json: bool = False
    """One JSON object per line on stdout instead of text."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a simulation gave. `params` is the coordinator's model, or the mean over all nodes where there is none."""

    params: Tensor
    rounds: list[Round]
    reason: str
    packets: int
    bytes: int
    trace: str
    virtual_seconds: float


def simulate_command(arguments: list[str]) -> int:
    """The command: FILE and options. Returns the exit code."""
    options = parse_options(SimulateOptions, arguments, "p2pfl simulate")
    torch.set_num_threads(1)
    started = time.perf_counter()
    compute = make_compute(options.compute)
    setup = prepare(options.config)
    display = Display(as_json=options.json, total=options.config.course.rounds)
    with RunFolder(options.runs, options.config, options.run) as folder, display:
        display.line(f"{setup.topology!r}, {setup.dataset!r}, {setup.model!r}")
        for note in topology_notes(options.config):
            display.line(f"note: {note}")
        try:
            outcome = simulate(setup, compute, lambda done: _show_round(display, folder, done), _told(display, folder))
        except KeyboardInterrupt:
            display.line(f"interrupted; the rounds so far are in {folder.path}")
            raise
        seconds = time.perf_counter() - started
        figures = {
            "course": course_hash(options.config),
            "model_hash": model_hash(outcome.params),
            "rounds": len(outcome.rounds),
            "ended": outcome.reason,
            "metrics": outcome.rounds[-1].metrics if outcome.rounds else {},
            "bytes": outcome.bytes,
            "packets": outcome.packets,
            "virtual_seconds": outcome.virtual_seconds,
            "seconds": seconds,
            "trace": outcome.trace,
        }
        folder.model(setup.model.layout, outcome.params)
        folder.report(figures)
    _show_end(display, outcome, figures, folder)
    return 0


def simulate(
    setup: Setup,
    compute: Compute | None = None,
    ended: Callable[[Round], None] = lambda done: None,
    told: Observer = lambda seconds, seat, event: None,
) -> Outcome:
    """Simulate a prepared course; `ended` is told of each round, `told` of other events.

    Computes on the loop itself unless told where. Raises Stalled, naming what is waited for, and what roles raise.
    """
    coordinated = len(setup.shards) < setup.topology.n
    world = World(
        setup.topology.n,
        setup.roles,
        compute or Inline(),
        setup.config.network,
        setup.config.devices,
        setup.config.seed,
        setup.sleepers,
    )
    recorder = Recorder(world.wire, 1 if coordinated else setup.topology.n, ended, told)
    clock = [0.0]

    def observe(seconds: float, seat: int, event: Event) -> None:
        clock[0] = seconds
        recorder(seconds, seat, event)

    run_virtual(world.run(observe))
    vectors = [role.params for seat in world.seats.values() for role in seat.roles if isinstance(role, HoldsModel)]
    params = vectors[0] if coordinated else torch.stack(vectors).mean(0)
    return Outcome(
        params, recorder.rounds, recorder.reason, world.wire.packets, world.wire.bytes, world.wire.trace, clock[0]
    )


def _show_round(display: Display, folder: RunFolder, done: Round) -> None:
    folder.metrics(**asdict(done))
    display.row("round", **asdict(done))
    shown = "  ".join(f"{name} {value:.4f}" for name, value in done.metrics.items())
    display.line(f"round {done.round:4d}  {done.virtual_seconds:10.2f} s  {done.bytes / 1e6:9.2f} MB  {shown}")
    display.step(done.round, f"round {done.round}")


def _told(display: Display, folder: RunFolder) -> Observer:
    def told(seconds: float, seat: int, event: Event) -> None:
        folder.log(f"{seconds:.6f} seat {seat}: {event}")
        if isinstance(event, UpdateMissing) or (isinstance(event, CourseEnded) and seat == 0):
            display.line(f"{seconds:.2f} s  seat {seat}: {event}")

    return told


def _show_end(display: Display, outcome: Outcome, figures: dict[str, Any], folder: RunFolder) -> None:
    display.row("report", **figures, folder=str(folder.path))
    names = sorted({name for done in outcome.rounds for name in done.metrics})
    shown = outcome.rounds if len(outcome.rounds) <= 12 else [*outcome.rounds[:3], *outcome.rounds[-8:]]
    rows = [
        [str(done.round), f"{done.virtual_seconds:.2f}", f"{done.bytes / 1e6:.2f}"]
        + [f"{done.metrics[name]:.4f}" if name in done.metrics else "" for name in names]
        for done in shown
    ]
    display.table(table("report", ["round", "virtual s", "MB", *names], rows))
    display.line(
        f"{outcome.virtual_seconds:.2f} virtual seconds in {figures['seconds']:.2f} real ones, "
        f"{outcome.bytes / 1e6:.2f} MB"
    )
    display.line(f"final model {figures['model_hash']}  trace {outcome.trace}")
    display.line(f"run folder {folder.path}")
