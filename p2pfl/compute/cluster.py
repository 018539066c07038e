"""Jobs on a Ray cluster: models and data are broadcast once, vectors once for all jobs that share them."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from p2pfl.compute.job import EvaluateJob, FitJob, outcome
from p2pfl.compute.remote import Portable, Remote, parcel
from p2pfl.errors import ConfigError, MissingPackage
from p2pfl.learn.data import Dataset, Shard
from p2pfl.learn.evaluate import Evaluation
from p2pfl.learn.model import Model
from p2pfl.learn.params import from_buffer
from p2pfl.learn.tiers import fit_all
from p2pfl.learn.train import Fit, FitResult

__all__ = ["Ray"]


class Ray(Remote):
    """Trains and evaluates on actors of a Ray cluster, whose hosts have p2pfl installed.

    An actor that dies is started anew, and what it had to do is done again; see also `Remote`.
    """

    def __init__(self, address: str = "", workers: int = 0) -> None:
        """`address`: as `ray.init` takes it, such as "auto"; none: a cluster on this machine. `workers`: 0: all CPUs.

        Raises MissingPackage without Ray, ConfigError for an address where there is none.
        """
        super().__init__()
        if workers < 0:
            raise ConfigError(f"--compute.workers is {workers}; it must not be negative")
        try:
            import ray  # noqa: PLC0415 - optional, and its import takes seconds
        except ImportError:
            raise MissingPackage("--compute ray", "pip install 'p2pfl-aio[ray]'") from None
        self._ray: Any = ray  # whose annotations are not complete
        if not ray.is_initialized():
            self._connect(address, workers)
        self._count = workers or max(1, int(self._ray.cluster_resources().get("CPU", 1)))
        self._actors: list[Any] = []
        self._materials: dict[tuple[Model, Dataset], Any] = {}  # what was broadcast

    def _connect(self, address: str, workers: int) -> None:
        try:
            if address:
                self._ray.init(address=address, log_to_driver=False)
            else:
                self._ray.init(num_cpus=workers or None, include_dashboard=False, log_to_driver=False)
        except (ConnectionError, RuntimeError, ValueError, TimeoutError) as error:
            reason = str(error).partition("\n")[0]
            raise ConfigError(f"--compute.address {address!r}: no Ray cluster answers there ({reason})") from error

    async def _attempt(self, jobs: Mapping[int, Portable], found: dict[int, Any], most: int) -> Sequence[int]:
        # On a thread, because waiting for Ray blocks; by way of run_in_executor, as a virtual clock wants it.
        lost = await self._on_thread(_Attempt(self, jobs, found, most))
        if isinstance(lost, Exception):
            raise lost
        return lost

    def distribute(self, jobs: Mapping[int, Portable], found: dict[int, Any], most: int) -> list[int]:
        """See `_attempt`. Blocks."""
        ray = self._ray
        if not self._actors:
            actor = ray.remote(num_cpus=1, max_restarts=-1, max_task_retries=1)(_Actor)
            self._actors = [actor.remote() for _ in range(self._count)]
        vectors = _Broadcast(ray)
        left, lost = deque(jobs.items()), list[int]()
        free, running = list(self._actors), dict[Any, tuple[Any, dict[int, Portable]]]()
        while left or running:
            while left and free:
                actor, taken = free.pop(), parcel(left, self._count, most)
                orders = [self._order(job, vectors) for job in taken.values()]
                running[actor.run.remote(orders)] = actor, taken
            (done,), _ = ray.wait(list(running), num_returns=1)
            actor, taken = running.pop(done)
            free.append(actor)
            try:
                found.update(zip(taken, map(_opened, ray.get(done)), strict=True))
            except ray.exceptions.RayActorError:
                lost.extend(taken)
        return lost

    def _order(self, job: Portable, vectors: _Broadcast) -> _Order:
        key = job.model, job.shard.dataset
        if key not in self._materials:
            self._materials[key] = self._ray.put(self._packed(*key))
        fit = job if isinstance(job, FitJob) else None
        drift = None if fit is None or fit.drift is None else vectors.put(fit.drift)
        spec = None if fit is None else (fit.spec, fit.seed, fit.round)
        return _Order(self._materials[key], vectors.put(job.params), job.shard.indices, job.shard.shift, spec, drift)

    def _packed(self, model: Model, dataset: Dataset) -> tuple[object, ...]:
        for thing in (type(model.module), model.loss):
            module = sys.modules.get(getattr(thing, "__module__", ""))
            if module is not None and module.__name__.partition(".")[0] not in ("torch", "p2pfl"):
                self._ray.cloudpickle.register_pickle_by_value(module)  # code of the user's, which workers may not have
        return model.module, model.loss, {field.name: getattr(dataset, field.name) for field in fields(dataset)}

    def _dismiss(self) -> None:
        actors, self._actors = self._actors, []
        for actor in actors:
            self._ray.kill(actor)

    def __repr__(self) -> str:
        return f"<Ray {self._count}>"


@dataclass(frozen=True, slots=True)
class _Attempt:
    """`Ray.distribute` as a job of the thread on which it waits."""

    ray: Ray
    jobs: Mapping[int, Portable]
    found: dict[int, Any]
    most: int
    examples = 0
    result_bytes = 0

    def __call__(self) -> list[int]:
        return self.ray.distribute(self.jobs, self.found, self.most)


@dataclass(frozen=True, slots=True)
class _Order:
    """A job as it is sent: what is large by reference to Ray's object store."""

    material: Any  # module, loss, data set
    params: Any
    rows: Tensor
    shift: Any
    spec: Any  # with seed and round; None: an evaluation
    drift: Any


class _Broadcast:
    """Vectors in the object store, each once."""

    def __init__(self, ray: Any) -> None:
        self._ray = ray
        self._put: dict[int, Any] = {}

    def put(self, vector: Tensor) -> Any:
        if id(vector) not in self._put:
            self._put[id(vector)] = self._ray.put(vector.detach().numpy())
        return self._put[id(vector)]


def _opened(answer: Any) -> FitResult | Evaluation | Exception:
    if isinstance(answer, tuple):
        params, num_examples, loss, steps = answer
        return FitResult(_vector(params), num_examples, loss, steps)
    return answer  # type: ignore[no-any-return]  # an evaluation or an error, as the actor made it


def _vector(array: Any) -> Tensor:
    """A vector in the object store, not copied: it cannot be written to."""
    return from_buffer(memoryview(array).cast("B"), array.size)


class _Actor:
    """Computes on one CPU of the cluster."""

    def __init__(self) -> None:
        torch.set_num_threads(1)
        self._known: dict[str, tuple[Model, Dataset]] = {}

    def run(self, orders: Sequence[_Order]) -> list[Any]:
        jobs = [self._job(order) for order in orders]
        fitted = iter(fit_all([job for job in jobs if isinstance(job, Fit)]))
        return [_sealed(next(fitted) if isinstance(job, Fit) else outcome(job)) for job in jobs]

    def _job(self, order: _Order) -> Fit | EvaluateJob:
        import ray  # noqa: PLC0415 - this runs on a worker of Ray

        name = order.material.hex()
        if name not in self._known:
            module, loss, parts = ray.get(order.material)
            dataset = Dataset(**parts)
            self._known[name] = Model.of(module, loss, *dataset.batch(dataset.train_indices[:2])), dataset
        model, dataset = self._known[name]
        params, shard = _vector(ray.get(order.params)), Shard(dataset, order.rows, order.shift)
        if order.spec is None:
            return EvaluateJob(params, model, shard)
        drift = None if order.drift is None else _vector(ray.get(order.drift))
        spec, seed, round = order.spec
        return Fit(params, model, shard, spec, seed, round, drift)


def _sealed(found: FitResult | Evaluation | Exception) -> Any:
    if isinstance(found, FitResult):
        return found.params.numpy(), found.num_examples, found.loss, found.steps
    return found
