"""Jobs on a Ray cluster: models and data are broadcast once, and so is a vector that many jobs share."""

from __future__ import annotations

import sys
import sysconfig
from collections.abc import Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from p2pfl.compute.crew import Crew, Failure, Outcome, Portable, WorkerLost, shared_vectors
from p2pfl.compute.job import EvaluateJob, FitJob, Job, alone, outcome
from p2pfl.errors import ComputeError, ConfigError, MissingPackage
from p2pfl.learn.data import Dataset, Shard
from p2pfl.learn.evaluate import Evaluation
from p2pfl.learn.model import Model
from p2pfl.learn.shift import Shift
from p2pfl.learn.specs import TrainSpec
from p2pfl.learn.tiers import fit_all
from p2pfl.learn.train import FitResult

__all__ = ["Ray"]

ResultT = TypeVar("ResultT")
Array = npt.NDArray[Any]
_Trained = tuple[Array, int, float, int, Array | None]  # parameters, examples, loss, steps and memory
_Answer = _Trained | Evaluation | Failure


class Ray:
    """Trains and evaluates on a Ray cluster, whose hosts have p2pfl installed; other jobs are done here, on the loop.

    Each worker is an actor with one CPU. What an actor had when it died is done again by another; a job that two of
    them have died of raises ComputeError. What was broadcast stays in the cluster until `close`.
    """

    examples_per_second = None  # nobody knows before it is measured

    def __init__(self, address: str = "", workers: int = 0) -> None:
        """`address`: as `ray.init` takes it, such as "auto"; empty: a cluster on this machine, unless Ray has been
        initialised. `workers`: 0 for as many as the cluster has CPUs. Blocks until the cluster is there.

        Raises MissingPackage without Ray, ConfigError for an address where there is none.
        """
        if workers < 0:
            raise ConfigError(f"--compute.workers is {workers}; it must not be negative")
        try:
            import ray  # noqa: PLC0415 - optional, and slow
        except ImportError:
            raise MissingPackage("--compute ray", "pip install 'p2pfl-aio[ray]'") from None
        self._ray: Any = ray  # whose annotations are not complete
        self._connected_here = not ray.is_initialized()
        if self._connected_here:
            self._connect(address, workers)
        self._store = _Store(ray)
        count = workers or max(1, int(self._ray.cluster_resources().get("CPU", 1)))
        self._workers = [_Remote(ray, self._store) for _ in range(count)]
        self._crew = Crew(self._workers, self._end)

    def _connect(self, address: str, workers: int) -> None:
        # A cluster of our own has no dashboard; one that is there takes no such options.
        own = {} if address else {"num_cpus": workers or None, "include_dashboard": False}
        try:
            self._ray.init(address=address or "local", log_to_driver=False, **own)
        except (OSError, RuntimeError, ValueError) as error:
            reason = str(error).partition("\n")[0]
            raise ConfigError(f"--compute.address {address!r}: no Ray cluster answers there ({reason})") from error

    @property
    def parallel(self) -> int:
        return len(self._workers)

    async def run(self, job: Job[ResultT]) -> ResultT:
        return await alone(self, job)

    async def run_all(self, jobs: Sequence[Job[ResultT]]) -> list[ResultT | Exception]:
        vectors = shared_vectors(jobs)
        with self._crew.open():
            self._store.add(vectors)
            try:
                return await self._crew.run_all(jobs)
            finally:
                self._store.remove(vectors)

    async def close(self) -> None:
        self._crew.close()

    def _end(self) -> None:
        for worker in self._workers:
            worker.end()
        self._store.clear()
        if self._connected_here:
            self._ray.shutdown()

    def __repr__(self) -> str:
        return f"<Ray {len(self._workers)}>"


class _Store:
    """What lies in Ray's object store, each thing once."""

    def __init__(self, ray: Any) -> None:
        self._ray = ray
        self._things: dict[Model | Dataset, Any] = {}
        self._vectors: dict[int, Any] = {}  # by identity, while there are jobs that have them

    def add(self, vectors: Iterable[Tensor]) -> None:
        self._vectors |= {id(vector): self._ray.put(vector.detach().numpy()) for vector in vectors}

    def remove(self, vectors: Iterable[Tensor]) -> None:
        for vector in vectors:
            self._vectors.pop(id(vector), None)

    def clear(self) -> None:
        self._things.clear()
        self._vectors.clear()

    def vector(self, vector: Tensor) -> Any:
        """A reference, or the numbers themselves."""
        return self._vectors.get(id(vector), vector.detach().numpy())

    def dataset(self, dataset: Dataset) -> Any:
        """A reference to what `_Actor.know` takes."""
        if dataset not in self._things:
            values = [getattr(dataset, field.name) for field in fields(dataset)]
            arrays = [value.numpy() if isinstance(value, Tensor) else value for value in values]
            self._things[dataset] = self._ray.put(arrays)
        return self._things[dataset]

    def model(self, model: Model, dataset: Dataset) -> Any:
        """The same for a model, with two examples to try it on."""
        if model not in self._things:
            for module in _users_modules(model):
                self._ray.cloudpickle.register_pickle_by_value(module)
            x, y = dataset.batch(dataset.train_indices[:2])
            with model.using(model.initial, training=False):  # puts everything back in the end
                for tensor in model.layout.tensors(model.module):
                    tensor.data = tensor.new_empty(0)  # or each would be sent with all of the vector it is a part of
                skeleton = model.module, model.layout, model.loss, model.initial.numpy(), x.numpy(), y.numpy()
                self._things[model] = self._ray.put(skeleton)
        return self._things[model]


def _users_modules(model: Model) -> set[ModuleType]:
    """Modules with code of the model that is not installed: other hosts may not have it, so it is sent."""
    names = {getattr(thing, "__module__", "") for thing in (model.loss, *map(type, model.module.modules()))}
    modules = {sys.modules[name] for name in names if name in sys.modules and name.partition(".")[0] != "p2pfl"}
    installed = tuple(map(sysconfig.get_path, ("stdlib", "platstdlib", "purelib", "platlib")))
    files = {module: getattr(module, "__file__", None) for module in modules}
    return {module for module, file in files.items() if file and not str(Path(file).resolve()).startswith(installed)}


@dataclass(frozen=True, slots=True)
class _Order:
    """A job as it is sent."""

    model: int  # by number, as all that the actor knows
    dataset: int
    rows: Array
    shift: Shift | None
    params: int  # its place among the vectors that go with the orders
    training: tuple[TrainSpec, int, int] | None  # spec, seed, round; None: evaluate
    drift: int | None = None
    memory: int | None = None
    own: tuple[str, ...] = ()  # the user's own metrics, for an evaluation


class _Remote:
    """The near end of an actor, which is made when it is needed, and anew when it has died."""

    def __init__(self, ray: Any, store: _Store) -> None:
        self._ray = ray
        self._store = store
        self._actor: Any = None
        self._numbers: dict[Model | Dataset, int] = {}  # of what the actor knows
        self.pending = 0

    def begin(self, jobs: Sequence[Portable]) -> Future[list[Outcome]]:
        """See `crew.Worker`."""
        if self._actor is None:
            self._actor = self._ray.remote(num_cpus=1)(_Actor).remote()
            self._numbers = {}
        vectors: dict[int, tuple[int, Tensor]] = {}  # by identity: places, and the vectors
        orders = [self._order(job, vectors) for job in jobs]
        sent = self._actor.run.remote(orders, *(self._store.vector(vector) for _, vector in vectors.values()))
        future: Future[list[Outcome]] = Future()
        future.set_running_or_notify_cancel()  # whoever gives it up, the actor goes on
        self.pending += 1
        sent.future().add_done_callback(partial(self._answer, self._actor, future))
        return future

    def end(self) -> None:
        """End the actor, if there is one."""
        if self._actor is not None:
            self._ray.kill(self._actor)
            self._actor = None

    def _order(self, job: Portable, vectors: dict[int, tuple[int, Tensor]]) -> _Order:
        def place(vector: Tensor) -> int:
            return vectors.setdefault(id(vector), (len(vectors), vector))[0]

        shard = job.shard
        model, dataset = self._number(job.model, shard.dataset), self._number(shard.dataset, shard.dataset)
        order = _Order(model, dataset, shard.indices.numpy(), shard.shift, place(job.params), None)
        if not isinstance(job, FitJob):
            return replace(order, own=job.own)
        drift, memory = (None if vector is None else place(vector) for vector in (job.drift, job.memory))
        return replace(order, training=(job.spec, job.seed, job.round), drift=drift, memory=memory)

    def _number(self, thing: Model | Dataset, dataset: Dataset) -> int:
        if thing not in self._numbers:
            number = self._numbers[thing] = len(self._numbers)
            if isinstance(thing, Model):
                self._actor.know_model.remote(number, self._store.model(thing, dataset))
            else:
                self._actor.know_dataset.remote(number, self._store.dataset(thing))
        return self._numbers[thing]

    def _answer(self, actor: Any, future: Future[list[Outcome]], answers: Future[list[_Answer]]) -> None:
        """On a thread of Ray."""
        self.pending -= 1
        try:
            outcomes = [_opened(answer) for answer in answers.result()]
        except self._ray.exceptions.RayTaskError as error:
            future.set_exception(ComputeError(f"a worker could not do its work: {error}"))
        except self._ray.exceptions.RayError as error:
            if self._actor is actor:
                self._actor = None
            future.set_exception(WorkerLost(str(error).partition("\n")[0]))
        else:
            future.set_result(outcomes)


def _opened(answer: _Answer) -> Outcome:
    if isinstance(answer, Failure):
        return answer.error
    if isinstance(answer, Evaluation):
        return answer
    params, num_examples, loss, steps, memory = answer
    # Copies, because the object store is read-only, and should not have to keep what is held here.
    remembered = None if memory is None else torch.from_numpy(memory.copy())
    return FitResult(torch.from_numpy(params.copy()), num_examples, loss, steps, remembered)


# -- on the cluster ----------------------------------------------------------------------------------------------------


class _Actor:
    """Computes on one CPU."""

    def __init__(self) -> None:
        torch.set_num_threads(1)
        self._known: dict[int, Any] = {}

    def know_dataset(self, number: int, values: Sequence[Any]) -> None:
        parts: list[Any] = [_tensor(value) if isinstance(value, np.ndarray) else value for value in values]
        self._known[number] = Dataset(*parts)

    def know_model(self, number: int, skeleton: tuple[Any, ...]) -> None:
        module, layout, loss, initial, x, y = skeleton
        tensors = dict(module.named_parameters()) | dict(module.named_buffers())
        flat = torch.from_numpy(initial.copy())  # running statistics are written to
        for entry, view in zip(layout.entries, layout.views(flat), strict=True):
            tensors[entry.name].data = view
        model = self._known[number] = Model.of(module, loss, _tensor(x), _tensor(y))
        assert model.layout == layout, "the vectors that are sent would mean something else here"

    def run(self, orders: Sequence[_Order], *vectors: Array) -> list[_Answer]:
        tensors = [_tensor(vector) for vector in vectors]
        jobs = [self._job(order, tensors) for order in orders]
        trained = iter(fit_all([job for job in jobs if isinstance(job, FitJob)]))
        return [_sealed(next(trained) if isinstance(job, FitJob) else outcome(job)) for job in jobs]

    def _job(self, order: _Order, vectors: Sequence[Tensor]) -> Portable:
        model, params = self._known[order.model], vectors[order.params]
        shard = Shard(self._known[order.dataset], _tensor(order.rows), order.shift)
        if order.training is None:
            return EvaluateJob(params, model, shard, order.own)
        drift, memory = (None if place is None else vectors[place] for place in (order.drift, order.memory))
        return FitJob(params, model, shard, *order.training, drift, memory)


def _sealed(found: Outcome) -> _Answer:
    if isinstance(found, Exception):
        return Failure.of(found)
    if isinstance(found, Evaluation):
        return found
    memory = None if found.memory is None else found.memory.numpy()
    return found.params.numpy(), found.num_examples, found.loss, found.steps, memory


def _tensor(array: Array) -> Tensor:
    """The same numbers, not copied: they must not be written to. See `params.from_buffer` for the way."""
    return from_dlpack(array.__dlpack__(max_version=(1, 0)))
