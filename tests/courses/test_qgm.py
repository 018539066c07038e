import asyncio

import numpy as np
import pytest
import torch

from p2pfl.courses.learner import seed_of
from p2pfl.courses.qgm import QGM, Heavy, QgmSettings
from p2pfl.errors import ConfigError
from p2pfl.learn.specs import TrainSpec
from p2pfl.learn.tiers import fit_one
from p2pfl.learn.train import Fit, FitResult
from p2pfl.topology.families import build
from p2pfl.topology.mixing import mixing_matrix
from tests.courses.kit import Played, first_models, last_models


def qgm(topology, **more):
    own = {name: more.pop(name) for name in list(more) if name in Played.__dataclass_fields__}
    return Played(QGM, QgmSettings(**{"rounds": 5, "evaluators": 0} | more), topology, **own)


def by_the_paper(played, mu):
    """m = mu buffer + g; x <- W (x - lr m); buffer <- mu buffer + (1 - mu) (x - x(next)) / lr, with one local step."""
    x, w, lr = first_models(played), mixing_matrix(played.topology).astype(np.float32), played.train.lr
    buffer = np.zeros_like(x)
    for number in range(played.settings.rounds):
        plain = np.stack([
            fit_one(Fit(
                torch.from_numpy(x[i]), played.model, played.shards[i], played.train,
                seed_of(played.seed, "fit", number, i), number,
            )).params.numpy()
            for i in range(len(x))
        ])  # fmt: skip
        gradient = (x - plain) / lr
        new = w @ (x - lr * (mu * buffer + gradient))
        buffer = mu * buffer + (1 - mu) * (x - new) / lr
        x = new
    return x


@pytest.mark.parametrize("topology", [build("ring", 5), build("star", 4)], ids=repr)
def test_with_one_local_step_it_is_the_algorithm_of_the_paper(topology):
    played = qgm(topology, momentum=0.8, train=TrainSpec(lr=0.5, batch_size=8, steps=1)).play()
    np.testing.assert_allclose(last_models(played), by_the_paper(played, 0.8), atol=3e-5)


class Learns:
    """A learner whose gradients are all 1, with several steps to a round."""

    train = TrainSpec(lr=0.5)

    async def fit(self, params, round, *, drift=None):
        self.drift = drift
        return FitResult(params - 0.5 * 4 * (1 + (0 if drift is None else drift)), 1, 0.0, 4)


def test_with_several_local_steps_the_buffer_is_of_one():
    steps, learner, x = Heavy(None, 0.5), Learns(), torch.zeros(1)
    trained = asyncio.run(steps.fit(learner, x, 0)).params
    assert learner.drift is None and trained.item() == -2
    steps.take(x, trained, torch.tensor([-2.0]), {})
    assert steps.state()["buffer"].item() == 0.5  # (1 - 0.5) * 2 / (0.5 * 4)
    trained = asyncio.run(steps.fit(learner, x, 1)).params
    assert learner.drift.item() == 0.25 and trained.item() == -2.5
    steps.take(x, trained, torch.tensor([-4.0]), {})
    assert steps.state()["buffer"].item() == 0.5 * 0.5 + 0.5 * 2


def test_it_remembers_its_buffer_and_forgets_it_with_a_foreign_model():
    steps, learner = Heavy(None, 0.5), Learns()
    steps.resume({"params": torch.zeros(1), "round": 2, "buffer": torch.tensor([8.0])})
    asyncio.run(steps.fit(learner, torch.zeros(1), 2))
    assert learner.drift.item() == 4
    steps.restart()
    assert not steps.state()
    asyncio.run(steps.fit(learner, torch.zeros(1), 2))
    assert learner.drift is None


def test_a_second_momentum_and_one_that_is_none_are_refused():
    with pytest.raises(ConfigError, match=r"^train\.momentum is 0\.9, .* set it to 0"):
        qgm(build("ring", 4), train=TrainSpec(momentum=0.9)).play()
    for value in (-0.1, 1.0):
        with pytest.raises(ConfigError, match=r"^course\.momentum is "):
            QgmSettings(momentum=value)
