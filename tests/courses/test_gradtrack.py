import numpy as np
import pytest
import torch

from p2pfl.courses.gradtrack import GRADTRACK, GradtrackSettings, Tracked
from p2pfl.courses.parts import Parts
from p2pfl.errors import ConfigError
from p2pfl.topology.families import build
from p2pfl.topology.mixing import mixing_matrix
from tests.courses.kit import Played, first_models, last_models, local_training


def tracked(topology, **more):
    return Played(GRADTRACK, GradtrackSettings(**{"rounds": 5, "evaluators": 0} | more), topology)


def by_the_paper(played):
    """x <- W (x + s), s <- W s + u(next) - u, from s = u: s is -lr times the estimate of the mean of all gradients."""
    x, tracker, before = first_models(played), 0, 0
    for number in range(played.settings.rounds):
        w = mixing_matrix(played.topology.at(number)).astype(np.float32)
        u = local_training(played, x, number) - x
        s = tracker + u - before
        np.testing.assert_allclose(s.mean(0), u.mean(0), atol=1e-5)
        x, tracker, before = w @ (x + s), w @ s, u
    return x


@pytest.mark.parametrize("topology", [build("ring", 5), build("star", 4), build("random-matching", 4)], ids=repr)
def test_it_is_the_recursion_of_the_paper(topology):
    played = tracked(topology).play()
    np.testing.assert_allclose(last_models(played), by_the_paper(played), atol=3e-5)


def test_tracking_begins_anew_every_so_many_rounds():
    """In every round: D-PSGD."""
    played = tracked(build("ring", 5), restart_every=1).play()
    x, w = first_models(played), mixing_matrix(played.topology).astype(np.float32)
    for number in range(5):
        x = w @ local_training(played, x, number)
    np.testing.assert_allclose(last_models(played), x, atol=2e-5)


def test_it_remembers_what_it_tracks_and_forgets_it_with_a_foreign_model():
    model = tracked(build("ring", 4)).model
    zero = torch.zeros_like(model.initial)
    parts = Parts(model, step=len(zero))
    steps, again = Tracked(parts), Tracked(parts)
    assert not steps.state()
    mixed = parts.join(params=zero + 4, step=zero + 3)
    assert steps.take(zero, zero + 1, mixed, {}).equal(zero + 4)
    again.resume({"params": zero, "round": 3, **steps.state()})
    given = parts.split(again.give(zero, zero + 5))
    assert given["params"].equal(zero + 7) and given["step"].equal(zero + 7), "c = 3 - 1, u = 5"
    again.restart()
    assert parts.split(again.give(zero, zero + 5))["step"].equal(zero + 5)


def test_twice_as_much_is_sent_as_a_model_is_long():
    played = tracked(build("ring", 4), rounds=50).play()
    bare = 50 * 4 * 2 * 2 * played.model.layout.numel * 4
    assert bare < sum(each.node.statistics().bytes_sent for each in played.world.seats.values()) < 1.2 * bare


def test_a_negative_number_of_rounds_is_refused():
    with pytest.raises(ConfigError, match=r"^course\.restart_every is -1"):
        GradtrackSettings(restart_every=-1)
