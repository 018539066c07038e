"""pfl-research: `FederatedAveraging` on its `SimulatedBackend`.

Each user is a data set that lists its batches in the round's order, read once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from pfl.aggregate.simulate import SimulatedBackend
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.callback.base import TrainingProcessCallback
from pfl.data.federated_dataset import FederatedDataset
from pfl.data.pytorch import PyTorchTensorDataset
from pfl.hyperparam import NNEvalHyperParams, NNTrainHyperParams
from pfl.metrics import Metrics
from pfl.model.pytorch import PyTorchModel
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from tests.benchmarks.simulation.workload import State, Work


def run(work: Work, done: Callable[[], None]) -> State:
    """As `hand.run`."""
    scenario, net = work.scenario, _Net(work.module())
    net.module.load_state_dict(work.initial)
    model = PyTorchModel(net, torch.optim.SGD, torch.optim.SGD(net.parameters(), lr=1.0))
    asked = enumerate(work.plan.flatten(0, 1).flatten(1))

    def dataset(user: tuple[int, Tensor]) -> PyTorchTensorDataset:
        number, rows = user
        return PyTorchTensorDataset((work.x[rows], work.y[rows]), user_id=str(number))

    users = FederatedDataset(dataset, lambda: next(asked))
    parameters = NNAlgorithmParams(
        central_num_iterations=scenario.rounds + 1,
        evaluation_frequency=scenario.rounds + 2,  # the first round is evaluated nevertheless
        train_cohort_size=scenario.cohort,
        val_cohort_size=0,
    )
    FederatedAveraging().run(
        parameters,
        SimulatedBackend(users, users),
        model,
        NNTrainHyperParams(local_num_epochs=1, local_learning_rate=scenario.lr, local_batch_size=scenario.batch),
        NNEvalHyperParams(local_batch_size=None),
        [_Told(done)],
        send_metrics_to_platform=False,
    )
    return net.module.state_dict()


class _Net(nn.Module):
    """A module with the two methods that pfl asks for."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        return cross_entropy(self.module(x), y)

    def metrics(self, x: Tensor, y: Tensor) -> dict[str, Any]:
        return {}


class _Told(TrainingProcessCallback):
    def __init__(self, done: Callable[[], None]) -> None:
        self._done = done

    def after_central_iteration(
        self, aggregate_metrics: Metrics, model: PyTorchModel, *, central_iteration: int
    ) -> tuple[bool, Metrics]:
        self._done()
        return False, Metrics()
