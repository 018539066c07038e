"""`p2pfl simulate`: a course file in one process, on virtual time."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Generic, TypeVar

import torch
import tyro
from torch import Tensor

from p2pfl.app.build import Setup, prepare, privacy_notes, topology_notes
from p2pfl.app.checkpoint import Checkpoint, Standing
from p2pfl.app.computes import ComputeOptions, make_compute
from p2pfl.app.config import Config, course_hash, load_config
from p2pfl.app.console import Display, spread_table, table
from p2pfl.app.options import parse_options
from p2pfl.app.profile import Profile, profile_table, profiling
from p2pfl.app.run import RunFolder
from p2pfl.app.savings import savings
from p2pfl.compute.cohort import Cohort
from p2pfl.compute.job import Compute
from p2pfl.compute.meter import FlopMeter
from p2pfl.compute.processes import Processes
from p2pfl.courses.course import HoldsModel, Resumes
from p2pfl.courses.scores import ClientsEvaluated
from p2pfl.errors import require
from p2pfl.learn.params import model_hash
from p2pfl.learn.spread import spread_names, spreads
from p2pfl.node.events import CourseEnded, Event, UpdateMissing
from p2pfl.sim.availability import Availability
from p2pfl.sim.loop import run_virtual
from p2pfl.sim.report import Recorder, Round, seconds_to_accuracy
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
    compute: ComputeOptions = field(default_factory=ComputeOptions)
    checkpoint_every: int = 0
    """Rounds between two checkpoints, at which all nodes pause; 0: none are made."""
    resume: bool = False
    """Go on from the last checkpoint of a run: give its folder in place of the course file."""
    profile: bool = False
    """Tell where the time went: training, messages, and so on. It costs about 3% more time."""
    json: bool = False
    """One JSON object per line on stdout instead of text."""

    def __post_init__(self) -> None:
        sentence = f"--checkpoint-every is {self.checkpoint_every}; it must not be negative"
        require(self.checkpoint_every >= 0, sentence)


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
    down_bytes: int = 0  # of all these, what the coordinator has sent, and what it has received
    up_bytes: int = 0
    train_flops: float | None = None  # that all nodes together have trained with, as far as that can be told


def simulate_command(arguments: list[str]) -> int:
    """The command: FILE and options. Returns the exit code."""
    options = parse_options(SimulateOptions, arguments, "p2pfl simulate")
    torch.set_num_threads(1)
    with profiling() if options.profile else nullcontext() as profile:
        return _run(options, Path(arguments[0]), profile)


def _run(options: SimulateOptions[Any], where: Path, profile: Profile | None) -> int:
    started = time.perf_counter()
    compute = make_compute(options.compute, auto="cohort")
    start = _start(options, where)
    setup = prepare(options.config)
    # Before a folder is made, for what it raises: a trace that cannot be read.
    Availability(options.config.availability, options.config.seed, setup.topology.n)
    if isinstance(compute, Processes):  # before there are threads, such as that of the display
        compute.start([setup.model, setup.dataset])
    display = Display(as_json=options.json, total=options.config.course.rounds)
    with _folder(options, where, start) as folder, display:
        display.line(f"{setup.topology!r}, {setup.dataset!r}, {setup.model!r}")
        display.line(f"training tier {setup.tier}, computed by {compute!r}")
        for note in (*topology_notes(options.config), *privacy_notes(options.config)):
            display.line(f"note: {note}")
        if start.standing.round:
            display.line(f"going on after round {start.standing.round}")
        try:
            outcome = simulate(
                setup,
                compute,
                lambda done: _show_round(display, folder, done),
                _told(display, folder),
                start,
                lambda reached: reached.save(folder.path),
            )
        except KeyboardInterrupt:
            display.line(f"interrupted; the rounds so far are in {folder.path}")
            if start.standing.every:
                display.line(f"to go on from the last checkpoint: p2pfl simulate {folder.path} --resume")
            raise
        finally:
            asyncio.run(compute.close())
        outcome = replace(outcome, rounds=[*(Round(**row) for row in folder.earlier), *outcome.rounds])
        figures = _figures(setup, outcome, time.perf_counter() - started)
        folder.model(setup.model.layout, outcome.params)
        if profile is not None:
            figures["profile"] = profile.figures()
        folder.report(figures)
    _show_end(display, outcome, figures, folder)
    if (privacy := setup.report()) is not None:
        display.line(str(privacy))
    return 0


def _start(options: SimulateOptions[Any], where: Path) -> Checkpoint:
    """Where the run begins. Raises ConfigError for a run that cannot be gone on with, or is another course."""
    if not options.resume:
        return Checkpoint(Standing(every=options.checkpoint_every))
    instead = f"--resume goes with the folder of a run, not with {where}: p2pfl simulate runs/NAME --resume"
    require(where.is_dir(), instead)
    others = options.config != load_config(where) or options.checkpoint_every or options.run
    require(options.config.privacy.plain, "--resume: the privacy ledgers of a simulation end with it; run it anew")
    require(not others, f"--resume goes on with the run in {where} as it is; leave out other options of course and run")
    return Checkpoint.load(where)


def _folder(options: SimulateOptions[Any], where: Path, start: Checkpoint) -> RunFolder:
    if options.resume:
        return RunFolder.reopen(where, start.standing.round)
    return RunFolder(options.runs, options.config, options.run)


def _figures(setup: Setup, outcome: Outcome, seconds: float) -> dict[str, object]:
    target = getattr(setup.config.course, "target_accuracy", 0.0)
    return {
        "course": course_hash(setup.config),
        "tier": str(setup.tier),
        "model_hash": model_hash(outcome.params),
        "rounds": len(outcome.rounds),
        "ended": outcome.reason,
        "metrics": outcome.rounds[-1].metrics if outcome.rounds else {},
        "seconds_to_accuracy": seconds_to_accuracy(outcome.rounds, target),
        "bytes": outcome.bytes,
        "down_bytes": outcome.down_bytes,
        "up_bytes": outcome.up_bytes,
        "train_flops": outcome.train_flops,
        **savings(setup, sum(done.participants for done in outcome.rounds)),
        "packets": outcome.packets,
        "virtual_seconds": outcome.virtual_seconds,
        "seconds": seconds,
        "trace": outcome.trace,
        **({} if (privacy := setup.report()) is None else {"privacy": asdict(privacy)}),
    }


def simulate(
    setup: Setup,
    compute: Compute | None = None,
    ended: Callable[[Round], None] = lambda done: None,
    told: Observer = lambda seconds, seat, event: None,
    start: Checkpoint | None = None,
    saved: Callable[[Checkpoint], None] = lambda checkpoint: None,
) -> Outcome:
    """Simulate a prepared course; `ended` is told of each round, `told` of other events.

    Computes on the loop itself unless told where. `start`: go on from there; `saved` is given every checkpoint, if
    `start.standing.every` asks for some. Raises Stalled, naming what is waited for, and what roles raise.
    """
    stretch = _Stretch(setup, compute or Cohort(), ended, told)
    rounds: list[Round] = []
    reached = start or Checkpoint()
    while True:
        recorder, vectors, reached = stretch.play(reached)
        rounds += recorder.rounds
        if recorder.reason or reached.standing.round >= setup.config.course.rounds:
            break
        saved(reached)
    standing = reached.standing
    params = vectors[0] if stretch.coordinated else torch.stack(vectors).mean(0)
    return Outcome(
        params,
        rounds,
        recorder.reason,
        standing.packets,
        standing.bytes,
        standing.trace,
        standing.seconds,
        standing.down_bytes,
        standing.up_bytes,
        standing.flops,
    )


@dataclass(frozen=True, slots=True)
class _Stretch:
    """What is played in one world: all of a course, or what lies between two checkpoints."""

    setup: Setup
    compute: Compute
    ended: Callable[[Round], None]
    told: Observer

    @property
    def coordinated(self) -> bool:
        """Whether one seat leads the others."""
        return len(self.setup.shards) < self.setup.topology.n

    def play(self, start: Checkpoint) -> tuple[Recorder, list[Tensor], Checkpoint]:
        """The rounds, the models that were held in the end, and where the run then stands."""
        setup, before = self.setup, start.standing
        stop = before.round + before.every if before.every else None
        meter = FlopMeter(before.flops)

        def roles(seat: int, compute: Compute) -> tuple[object, ...]:
            played = setup.roles(seat, meter.on(compute), stop)
            if seat in start.roles:
                resuming = (role for role in played if isinstance(role, Resumes))
                for role, state in zip(resuming, start.roles[seat], strict=True):
                    role.resume(state)
            return played

        config = setup.config
        n = setup.topology.n
        world = World(
            n,
            roles,
            self.compute,
            config.network,
            config.devices,
            config.seed,
            setup.sleepers,
            config.availability,
            sorted(set(range(n)).difference(setup.shards)),
        )
        expected = 1 if self.coordinated or setup.course.rotates else setup.topology.n
        recorder = Recorder(world.wire, expected, self.ended, self.told, before.bytes, config.metrics)
        clock = [before.seconds]

        def observe(seconds: float, seat: int, event: Event) -> None:
            clock[0] = seconds
            recorder(seconds, seat, event)

        run_virtual(world.run(observe), before.seconds)
        held = [role.params for seat in world.seats.values() for role in seat.roles if isinstance(role, HoldsModel)]
        led = world.seats[0].node.statistics() if self.coordinated else None
        standing = replace(
            before,
            down_bytes=before.down_bytes + (led.bytes_sent if led else 0),
            up_bytes=before.up_bytes + (led.bytes_received if led else 0),
            round=before.round + len(recorder.rounds),
            seconds=clock[0],
            packets=before.packets + world.wire.packets,
            bytes=before.bytes + world.wire.bytes,
            missing=before.missing + recorder.missing,
            flops=meter.flops,
            trace=_chained(before.trace, world.wire.trace),
        )
        states = {
            number: [role.state() for role in seat.roles if isinstance(role, Resumes)]
            for number, seat in world.seats.items()
        }
        return recorder, held, Checkpoint(standing, {seat: found for seat, found in states.items() if found})


def _chained(before: str, trace: str) -> str:
    """The digest of a run whose earlier worlds have the digest `before`."""
    return hashlib.blake2b(f"{before}/{trace}".encode(), digest_size=16).hexdigest() if before else trace


def _show_round(display: Display, folder: RunFolder, done: Round) -> None:
    folder.metrics(**asdict(done))
    display.row("round", **asdict(done))
    shown = "  ".join(f"{name} {value:.4f}" for name, value in _brief(done.metrics).items())
    display.line(f"round {done.round:4d}  {done.virtual_seconds:10.2f} s  {done.bytes / 1e6:9.2f} MB  {shown}")
    display.step(done.round, f"round {done.round}")


def _brief(metrics: Mapping[str, float]) -> dict[str, float]:
    """Without how they are spread over the clients, which has a table of its own."""
    spread = spread_names(metrics)
    return {name: value for name, value in metrics.items() if name not in spread}


def _told(display: Display, folder: RunFolder) -> Observer:
    def told(seconds: float, seat: int, event: Event) -> None:
        folder.log(f"{seconds:.6f} seat {seat}: {event}")
        if isinstance(event, ClientsEvaluated):
            folder.clients(event.round, event.clients)
        if isinstance(event, UpdateMissing) or (isinstance(event, CourseEnded) and seat == 0):
            display.line(f"{seconds:.2f} s  seat {seat}: {event}")

    return told


def _show_end(display: Display, outcome: Outcome, figures: dict[str, Any], folder: RunFolder) -> None:
    if "profile" in figures:
        profiled = figures.pop("profile")
        display.row("profile", **profiled)
        display.table(profile_table(profiled))
    display.row("report", **figures, folder=str(folder.path))
    names = sorted({name for done in outcome.rounds for name in _brief(done.metrics)})
    shown = outcome.rounds if len(outcome.rounds) <= 12 else [*outcome.rounds[:3], *outcome.rounds[-8:]]
    rows = [
        [str(done.round), f"{done.virtual_seconds:.2f}", f"{done.bytes / 1e6:.2f}"]
        + [f"{done.metrics[name]:.4f}" if name in done.metrics else "" for name in names]
        for done in shown
    ]
    display.table(table("report", ["round", "virtual s", "MB", *names], rows))
    if found := spreads(outcome.rounds[-1].metrics if outcome.rounds else {}):
        display.table(spread_table(found))
    reached: dict[str, float] = figures["seconds_to_accuracy"]
    if reached:
        display.line("accuracy " + ", ".join(f"{level} after {at:.2f} s" for level, at in reached.items()))
    display.line(
        f"{outcome.virtual_seconds:.2f} virtual seconds in {figures['seconds']:.2f} real ones, "
        f"{outcome.bytes / 1e6:.2f} MB"
    )
    display.line(f"final model {figures['model_hash']}  trace {outcome.trace}")
    display.line(f"run folder {folder.path}")
