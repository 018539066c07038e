import pytest
import torch

from p2pfl.courses.perfedavg import PERFEDAVG, PerFedAvgSettings
from p2pfl.errors import ConfigError
from p2pfl.learn.specs import ModelSpec, TrainSpec
from tests.courses.by_hand import LR, gradient, is_close, small

INNER = 0.2


def curved(model, w, v, shard):
    """The Hessian of the mean loss times v, by torch."""
    x, y = shard.dataset.batch(shard.indices)

    def loss(flat):
        views = dict(zip((e.name for e in model.layout.entries), model.layout.views(flat), strict=True))
        return model.loss(torch.func.functional_call(model.module, views, x), y)

    return torch.autograd.functional.hvp(loss, w, v)[1]


SMOOTH = ModelSpec("logistic")


@pytest.mark.parametrize("delta", [0.0, 0.02])
def test_both_forms_are_those_of_the_paper(delta):
    """The Hessian-free form is compared with the Hessian itself."""
    settings = PerFedAvgSettings(rounds=2, inner_lr=INNER, delta=delta)
    played = small(PERFEDAVG, settings, model_spec=SMOOTH).play()
    model, server = played.model, played.model.initial
    for _ in range(2):
        clients = []
        for shard in played.shards.values():
            w = server
            for _ in range(2):
                v = gradient(model, w - INNER * gradient(model, w, shard), shard)
                w = w - LR * (v - INNER * curved(model, w, v, shard) if delta else v)
            clients.append(w)
        server = torch.stack(clients).mean(0)
    assert torch.allclose(played.params[0], server, atol=1e-5 if delta else 1e-6)
    for seat, shard in played.shards.items():
        found = played.params[0]
        assert is_close(played.params[seat], found - INNER * gradient(model, found, shard))


def test_the_hessian_makes_a_difference():
    first, free = (
        small(PERFEDAVG, PerFedAvgSettings(rounds=2, inner_lr=INNER, delta=delta)).play() for delta in (0.0, 0.02)
    )
    assert not torch.allclose(first.params[0], free.params[0], atol=1e-3)


def test_settings():
    with pytest.raises(ConfigError, match=r"course.inner_lr is 0; it must be above 0"):
        PerFedAvgSettings(inner_lr=0)
    with pytest.raises(ConfigError, match=r"course.delta is -1; it must not be negative"):
        PerFedAvgSettings(delta=-1)
    with pytest.raises(ConfigError, match="perfedavg, which needs plain SGD"):
        small(PERFEDAVG, PerFedAvgSettings(), train=TrainSpec(momentum=0.5)).play()
