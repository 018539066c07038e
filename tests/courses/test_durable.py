from random import Random

import pytest
import torch

from p2pfl.courses.durable import Durable, NotDurable, RoundCommitted
from p2pfl.journal.certificate import Certificate
from p2pfl.journal.journal import Journal
from p2pfl.sim.disk import SimulatedDisk

CERTIFICATE = Certificate("run", 0, 1, "hash", ())


class Told(list):
    """Stands in for a node that only emits."""

    emit = list.append


@pytest.fixture
def disk():
    return SimulatedDisk(Random(0), 0.0)


async def test_a_commit_is_written_and_then_told(disk):
    told, durable = Told(), Durable(Journal(disk, "run"))
    await durable.commit(told, 1, {"params": torch.ones(2)}, {"loss": 0.5}, CERTIFICATE)
    assert told == [RoundCommitted(1, CERTIFICATE)]
    found = Journal(disk, "run").last()
    assert (found.rounds, found.certificate, found.metrics) == (1, CERTIFICATE, {"loss": 0.5})
    assert str(told[0]) == "round 1 is committed: 0 updates"
    assert durable.run == "run"


async def test_a_full_disk_is_told_loudly_and_ends_nothing(disk):
    told, durable = Told(), Durable(Journal(disk, "run"))
    await durable.commit(told, 1, {"round": 1}, {})
    disk.full = True
    await durable.commit(told, 2, {"round": 2}, {})
    await durable.keep(told, "update", {"round": 2})
    assert [type(event) for event in told] == [RoundCommitted, NotDurable, NotDurable]
    assert str(told[1]).startswith("WARNING: round 2 would not survive a crash: ")
    assert "'update'" in str(told[2])
    assert Journal(disk, "run").last().rounds == 1
    disk.full = False
    await durable.commit(told, 3, {"round": 3}, {})
    assert Journal(disk, "run").last().rounds == 3


async def test_without_a_journal_nothing_is_written_or_told():
    told, durable = Told(), Durable(None)
    await durable.commit(told, 1, {}, {})
    await durable.keep(told, "update", {})
    assert not told
    assert durable.run == ""
