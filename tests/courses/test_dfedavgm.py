from dataclasses import replace

import numpy as np
import pytest

from p2pfl.courses.dfedavgm import DFEDAVGM, DfedavgmSettings
from p2pfl.errors import ConfigError
from p2pfl.learn.specs import PartitionSpec, TrainSpec
from p2pfl.topology.families import build
from p2pfl.topology.mixing import mixing_matrix
from tests.courses.kit import Played, first_models, last_models, local_training

WHOLE = TrainSpec(lr=0.2, batch_size=10**6, epochs=3)  # three steps of gradient descent on all examples of a seat


def dfedavgm(**more):
    return Played(DFEDAVGM, DfedavgmSettings(rounds=3, evaluators=0, momentum=0.7), build("star", 4), **more)


def by_the_paper(played, theta):
    """y(k+1) = y(k) - lr g(y(k)) + theta (y(k) - y(k-1)) from y(-1) = y(0) = x, then x <- W y; g by single steps."""
    one = replace(played, train=TrainSpec(lr=0.2, batch_size=10**6), events=[])
    x, w = first_models(played), mixing_matrix(played.topology).astype(np.float32)
    for number in range(played.settings.rounds):
        y = before = x
        for _ in range(played.train.epochs):
            y, before = local_training(one, y, number) + theta * (y - before), y
        x = w @ y
    return x


def test_it_is_the_algorithm_of_the_paper():
    played = dfedavgm(train=WHOLE, split=PartitionSpec("dirichlet", alpha=0.3, min_examples=4)).play()
    np.testing.assert_allclose(last_models(played), by_the_paper(played, 0.7), atol=2e-5)
    assert np.abs(last_models(played) - by_the_paper(played, 0.0)).max() > 1e-3


def test_what_does_not_fit_is_refused():
    with pytest.raises(ConfigError, match=r"^train\.momentum is 0\.9, and course\.momentum 0\.7"):
        dfedavgm(train=TrainSpec(momentum=0.9)).play()
    with pytest.raises(ConfigError, match=r"^train\.optimizer is 'Adam'"):
        dfedavgm(train=TrainSpec(optimizer="Adam")).play()
    for value in (-0.1, 1.0):
        with pytest.raises(ConfigError, match=r"^course\.momentum is "):
            DfedavgmSettings(momentum=value)
