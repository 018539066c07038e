from dataclasses import replace

import pytest
import torch

from p2pfl.courses.ifca import IFCA, Choosing, Chosen, Clustering, IfcaSettings, beginnings
from p2pfl.errors import ConfigError, RemoteProtocolError
from p2pfl.learn.evaluate import evaluate
from p2pfl.learn.specs import PartitionSpec
from tests.courses.by_hand import descend, is_close, served, small

CLUSTERS = 3


def nearest(played, models, shard):
    return min(range(len(models)), key=lambda which: evaluate(models[which], played.model, shard).loss)


@pytest.mark.parametrize("weights", ["examples", "equal"])
def test_it_is_the_algorithm_of_the_paper(weights):
    played = small(IFCA, IfcaSettings(rounds=3, clusters=CLUSTERS))
    played.settings = replace(played.settings, weights=weights)
    played.play()
    models = list(beginnings(played.learner(0), CLUSTERS))
    alone = 0
    for _ in range(3):
        groups = [[] for _ in models]
        for shard in played.shards.values():
            which = nearest(played, models, shard)
            weight = len(shard) if weights == "examples" else 1
            groups[which].append((weight, descend(played.model, models[which], shard)))
        alone += sum(not group for group in groups)
        models = [
            sum(n * w for n, w in group) / sum(n for n, _ in group) if group else model
            for group, model in zip(groups, models, strict=True)
        ]
    assert alone, "a cluster without an update was seen"
    (server,) = played.world.seats[0].roles
    assert is_close(server.state()["central.models"], torch.stack(models))
    for seat, shard in played.shards.items():
        assert is_close(played.params[seat], models[nearest(played, models, shard)])
    assert any(is_close(played.params[0], model) for model in models)


def test_an_update_is_one_model_on_the_way_and_all_in_the_mean():
    model = small(IFCA, IfcaSettings()).model
    up, n = Chosen(model, CLUSTERS), model.layout.numel
    sent = torch.cat((torch.ones(n), torch.tensor([0.0, 1.0, 0.0])))
    tensors = up.tensors(sent)
    assert torch.equal(up.packed(tensors), sent)
    found = up.vector(tensors)
    assert torch.equal(found[: CLUSTERS * n].view(CLUSTERS, n), torch.tensor([[0.0], [1.0], [0.0]]).expand(CLUSTERS, n))
    for lie in ([0.5, 0.5, 0.0], [0.0, 0.0, 0.0], [2.0, 0.0, 0.0], [1.0, 1.0, 0.0]):
        with pytest.raises(RemoteProtocolError, match="not of one cluster"):
            up.vector(up.tensors(torch.cat((torch.ones(n), torch.tensor(lie)))))


def test_a_cluster_without_an_update_keeps_its_model_and_all_survive():
    models = torch.arange(6.0).view(3, 2)
    half = Clustering(models)
    mean = torch.cat((torch.tensor([0.0, 0.0, 3.0, 6.0, 0.0, 0.0]), torch.tensor([0.0, 0.75, 0.0])))
    assert torch.equal(half.absorb(models[0], mean, 1.0, 0), torch.tensor([4.0, 8.0]))
    other = Clustering(models)
    other.resume(half.state())
    assert torch.equal(other.serve(models[0]), torch.tensor([0.0, 1.0, 4.0, 8.0, 4.0, 5.0]))


def test_with_one_cluster_it_is_federated_averaging():
    played = small(IFCA, IfcaSettings(rounds=2, clusters=1)).play()
    w = played.model.initial
    for _ in range(2):
        w = torch.stack([descend(played.model, w, shard) for shard in played.shards.values()]).mean(0)
    assert is_close(played.params[0], w)


def test_two_kinds_of_clients_find_two_models():
    settings = IfcaSettings(rounds=6)
    split = PartitionSpec("classes", classes_per_client=5)
    played = small(IFCA, settings, n=5, split=split).play()
    learner = played.learner(1)
    (server,) = played.world.seats[0].roles
    models = server.state()["central.models"]
    mine = served(Choosing(2), learner, models.flatten())
    assert evaluate(mine, played.model, learner.shard).loss == min(
        evaluate(model, played.model, learner.shard).loss for model in models
    )


def test_clusters_begin_apart_and_the_same_at_all_seats():
    played = small(IFCA, IfcaSettings())
    models = beginnings(played.learner(0), CLUSTERS)
    assert torch.equal(models, beginnings(played.learner(2), CLUSTERS))
    assert torch.equal(models[0], played.model.initial)
    assert len({tuple(model.tolist()) for model in models}) == CLUSTERS


def test_settings():
    with pytest.raises(ConfigError, match=r"course.clusters is 0; it must be at least 1"):
        IfcaSettings(clusters=0)
    with pytest.raises(ConfigError, match=r"course.keep is 'best', and ifca has many"):
        IfcaSettings(keep="best")
