import pytest
import torch

from p2pfl.courses.batchwise import by_batch, require_plain, steps_on_a_batch
from p2pfl.courses.fedavg import FEDAVG, FedAvgSettings
from p2pfl.courses.learner import seed_of
from p2pfl.errors import ConfigError
from p2pfl.learn.batches import batches
from p2pfl.learn.specs import PartitionSpec, TrainSpec
from tests.courses.by_hand import small


@pytest.mark.parametrize(
    "train",
    [TrainSpec(epochs=2, batch_size=7), TrainSpec(steps=9, batch_size=7), TrainSpec(batch_size=7, drop_last=True)],
    ids=["epochs", "steps", "drop_last"],
)
@pytest.mark.parametrize("shift", ["none", "noise"])
def test_the_batches_are_those_of_training(train, shift):
    split = PartitionSpec(shift=shift, shift_strength=0.5 if shift == "noise" else 0.0)
    learner = small(FEDAVG, FedAvgSettings(), train=train, split=split).learner(2)
    expected = list(batches(learner.shard, train, seed_of(learner.seed, "fit", 3, 2)))
    found = [batch.shard for batch in by_batch(learner, 3)]
    assert len(found) == len(expected)
    for shard, (x, y) in zip(found, expected, strict=True):
        of_shard = shard.dataset.batch(shard.indices)
        assert torch.equal(of_shard[0], x) and torch.equal(of_shard[1], y)


async def test_steps_on_a_batch_are_all_of_it():
    learner = small(FEDAVG, FedAvgSettings(), train=TrainSpec(lr=0.3, batch_size=7, drop_last=True)).learner(1)
    batch = next(by_batch(learner, 0))
    found = await batch.fit(learner.model.initial, 0, train=steps_on_a_batch(learner.train, 4))
    assert (found.steps, found.num_examples) == (4, 7)


def test_many_trainings_have_no_common_clock():
    with pytest.raises(ConfigError, match=r"train.within_seconds is set, and this course trains batch by batch"):
        steps_on_a_batch(TrainSpec(within_seconds=1.0), 2)


@pytest.mark.parametrize("train", [TrainSpec(momentum=0.9), TrainSpec(optimizer="Adam")])
def test_what_is_not_plain(train):
    require_plain(TrainSpec(), "apfl")
    with pytest.raises(ConfigError, match=r"course.name is apfl, which needs plain SGD"):
        require_plain(train, "apfl")
