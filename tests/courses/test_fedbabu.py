import torch

from p2pfl.courses.fedbabu import FEDBABU, FedBabuSettings
from tests.courses.by_hand import descend, is_close, mask_of, small


def test_the_head_stays_until_the_whole_is_tuned():
    played = small(FEDBABU, FedBabuSettings(rounds=3, finetune_epochs=2)).play()
    model = played.model
    head, body, server = mask_of(model, "3"), mask_of(model, "1"), played.model.initial
    for _ in range(3):
        server = torch.stack([descend(model, server, shard, 2, body) for shard in played.shards.values()]).mean(0)
    assert torch.equal(played.params[0] * head, model.initial * head)
    assert is_close(played.params[0], server)
    for seat, shard in played.shards.items():
        assert is_close(played.params[seat], descend(model, server, shard, 2))


def test_the_head_does_not_travel():
    played = small(FEDBABU, FedBabuSettings(rounds=1)).play()
    (server,) = played.world.seats[0].roles
    assert server.rule.up.numel == server.rule.down.numel == int(mask_of(played.model, "1").sum())
