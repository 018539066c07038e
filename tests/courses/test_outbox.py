import asyncio
from dataclasses import replace
from random import Random

import pytest
import torch

from p2pfl.compute.inline import Inline
from p2pfl.courses.durable import Durable, NotDurable
from p2pfl.courses.fedavg import FEDAVG, FedAvgSettings
from p2pfl.courses.outbox import Outbox, score
from p2pfl.courses.rules import Training, averaging
from p2pfl.errors import ComputeError
from p2pfl.journal.journal import Journal
from p2pfl.learn.shift import Shift
from p2pfl.node.connection import LINK_LOST
from p2pfl.sim.disk import SimulatedDisk
from p2pfl.topology.families import build
from tests.courses.kit import Played
from tests.courses.test_durable import Told


class Slow:
    """A compute that takes a second, counts what it did, and can fail."""

    parallel = 1

    def __init__(self):
        self.done = self.cancelled = 0
        self.fails = False

    async def run(self, job):
        try:
            await asyncio.sleep(1)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if self.fails:
            raise ComputeError("out of memory")
        self.done += 1
        return await Inline().run(job)


class Desk:
    """An outbox with all that it works with."""

    def __init__(self):
        self.compute = Slow()
        self.learner = Played(FEDAVG, FedAvgSettings(), build("star", 3)).learner(1, self.compute)
        self.params = self.learner.model.initial
        self.disk = SimulatedDisk(Random(0))
        self.told = Told()
        self.open()

    def open(self):
        self.outbox = Outbox(self.learner, averaging(self.learner), Durable(Journal(self.disk, "run")))

    def ask(self, round=0, params=None):
        wanted = self.params if params is None else params
        return asyncio.create_task(self.outbox.update(self.told, round, self.learner.tensors(wanted)))

    def values(self, update):
        return self.learner.vector(update.params)


@pytest.fixture
def desk():
    return Desk()


async def test_an_update_is_trained_once_however_often_it_is_asked_for(desk):
    first, second = desk.ask(), desk.ask()
    one, two = await first, await second
    three = await desk.ask()
    assert desk.compute.done == 1
    assert one == two == three
    assert one.round == 0


async def test_it_is_there_after_a_restart_to_the_last_bit(desk):
    before = await desk.ask(4)
    desk.open()
    after = await desk.ask(4)
    assert desk.compute.done == 1
    assert (after.round, after.num_examples, after.loss) == (4, before.num_examples, before.loss)
    assert torch.equal(desk.values(after), desk.values(before))


@pytest.mark.parametrize("other", ["round", "model"])
async def test_what_was_not_asked_is_not_given(desk, other):
    await desk.ask(0)
    desk.open()
    await (desk.ask(1) if other == "round" else desk.ask(0, desk.params + 1))
    assert desk.compute.done == 2


async def test_training_goes_on_while_the_asker_is_cut_off(desk):
    ask = desk.ask()
    await asyncio.sleep(0.5)
    ask.cancel(LINK_LOST)
    await asyncio.sleep(0)
    assert ask.cancelled()
    again = desk.ask()
    await again
    assert (desk.compute.done, desk.compute.cancelled) == (1, 0)


async def test_an_asker_that_wants_no_answer_ends_it(desk):
    ask = desk.ask()
    await asyncio.sleep(0.5)
    ask.cancel()
    await asyncio.sleep(0.1)
    assert desk.compute.cancelled == 1
    await desk.ask()
    assert desk.compute.done == 1


async def test_the_next_round_ends_that_of_the_last(desk):
    first = desk.ask(0)
    await asyncio.sleep(0.5)
    await desk.ask(1)
    with pytest.raises(asyncio.CancelledError):
        await first
    assert (desk.compute.done, desk.compute.cancelled) == (1, 1)


async def test_what_failed_is_tried_again(desk):
    desk.compute.fails = True
    with pytest.raises(ComputeError):
        await desk.ask()
    desk.compute.fails = False
    assert (await desk.ask()).num_examples


async def test_a_disk_that_is_full_keeps_no_update_back(desk):
    desk.disk.full = True
    assert (await desk.ask()).num_examples
    assert [type(event) for event in desk.told] == [NotDurable]


async def test_a_crash_while_it_is_written_costs_the_training_and_nothing_else(desk):
    desk.disk.sync_seconds = 5
    ask = desk.ask()
    await asyncio.sleep(3)
    desk.disk.crash()
    await asyncio.wait([ask])
    desk.open()
    desk.disk.sync_seconds = 0
    await desk.ask()
    assert desk.compute.done == 2


async def test_a_node_that_stops_still_answers_who_has_asked(desk):
    ask = desk.ask()
    await asyncio.sleep(0.5)
    desk.outbox.close()
    assert (await ask).num_examples
    assert desk.compute.cancelled == 0


@pytest.mark.parametrize("why", [LINK_LOST, ""])
async def test_once_it_stops_nothing_is_left_behind(desk, why):
    ask = desk.ask()
    await asyncio.sleep(0.5)
    if why:
        ask.cancel(why)
        await asyncio.sleep(0)
        desk.outbox.close()
    else:
        desk.outbox.close()
        ask.cancel(LINK_LOST)
    await asyncio.sleep(0.1)
    assert desk.compute.cancelled == 1


async def test_a_client_scores_on_its_test_part_or_what_it_holds_out_or_all_as_they_are_in_that_round():
    learner = replace(Desk().learner, compute=Inline())
    first, second, third = (replace(learner.shard, indices=learner.shard.indices[:size]) for size in (3, 5, 7))
    served = learner.model.initial
    sizes = [
        (await score(replace(learner, shard=first, **held), Training(), served, 1)).rating.num_examples
        for held in ({}, {"validation": second}, {"validation": second, "own_test": third})
    ]
    assert sizes == [3, 5, 7]
    names = tuple((place + 1) % 10 for place in range(10))
    drifting = [replace(third, shift=Shift("none", 0.0, names=names, onset=onset)) for onset in (1, 2)]
    tested = [replace(learner, own_test=shard) for shard in (third, *drifting)]
    found = [(await score(each, Training(), served, 1)).rating.metrics["loss"] for each in tested]
    assert found[0] == found[2] != found[1], "the other names come with round 1, or 2"
