from functools import cache

import numpy as np
import pytest
import torch

from p2pfl.courses.d2 import D2, Corrected, D2Settings
from p2pfl.courses.dpsgd import DPSGD, DpsgdSettings
from p2pfl.courses.gradtrack import GRADTRACK, GradtrackSettings
from p2pfl.errors import ConfigError
from p2pfl.learn.specs import PartitionSpec, TrainSpec
from p2pfl.topology.families import build
from p2pfl.topology.graph import Topology
from p2pfl.topology.mixing import mixing_matrix
from tests.courses.kit import Played, first_models, last_models, local_training


def d2(topology, **more):
    own = {name: more.pop(name) for name in list(more) if name in Played.__dataclass_fields__}
    return Played(D2, D2Settings(**{"rounds": 5, "evaluators": 0} | more), topology, **own)


def by_the_paper(played, lazy):
    """x(t+1) = W (2 x(t) - x(t-1) - lr (g(t) - g(t-1))), where x - lr g is what training gives."""
    w = mixing_matrix(played.topology, "lazy" if lazy else "metropolis").astype(np.float32)
    before = trained_before = None
    x = first_models(played)
    for number in range(played.settings.rounds):
        trained = local_training(played, x, number)
        y = trained if before is None else x + trained - trained_before
        before, trained_before, x = x, trained, w @ y
    return x


@pytest.mark.parametrize("lazy", [True, False])
@pytest.mark.parametrize("topology", [build("ring", 5), build("star", 4)], ids=repr)
def test_it_is_the_recursion_of_the_paper(topology, lazy):
    played = d2(topology, lazy=lazy).play()
    np.testing.assert_allclose(last_models(played), by_the_paper(played, lazy), atol=2e-5)


def test_corrections_begin_anew_every_so_many_rounds():
    """With a restart in every round there is none, which is D-PSGD with lazy weights."""
    played = d2(build("ring", 5), restart_every=1).play()
    x, w = first_models(played), mixing_matrix(played.topology, "lazy").astype(np.float32)
    for number in range(5):
        x = w @ local_training(played, x, number)
    np.testing.assert_allclose(last_models(played), x, atol=2e-5)


# -- the optimum of all ------------------------------------------------------------------------------------------------

WHOLE = TrainSpec(lr=0.2, batch_size=10**6, weight_decay=0.5)  # one step of gradient descent on all examples of a seat
APART = PartitionSpec("dirichlet", alpha=0.1, min_examples=4)


@cache
def optimum():
    """Of the mean of all seats' losses, by gradient descent in one place."""
    played = d2(build("ring", 4), train=WHOLE, split=APART)
    x = first_models(played)
    for _ in range(120):
        x = np.tile(local_training(played, x, 0).mean(0), (4, 1))
    return x


def error(course, settings, **more):
    played = Played(course, settings, build("ring", 4), train=WHOLE, split=APART, **more).play()
    return np.abs(last_models(played) - optimum()).max()


def test_it_reaches_the_optimum_of_all_where_mixing_alone_does_not():
    assert error(D2, D2Settings(rounds=100, evaluators=0)) < 1e-4
    assert error(GRADTRACK, GradtrackSettings(rounds=100, evaluators=0)) < 1e-4
    assert error(DPSGD, DpsgdSettings(rounds=100, evaluators=0)) > 1e-2


# -- what must be ------------------------------------------------------------------------------------------------------


def test_a_matrix_whose_eigenvalues_are_too_small_is_refused():
    with pytest.raises(ConfigError, match=r"course\.lazy is false.* eigenvalue -0\.333.* set it to true"):
        d2(build("ring", 4), lazy=False).play()


def test_below_a_third_it_does_diverge():
    """Two seats that swap their models: W has the eigenvalue -1."""
    swap = np.array([[0.0, 1.0], [1.0, 0.0]])
    x, before = np.array([1.0, -1.0]), np.array([1.0, -1.0])
    x = swap @ x
    for _ in range(20):
        before, x = x, swap @ (2 * x - before)
    assert np.abs(x).max() > 1e6


def test_graphs_that_change_and_one_way_links_are_refused():
    with pytest.raises(ConfigError, match="which changes; choose a family that does not"):
        d2(build("random-matching", 4)).play()
    assert D2.needs(build("exponential", 6)) == "links must go both ways, so that the mean of all is kept"
    assert D2.needs(Topology.from_edges(4, [(0, 1), (2, 3)])) == "the graph must be connected"
    assert D2.needs(build("ring", 4)) is None


def test_a_negative_number_of_rounds_is_refused():
    with pytest.raises(ConfigError, match=r"^course\.restart_every is -1"):
        D2Settings(restart_every=-1)


def test_it_remembers_its_correction_and_forgets_it_with_a_foreign_model():
    steps, again = Corrected(None), Corrected(None)
    assert not steps.state()
    steps.take(torch.zeros(2), torch.tensor([1.0, 2.0]), torch.tensor([1.5, 1.5]), {})
    again.resume({"params": torch.zeros(2), "round": 3, **steps.state()})
    assert again.give(torch.zeros(2), torch.ones(2)).tolist() == [1.5, 0.5]
    again.restart()
    assert again.give(torch.zeros(2), torch.ones(2)).tolist() == [1.0, 1.0]
    steps.resume({"params": torch.zeros(2), "round": 0})
    assert not steps.state()
