import pytest
import torch

from p2pfl.courses.fedrep import FEDREP, FedRepSettings
from p2pfl.errors import ConfigError
from tests.courses.by_hand import descend, is_close, mask_of, small

ROUNDS = 3


@pytest.mark.parametrize("head_epochs", [1, 4])
def test_the_head_is_trained_before_the_body_and_stays(head_epochs):
    played = small(FEDREP, FedRepSettings(rounds=ROUNDS, head_epochs=head_epochs)).play()
    model = played.model
    head, body = mask_of(model, "3"), mask_of(model, "1")
    server, heads = model.initial, dict.fromkeys(played.shards, model.initial)
    for _ in range(ROUNDS):
        trained = {}
        for seat, shard in played.shards.items():
            params = descend(model, head * heads[seat] + body * server, shard, head_epochs, head)
            trained[seat] = descend(model, params, shard, 2, body)
        heads = trained
        server = head * server + body * torch.stack(list(trained.values())).mean(0)
    assert is_close(played.params[0], server)
    for seat, params in heads.items():
        assert is_close(played.params[seat], head * params + body * server)


def test_settings():
    with pytest.raises(ConfigError, match=r"course.head_epochs is 0; it must be at least 1"):
        FedRepSettings(head_epochs=0)
    with pytest.raises(ConfigError, match=r"course.layers is 0"):
        FedRepSettings(layers=0)
