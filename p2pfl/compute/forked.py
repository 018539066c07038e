"""One forked process that computes.

What it knows of models and data it knew at the fork: those pages are shared, and nothing of them is sent. Over a socket
go numbers, as JSON; vectors and row numbers lie in memory that both processes see. Nothing is pickled.
"""

from __future__ import annotations

import math
import mmap
import os
import signal
import socket
import struct
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any, NoReturn

import msgspec
import orjson
import torch
from torch import Tensor

from p2pfl.compute.job import EvaluateJob, FitJob, outcome
from p2pfl.compute.remote import Portable, WorkerLost
from p2pfl.errors import ComputeError, ConfigError
from p2pfl.learn.data import Dataset, Shard
from p2pfl.learn.evaluate import Evaluation
from p2pfl.learn.model import Model
from p2pfl.learn.shift import Shift
from p2pfl.learn.specs import TrainSpec
from p2pfl.learn.tiers import fit_all
from p2pfl.learn.train import Fit, FitResult

__all__ = ["Forked", "Known", "nbytes"]

Outcome = FitResult | Evaluation | Exception

_LENGTH = struct.Struct("!Q")
_ALIGNED = 64  # bytes of a cache line


@dataclass(frozen=True, slots=True)
class Known:
    """The models and data sets that workers find in their own memory."""

    models: tuple[Model, ...] = ()
    datasets: tuple[Dataset, ...] = ()

    def covers(self, jobs: Iterable[Portable]) -> bool:
        """Whether these jobs use nothing else."""
        return all(job.model in self.models and job.shard.dataset in self.datasets for job in jobs)

    def and_of(self, jobs: Iterable[Portable]) -> Known:
        """With what these jobs use."""
        models, datasets = dict.fromkeys(self.models), dict.fromkeys(self.datasets)
        for job in jobs:
            models[job.model] = None
            datasets[job.shard.dataset] = None
        return Known(tuple(models), tuple(datasets))


class _Memory:
    """Bytes that two processes see, given out from the start to the end, and all at once again."""

    def __init__(self, capacity: int) -> None:
        self._map = mmap.mmap(-1, capacity)  # anonymous: it is gone with the last process that has it
        self._bytes = torch.frombuffer(self._map, dtype=torch.uint8)
        self._used = 0
        self._put: dict[int, int] = {}  # id of a tensor that lies there already -> where

    def clear(self) -> None:
        self._used = 0
        self._put.clear()

    def reserve(self, nbytes: int) -> int:
        """The offset of so many bytes."""
        at, self._used = self._used, self._used + -(-nbytes // _ALIGNED) * _ALIGNED
        return at

    def put(self, tensor: Tensor) -> int:
        """Copy a tensor there, once; its offset. The tensor must live until `clear`."""
        if id(tensor) not in self._put:
            at = self._put[id(tensor)] = self.reserve(tensor.nbytes)
            self.view(at, tensor.numel(), tensor.dtype).copy_(tensor)
        return self._put[id(tensor)]

    def view(self, at: int, numel: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """The numbers at an offset, not copied."""
        return self._bytes[at : at + numel * dtype.itemsize].view(dtype)


def nbytes(job: Portable) -> int:
    """Bytes of shared memory for one job: at most, since a vector that several share is sent once."""
    vectors = 1 if isinstance(job, EvaluateJob) else 2 + (job.drift is not None)
    return vectors * (job.params.nbytes + _ALIGNED) + 8 * len(job.shard) + _ALIGNED


class Forked:
    """The parent's end. Fork it before there are threads; then one thread at a time may `run` jobs on it."""

    def __init__(self, known: Known, capacity: int, others: Sequence[Forked] = ()) -> None:
        """`capacity`: bytes of shared memory; they take up room only once they are used.

        `others`: workers that were forked before, whose sockets the new one lets go of.
        """
        self._known = known
        self._models = {id(model): number for number, model in enumerate(known.models)}
        self._datasets = {id(dataset): number for number, dataset in enumerate(known.datasets)}
        self._memory = _Memory(capacity)
        self.capacity = capacity
        self._socket, theirs = socket.socketpair()
        self.pid = os.fork()
        if self.pid == 0:
            for socket_of_parent in (self._socket, *(other._socket for other in others)):
                socket_of_parent.close()  # so that a worker sees the end of its socket when the parent is gone
            _serve(theirs, self._memory, known)
        theirs.close()

    def run(self, jobs: Sequence[Portable]) -> list[Outcome]:
        """The outcomes, in order. Raises WorkerLost if the process ends before it has given them."""
        memory = self._memory
        memory.clear()
        specs: dict[int, TrainSpec] = {}
        sent = [self._described(job, specs) for job in jobs]
        try:
            _send(self._socket, [[asdict(spec) for spec in specs.values()], sent])
            answers = _receive(self._socket)
        except (OSError, EOFError) as error:
            raise WorkerLost(f"worker {self.pid} ended in the middle of its work") from error
        return [self._outcome(job, entry, answer) for job, entry, answer in zip(jobs, sent, answers, strict=True)]

    def end(self) -> None:
        """Let it end, and wait for that. A worker that was lost has ended already."""
        with suppress(OSError):  # it is gone already
            self._socket.shutdown(socket.SHUT_RDWR)  # to close it would not do: workers made later have copies of it
        self._socket.close()
        os.waitpid(self.pid, 0)

    def _described(self, job: Portable, specs: dict[int, TrainSpec]) -> dict[str, Any]:
        memory, shard = self._memory, job.shard
        entry: dict[str, Any] = {
            "model": self._models[id(job.model)],
            "dataset": self._datasets[id(shard.dataset)],
            "rows": memory.put(shard.indices),
            "count": len(shard),
            "shift": None if shard.shift is None else asdict(shard.shift),
            "params": memory.put(job.params),
        }
        if isinstance(job, FitJob):
            entry |= {
                "spec": list(specs).index(id(job.spec)) if id(job.spec) in specs else len(specs),
                "seed": job.seed,
                "round": job.round,
                "drift": None if job.drift is None else memory.put(job.drift),
                "result": memory.reserve(job.params.nbytes),
            }
            specs.setdefault(id(job.spec), job.spec)
        return entry

    def _outcome(self, job: Portable, entry: dict[str, Any], answer: dict[str, Any]) -> Outcome:
        if "error" in answer:
            kind = ConfigError if answer["error"] == ConfigError.__name__ else ComputeError
            return kind(answer["text"])
        loss = math.nan if answer["loss"] is None else answer["loss"]
        if isinstance(job, EvaluateJob):
            return Evaluation(loss, answer["accuracy"], answer["num_examples"])
        params = self._memory.view(entry["result"], job.params.numel()).clone()
        return FitResult(params, answer["num_examples"], loss, answer["steps"])


# -- in the worker -----------------------------------------------------------------------------------------------------


def _serve(parent: socket.socket, memory: _Memory, known: Known) -> NoReturn:
    """Compute until the parent closes its end, or is gone."""
    status = 1
    try:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to all; the parent ends us
        torch.set_num_threads(1)
        while True:
            specs, entries = _receive(parent)
            _send(parent, _answers(memory, known, [msgspec.convert(spec, TrainSpec) for spec in specs], entries))
    except EOFError:
        status = 0
    finally:
        os._exit(status)  # and nothing of what the parent had set up: its loop, its exit handlers


def _answers(
    memory: _Memory, known: Known, specs: Sequence[TrainSpec], entries: Sequence[dict[str, Any]]
) -> list[dict[str, Any]]:
    jobs = [_job(memory, known, specs, entry) for entry in entries]
    fitted = iter(fit_all([job for job in jobs if isinstance(job, Fit)]))  # together, as far as they can be
    return [
        _of_fit(memory, entry, next(fitted)) if isinstance(job, Fit) else _of_evaluation(outcome(job))
        for job, entry in zip(jobs, entries, strict=True)
    ]


def _job(memory: _Memory, known: Known, specs: Sequence[TrainSpec], entry: dict[str, Any]) -> Fit | EvaluateJob:
    model, dataset = known.models[entry["model"]], known.datasets[entry["dataset"]]
    shift = None if entry["shift"] is None else Shift(**entry["shift"])
    shard = Shard(dataset, memory.view(entry["rows"], entry["count"], torch.int64), shift)
    numel = model.layout.numel
    params = memory.view(entry["params"], numel)
    if "spec" not in entry:
        return EvaluateJob(params, model, shard)
    drift = None if entry["drift"] is None else memory.view(entry["drift"], numel)
    return Fit(params, model, shard, specs[entry["spec"]], entry["seed"], entry["round"], drift)


def _of_fit(memory: _Memory, entry: dict[str, Any], found: FitResult | Exception) -> dict[str, Any]:
    if isinstance(found, Exception):
        return _of_error(found)
    memory.view(entry["result"], len(found.params)).copy_(found.params)
    return {"num_examples": found.num_examples, "loss": found.loss, "steps": found.steps}  # NaN goes as null


def _of_evaluation(found: Evaluation | Exception) -> dict[str, Any]:
    return _of_error(found) if isinstance(found, Exception) else asdict(found)


def _of_error(error: Exception) -> dict[str, Any]:
    if isinstance(error, ConfigError):
        return {"error": ConfigError.__name__, "text": str(error)}
    return {"error": type(error).__name__, "text": f"{type(error).__name__} in a worker: {error}"}


# -- the socket --------------------------------------------------------------------------------------------------------


def _send(end: socket.socket, content: object) -> None:
    body = orjson.dumps(content)
    end.sendall(_LENGTH.pack(len(body)) + body)


def _receive(end: socket.socket) -> Any:
    """Raises EOFError when the other end is closed."""
    (length,) = _LENGTH.unpack(_read(end, _LENGTH.size))
    return orjson.loads(_read(end, length))


def _read(end: socket.socket, length: int) -> bytearray:
    content = bytearray(length)
    view = memoryview(content)
    while view.nbytes:
        count = end.recv_into(view)
        if not count:
            raise EOFError("the other end is closed")
        view = view[count:]
    return content
