"""A forked process that computes.

What it knows of models and data lay in memory at the fork: those pages are shared, and nothing of them is sent. Over a
pipe go numbers; vectors and row numbers lie in memory that both processes see. Nothing is pickled.
"""

from __future__ import annotations

import asyncio
import gc
import multiprocessing
import signal
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import msgspec
import torch
from torch import Tensor

from p2pfl.compute.arena import Arena
from p2pfl.compute.cohort import Cohort
from p2pfl.compute.crew import Failure, Outcome, Portable, WorkerLost
from p2pfl.compute.job import EvaluateJob, FitJob, Job
from p2pfl.learn.data import Dataset, Shard
from p2pfl.learn.evaluate import Evaluation
from p2pfl.learn.model import Model
from p2pfl.learn.optimizers import memory_numel
from p2pfl.learn.shift import Shift
from p2pfl.learn.specs import TrainSpec
from p2pfl.learn.train import FitResult

__all__ = ["Forked", "Known"]

Thing = Model | Dataset


class Known:
    """The models and data sets that processes have in memory when they are forked."""

    def __init__(self) -> None:
        self.things: dict[Thing, None] = {}
        self._lasting: dict[Thing, None] = {}
        self._used: dict[Thing, None] = {}  # since there was something new

    def keep(self, things: Iterable[Thing]) -> None:
        """Know these for good."""
        self._lasting |= dict.fromkeys(things)
        self.things |= self._lasting

    def meet(self, jobs: Iterable[Job[Any]]) -> None:
        """Know what these jobs use.

        As processes have to be forked anew for something new, what was not used since the last time is forgotten then.
        """
        needed = dict.fromkeys(_things(jobs))
        if needed.keys() - self.things.keys():
            self.things = self._lasting | self._used | needed
            self._used = {}
        self._used |= needed


def _things(jobs: Iterable[Job[Any]]) -> set[Thing]:
    return {thing for job in jobs if isinstance(job, Portable) for thing in (job.model, job.shard.dataset)}


class _Result(NamedTuple):
    """Where what training gives is put."""

    params: Tensor
    memory: Tensor | None


@dataclass(slots=True, eq=False)
class _Parcel:
    """Jobs that are done as one. The vectors that go with them live as long as it does."""

    jobs: Sequence[Portable]
    future: Future[list[Outcome]]
    results: list[_Result | None] = field(default_factory=list)  # of each job; an evaluation has none
    others: list[Tensor] = field(default_factory=list)


class Forked:
    """The near end of a process, which is forked when it is needed, and anew when it lacks something or has died.

    It lives on one event loop at a time, and has no thread: forking goes well with that.
    """

    def __init__(self, known: Known, arena: Arena) -> None:
        self._known = known
        self._arena = arena
        self._parcels: deque[_Parcel] = deque()  # those that are not answered, in order
        self._process: multiprocessing.process.BaseProcess | None = None
        self._pipe: Connection[Any, Any] | None = None
        self._numbers: dict[Thing, int] = {}  # of what the process knows
        self._loop: asyncio.AbstractEventLoop | None = None  # the one that watches the pipe
        self._sent = False  # the first parcel is with the process

    @property
    def pending(self) -> int:
        """Parcels that were begun and are not answered."""
        return len(self._parcels)

    @property
    def pid(self) -> int | None:
        """Of the process, if there is one."""
        return None if self._process is None else self._process.pid

    def start(self) -> None:
        """Fork the process, with what is known now."""
        near, far = multiprocessing.Pipe()
        things = tuple(self._known.things)
        fork = multiprocessing.get_context("fork")
        process = fork.Process(target=_serve, args=(far, near, self._arena, things), daemon=True)
        with far, ExitStack() as on_failure:
            on_failure.enter_context(near)
            process.start()
            on_failure.pop_all()
        self._process, self._pipe = process, near
        self._numbers = {thing: number for number, thing in enumerate(things)}

    def begin(self, jobs: Sequence[Portable]) -> Future[list[Outcome]]:
        """See `crew.Worker`."""
        parcel = _Parcel(jobs, Future())
        parcel.future.set_running_or_notify_cancel()  # whoever gives it up, the process goes on
        self._parcels.append(parcel)
        if self._pipe is not None:
            self._watch(self._pipe)
        if len(self._parcels) == 1:
            self._send(parcel)
        return parcel.future

    def end(self) -> None:
        """End the process, if there is one. One that is in the middle of something is not waited for."""
        if self._process is None or self._pipe is None:
            return
        self._unwatch(self._pipe)
        if self._sent:
            self._process.kill()
        with suppress(OSError):  # it may have ended
            self._pipe.send_bytes(b"")
        self._pipe.close()
        self._process.join()
        self._process.close()
        self._process = self._pipe = None
        self._sent = False

    def _send(self, parcel: _Parcel) -> None:
        try:
            pipe = self._ready_for(parcel)
            self._watch(pipe)
            pipe.send_bytes(msgspec.msgpack.encode(_order(parcel, self._numbers, self._arena)))
            self._sent = True
        except (OSError, MemoryError) as error:
            self._lose(f"a worker process could not be given work: {error}")

    def _ready_for(self, parcel: _Parcel) -> Connection[Any, Any]:
        """The pipe of a process that is there, and knows what it needs for this."""
        alive = self._process is not None and self._process.is_alive()
        if not alive or not _things(parcel.jobs) <= self._numbers.keys():
            self.end()
            self._known.meet(parcel.jobs)  # it may have been forgotten since it was met
            self.start()
        assert self._pipe is not None, "it has been started"
        return self._pipe

    def _receive(self) -> None:
        """The pipe can be read from."""
        assert self._pipe is not None, "it is watched"
        try:
            body = self._pipe.recv_bytes()
        except (EOFError, OSError):
            self._lose(f"worker process {self.pid} has died")
            return
        self._sent = False
        parcel = self._parcels.popleft()
        answers = msgspec.msgpack.decode(body, type=list[_Trained | _Evaluated | Failure])
        parcel.future.set_result([_opened(*pair) for pair in zip(answers, parcel.results, strict=True)])
        self._go_on()

    def _lose(self, how: str) -> None:
        self.end()
        if self._parcels:
            self._parcels.popleft().future.set_exception(WorkerLost(how))
        self._go_on()

    def _go_on(self) -> None:
        if self._parcels:
            self._send(self._parcels[0])

    def _watch(self, pipe: Connection[Any, Any]) -> None:
        """On the loop that runs now, which may be another one than before."""
        loop = asyncio.get_running_loop()
        if loop is not self._loop:
            self._unwatch(pipe)
            loop.add_reader(pipe.fileno(), self._receive)
            self._loop = loop

    def _unwatch(self, pipe: Connection[Any, Any]) -> None:
        if self._loop is not None and not self._loop.is_closed():
            self._loop.remove_reader(pipe.fileno())
        self._loop = None


# -- what goes over the pipe -------------------------------------------------------------------------------------------


class _Memory(msgspec.Struct, array_like=True):
    given: int  # where it lies, as all vectors
    count: int  # of its numbers; there are none before the first training
    result: int


class _Training(msgspec.Struct, array_like=True):
    spec: int  # its place among those of the order
    seed: int
    round: int
    drift: int | None  # where it lies, as all vectors
    result: int
    memory: _Memory | None


class _Entry(msgspec.Struct, array_like=True):
    model: int
    dataset: int
    count: int  # of rows
    shift: Shift | None
    params: int
    training: _Training | None  # None: an evaluation
    own: tuple[str, ...]  # the user's own metrics, for an evaluation


class _Order(msgspec.Struct, array_like=True):
    specs: list[TrainSpec]
    rows: int  # of all jobs, one after the other
    entries: list[_Entry]


class _Trained(msgspec.Struct, array_like=True, tag=True):
    num_examples: int
    loss: float
    steps: int
    remembers: bool  # whether there was a step to remember anything of


class _Evaluated(msgspec.Struct, array_like=True, tag=True):
    loss: float
    accuracy: float | None
    num_examples: int
    own: dict[str, float]


def _order(parcel: _Parcel, numbers: Mapping[Thing, int], arena: Arena) -> _Order:
    """Put what the jobs need where the process finds it."""
    specs: dict[int, tuple[int, TrainSpec]] = {}  # by identity: there are few, and they have no hash
    rows = arena.empty(sum(len(job.shard) for job in parcel.jobs), torch.int64)
    torch.cat([job.shard.indices for job in parcel.jobs], out=rows)
    parcel.others.append(rows)

    def put(vector: Tensor) -> int:
        parcel.others.append(arena.copy(vector))
        return arena.offset(parcel.others[-1])

    def training(job: Portable) -> _Training | None:
        if not isinstance(job, FitJob):
            parcel.results.append(None)
            return None
        result, memory, kept = arena.empty(job.params.numel()), None, None
        if job.memory is not None:
            kept = arena.empty(memory_numel(job.model.layout, job.spec))
            memory = _Memory(put(job.memory), len(job.memory), arena.offset(kept))
        parcel.results.append(_Result(result, kept))
        spec, _ = specs.setdefault(id(job.spec), (len(specs), job.spec))
        drift = None if job.drift is None else put(job.drift)
        return _Training(spec, job.seed, job.round, drift, arena.offset(result), memory)

    def entry(job: Portable) -> _Entry:
        shard = job.shard
        model, dataset = numbers[job.model], numbers[shard.dataset]
        own = job.own if isinstance(job, EvaluateJob) else ()
        return _Entry(model, dataset, len(shard), shard.shift, put(job.params), training(job), own)

    entries = [entry(job) for job in parcel.jobs]
    return _Order([spec for _, spec in specs.values()], arena.offset(rows), entries)


def _opened(answer: _Trained | _Evaluated | Failure, result: _Result | None) -> Outcome:
    if isinstance(answer, Failure):
        return answer.error
    if result is None or isinstance(answer, _Evaluated):
        assert isinstance(answer, _Evaluated)
        return Evaluation(answer.loss, answer.accuracy, answer.num_examples, answer.own)
    memory = result.memory if result.memory is None or answer.remembers else result.memory[:0]
    return FitResult(result.params, answer.num_examples, answer.loss, answer.steps, memory)


# -- in the process ----------------------------------------------------------------------------------------------------


def _serve(pipe: Connection[Any, Any], near: Connection[Any, Any], arena: Arena, things: Sequence[Thing]) -> None:
    """Compute until told to end, or until the parent is gone."""
    near.close()  # or the pipe would not end with the parent
    signal.set_wakeup_fd(-1)  # it is the parent's loop that would be woken
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to all; the parent ends us
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    gc.freeze()  # a search for garbage would write to all objects of the parent, and so copy the pages
    torch.set_num_threads(1)
    orders = msgspec.msgpack.Decoder(_Order)
    with asyncio.Runner() as runner, suppress(EOFError, ConnectionError):
        while body := pipe.recv_bytes():
            order = orders.decode(body)
            found: list[Any] = runner.run(Cohort().run_all(_jobs(order, arena, things)))
            pipe.send_bytes(
                msgspec.msgpack.encode([_sealed(*pair, arena) for pair in zip(found, order.entries, strict=True)])
            )


def _jobs(order: _Order, arena: Arena, things: Sequence[Any]) -> list[Portable]:
    counts = [entry.count for entry in order.entries]
    rows = torch.split(arena.view(order.rows, sum(counts), torch.int64), counts)
    jobs: list[Portable] = []
    for entry, indices in zip(order.entries, rows, strict=True):
        model, training = things[entry.model], entry.training
        numel = model.layout.numel
        params, shard = arena.view(entry.params, numel), Shard(things[entry.dataset], indices, entry.shift)
        if training is None:
            jobs.append(EvaluateJob(params, model, shard, entry.own))
            continue
        drift = None if training.drift is None else arena.view(training.drift, numel)
        memory = None if training.memory is None else arena.view(training.memory.given, training.memory.count)
        spec = order.specs[training.spec]
        jobs.append(FitJob(params, model, shard, spec, training.seed, training.round, drift, memory))
    return jobs


def _sealed(found: Outcome, entry: _Entry, arena: Arena) -> _Trained | _Evaluated | Failure:
    if isinstance(found, Exception):
        return Failure.of(found)
    if isinstance(found, Evaluation):
        return _Evaluated(found.loss, found.accuracy, found.num_examples, dict(found.own))
    assert entry.training is not None, "what is trained is to be trained"
    arena.view(entry.training.result, len(found.params)).copy_(found.params)
    remembers = found.memory is not None and len(found.memory) > 0
    if found.memory is not None and remembers:
        assert entry.training.memory is not None, "what is remembered was asked for"
        arena.view(entry.training.memory.result, len(found.memory)).copy_(found.memory)
    return _Trained(found.num_examples, found.loss, found.steps, remembers)
