"""A client that trains by a function of the user's own over numpy arrays: nothing here needs torch.

It takes part in every course whose clients do no more than to train from the model that they are sent: fedavg, fedopt,
fedavgm, fedswa, fedasync and diloco, without compression, without memory of optimizers and with a fixed coordinator.
The others cannot tell it apart.

The function is called with those of these that it has parameters for, by name:

    weights  the model's arrays by name, float32, its own to write to     spec   the table [train], a TrainSpec
    params   the same memory as one vector, of shape (numel,)             seed   rules all that it draws
    round    from 0                                               seat   of this client

It gives the trained weights (a mapping, or a vector), the number of examples and the mean loss. In full:

    def fit(weights, spec):
        w, b = weights["weight"], weights["bias"]
        for _ in range(spec.epochs):
            error = x @ w.T + b - y
            w -= spec.lr * error.T @ x / len(x)
            b -= spec.lr * error.mean(0)
        return weights, len(x), float((error**2).mean())

A function with parameters `x` and `y` that have defaults can be a course's `train.function` too, in a simulation for
instance: there it is given each client's examples.
"""

from __future__ import annotations

import asyncio
import operator
from collections.abc import Callable
from typing import Any

import numpy as np

from p2pfl.compute.daemons import Daemons
from p2pfl.courses.messages import MODEL, Evaluate, Finish, Finished, Rating, Score, Train, Update, number
from p2pfl.courses.seeds import seed_of
from p2pfl.errors import ComputeError, ConfigError, P2pflError, RemoteProtocolError
from p2pfl.learn.arrays import ArrayLayout, Floats
from p2pfl.learn.lookup import taken
from p2pfl.learn.nodes import TrainSpecs
from p2pfl.learn.specs import TrainSpec
from p2pfl.node.node import Node
from p2pfl.node.peer import Peer, require_seat
from p2pfl.wire.tensor import Tensors, TensorSpec

__all__ = ["ArrayTrainer"]

_OFFERED = ("weights", "params", "spec", "seed", "round", "seat")


class ArrayTrainer:
    """The client. The function runs on a thread of its own, one call at a time."""

    def __init__(
        self,
        fit: Callable[..., Any],
        layout: ArrayLayout,
        train: TrainSpec | TrainSpecs | None = None,
        *,
        seed: int = 0,
        score: Callable[[dict[str, Floats]], tuple[float | None, float | None, int]] | None = None,
        server: int = 0,
    ) -> None:
        """`train`: what the function gets as `spec`; `seed`: the course's; `server`: the seat that it obeys.

        `score`: from a model's arrays to loss, accuracy (or None) and number of examples; without it this client has no
        say where clients evaluate. Raises ConfigError for a function that takes what it is not given.
        """
        self.params: Floats | None = None
        """The course's result, once there is one."""
        self._names = taken("the training function", fit, _OFFERED)
        self._function = fit
        self._score = score
        self._layout = layout
        self._schema = (TensorSpec(MODEL, "f32", (layout.numel,)),)
        self._trains = train if isinstance(train, TrainSpecs) else TrainSpecs(train or TrainSpec())
        self._seed = seed
        self._server = server
        self._thread = Daemons(1)
        self._asked: tuple[int, Floats] | None = None  # round and model of the last training
        self._work: asyncio.Future[Update] | None = None  # which is not done again if its answer was lost
        self._over = asyncio.Event()

    @property
    def weights(self) -> dict[str, Floats] | None:
        """The course's result as arrays by name."""
        return None if self.params is None else self._layout.views(self.params)

    async def run(self, node: Node) -> None:
        node.agree(self._schema)
        try:
            with node.waiting("the end of the course"):
                await self._over.wait()
        finally:
            self._thread.shutdown(wait=False)

    @Train.handler
    async def train(self, ask: Train, peer: Peer) -> Update:
        require_seat(peer, self._server)
        received = self._vector(ask.params)
        if self._work is None or not self._is_asked_again(ask.round, received):
            if self._work is not None:
                self._work.cancel()
            self._asked = ask.round, received
            self._work = self._on_thread(self._fit, received, ask.round, peer.node.seat)
        work = self._work
        try:
            return await asyncio.shield(work)  # whoever asks may be cut off, and ask again
        except P2pflError:
            if work is self._work:
                self._work = None  # who asks again has a new try
            raise

    @Evaluate.handler
    async def evaluate(self, ask: Evaluate, peer: Peer) -> Score:
        require_seat(peer, self._server)
        if self._score is None:
            return Score(Rating({}, 0), {})
        loss, accuracy, count = await self._on_thread(self._score, self._layout.views(self._vector(ask.params)))
        found = {"accuracy": number(accuracy), "loss": number(loss)}
        told = {name: value for name, value in found.items() if value is not None}
        return Score(Rating(told, operator.index(count)), {})

    @Finish.handler
    async def finish(self, ask: Finish, peer: Peer) -> Finished:
        require_seat(peer, self._server)
        self.params = self._vector(ask.params)
        self._over.set()
        return Finished()

    def _is_asked_again(self, round: int, received: Floats) -> bool:
        return self._asked is not None and self._asked[0] == round and np.array_equal(self._asked[1], received)

    def _vector(self, tensors: Tensors) -> Floats:
        """A received model, read in place."""
        if tensors.schema != self._schema:
            raise RemoteProtocolError(f"{tensors} came where {self._schema[0]} was agreed")
        vector = np.frombuffer(tensors[MODEL], "<f4")
        if not np.isfinite(vector).all():
            raise RemoteProtocolError("a model with NaN or infinite numbers came")
        return vector

    def _on_thread(self, function: Callable[..., Any], *arguments: object) -> asyncio.Future[Any]:
        # By way of run_in_executor because it is what a loop with a virtual clock knows to wait for.
        return asyncio.get_running_loop().run_in_executor(self._thread, function, *arguments)

    def _fit(self, received: Floats, round: int, seat: int | None) -> Update:
        flat = received.copy()
        offered = {
            "weights": self._layout.views(flat),
            "params": flat,
            "spec": self._trains.general if seat is None else self._trains[seat],
            "seed": seed_of(self._seed, "fit", round, seat),
            "round": round,
            "seat": seat,
        }
        try:
            found = self._function(**{name: offered[name] for name in self._names})
        except Exception as error:  # a function of the user's own may raise anything
            raise ComputeError(f"local training failed: {error!r}") from error
        match found:
            case (trained, num_examples, loss):
                self._layout.write(flat, trained)
                vector = Tensors(self._schema, (flat.data,))
                return Update(round, vector, operator.index(num_examples), number(float(loss)))
        raise ConfigError(f"the training function gives a {type(found).__name__}; return (weights, num_examples, loss)")
