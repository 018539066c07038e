"""What a history records, and how it reads."""

from __future__ import annotations

import asyncio
from random import Random

import pytest
import torch

from p2pfl.errors import JournalError, PrivacySpent
from p2pfl.learn.params import as_buffer, model_hash
from p2pfl.link.memory import MemoryNetwork
from p2pfl.node.events import PeerLost, RoundEnded
from p2pfl.privacy.spent import Spent
from p2pfl.sim.disk import SimulatedDisk
from p2pfl.sim.history import NOBODY, Charged, Entry, History, Injected, Sent, WatchedDisk, WatchedLedger, Wrote
from p2pfl.sim.nemesis import Cut
from p2pfl.sim.process import Process
from p2pfl.wire.codec import encode, pack
from p2pfl.wire.message import Message
from p2pfl.wire.tensor import Tensors, TensorSpec

NUMBERS = 6
SCHEMA = (TensorSpec("params", "f32", (NUMBERS,)),)


class Model(Message):
    round: int
    params: Tensors


class Plain(Message):
    text: str


async def test_packets_are_recorded_with_the_models_in_them() -> None:
    history = History(2, NUMBERS)
    network = MemoryNetwork(watch=history.packet)
    await network.transport("seat0000001").listen("", lambda link: None)
    link = await network.transport("seat0000000").dial("seat0000001")
    vector = torch.arange(NUMBERS, dtype=torch.float32)
    model = encode(Model(2, Tensors(SCHEMA, (as_buffer(vector),))))
    await asyncio.sleep(3)
    for packet in (pack("tell", 7, model), pack("tell", 8, encode(Plain("hello"))), pack("ping", 1), pack("credit", 5)):
        link.send(packet)
    found = model_hash(vector)
    assert [(entry.seconds, entry.seat, sent) for entry, sent in history.of(Sent)] == [
        (3, 0, Sent("seat0000001", "tell", "Model", 7, 2, (found,))),
        (3, 0, Sent("seat0000001", "tell", "Plain", 8, None, ())),
    ]
    assert torch.equal(history.vectors[found], vector)
    assert history.largest == pack("tell", 7, model).size
    assert history.most_queued > history.largest
    assert [str(entry) for entry in history.entries] == [
        f"    3.000 s  seat   0  -> seat 1: tell 7 Model of round 3 with model {found[:8]}",
        "    3.000 s  seat   0  -> seat 1: tell 8 Plain",
    ]


async def test_a_killed_process_writes_no_more() -> None:
    history, disk = History(1, NUMBERS), SimulatedDisk(Random(0), sync_seconds=1.0)
    process = Process()
    watched = process.context.run(WatchedDisk, disk, 0, history)
    await watched.write("a", b"content")
    assert [(entry.seconds, wrote) for entry, wrote in history.of(Wrote)] == [
        (0, Wrote("a", synced=False)), (1, Wrote("a", synced=True)),
    ]  # fmt: skip
    assert watched.read("a") == b"content" and list(watched.names()) == ["a"]
    process.kill()
    with pytest.raises(JournalError, match="the process was killed"):
        await watched.write("b", b"content")
    assert not [wrote for _, wrote in history.of(Wrote) if wrote.name == "b"]
    await watched.delete("a")
    assert disk.read("a") is None
    assert repr(watched) == "<WatchedDisk of seat 0: <SimulatedDisk of 0 files>>"


async def test_errors_that_nobody_asks_for_are_recorded() -> None:
    history = History(1, NUMBERS)
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(history.unhandled)

    async def fail() -> None:
        raise LookupError("unheard")

    task = loop.create_task(fail())
    await asyncio.sleep(1)
    del task
    loop.call_exception_handler({"message": "something odd"})
    assert history.leftovers == [
        "Task exception was never retrieved: LookupError('unheard')",
        "something odd",
    ]


async def test_faults_are_nobodys_and_it_reads_well() -> None:
    history, cut = History(2, NUMBERS), Cut(1.0, 1.0, 0, 1)
    history.fault(cut, True)
    history.event(2.5, 1, PeerLost("seat0000000", "seat000000 ended the link"))
    history.event(2.5, 1, RoundEnded(1, 2))
    history.fault(cut, False)
    assert [entry.seat for entry, _ in history.of(Injected)] == [NOBODY, NOBODY]
    assert [str(entry) for entry in history.entries] == [
        "    0.000 s            FAULT: the links between seats 0 and 1 break",
        "    2.500 s  seat   1  seat 0 is gone: seat 0 ended the link",
        "    2.500 s  seat   1  round 1 ended with 2",
        "    0.000 s            over: the links between seats 0 and 1 break",
    ]
    assert len(history) == 4 and repr(history) == "<History of 2 seats, 4 entries>"


def test_around_the_culprits_is_what_may_tell_why() -> None:
    history = History(2, NUMBERS)
    culprit = Entry(1.0, 0, Wrote("a", synced=True))
    telling = [Entry(float(number), 0, RoundEnded(number, 1)) for number in range(5)]
    history.entries += [Entry(0.5, 0, Wrote("b", synced=True)), culprit, *telling]
    assert history.around([culprit]) == [culprit, *telling]
    assert history.around([culprit], most=2) == telling[-2:]
    assert str(culprit) == "    1.000 s  seat   0  a is there for good"
    assert "being written" in str(Wrote("a", synced=False))


async def test_a_ledger_tells_what_it_was_charged() -> None:
    history, cost = History(3, NUMBERS), Spent(0.25)
    ledger = WatchedLedger(2, history)
    for round in range(2):
        ledger.charge("run", round, cost, 9.0, 1e-5)
    with pytest.raises(PrivacySpent):
        ledger.charge("run", 2, cost, 3.0, 1e-5)
    once, twice = cost.epsilon(1e-5), (cost * 2).epsilon(1e-5)
    assert [entry.what for entry in history.entries] == [Charged(0, 0.0, once, 9.0), Charged(1, once, twice, 9.0)]
    assert str(history.entries[1]).endswith(f"seat   2  round 2 is paid for: epsilon {twice:.4g}")
