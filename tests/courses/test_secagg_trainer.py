"""A client that is asked by a coordinator what it must not tell, twice, or after a crash."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from random import Random
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from p2pfl.app.build import prepare
from p2pfl.app.config import from_mapping
from p2pfl.courses.course import Place
from p2pfl.courses.fedavg import FEDAVG, FedAvgSettings
from p2pfl.courses.messages import Evaluate, Train
from p2pfl.courses.rules import averaging
from p2pfl.courses.secagg import (
    CONSISTENT,
    AggregationLeft,
    Confirm,
    Enlist,
    Mask,
    Reveal,
    SecAggSpec,
    Secrecy,
    Share,
    digest,
)  # fmt: skip
from p2pfl.courses.secagg_trainer import SecretTrainer
from p2pfl.errors import AggregationAborted, JournalError, RemoteProtocolError
from p2pfl.journal.journal import Journal
from p2pfl.learn.params import model_hash
from p2pfl.link.memory import MemoryNetwork
from p2pfl.privacy.secagg import Advert, Dealt, Revealed, Session
from p2pfl.privacy.secagg_client import Floors
from p2pfl.privacy.secagg_server import Aggregator
from p2pfl.sim.disk import SimulatedDisk
from p2pfl.sim.signer import SimulatedSigner
from p2pfl.topology.families import build
from tests.courses.kit import Played

N = 6  # clients


class Table:
    """A coordinator's hand and its clients, with nothing between."""

    def __init__(self, floors: Floors | None = None, run: str = "run") -> None:
        settings = FedAvgSettings(privacy=CONSISTENT, secagg=SecAggSpec(most_examples=50))
        self.played = Played(FEDAVG, settings, build("star", N + 1))
        self.floors = floors or Floors()
        self.run = run
        self.disks = {seat: SimulatedDisk(Random(seat)) for seat in range(1, N + 1)}
        self.told: dict[int, list[Any]] = {seat: [] for seat in self.disks}
        self.peers: dict[int, Any] = {}
        self.trainers: dict[int, SecretTrainer] = {}
        for seat in self.disks:
            self.restart(seat)
        self.params = self.played.model.initial

    def restart(self, seat: int) -> None:
        """A process begins, with what is on the disk."""
        journal = Journal(self.disks[seat], "run")
        learner = self.played.learner(seat)
        place = Place(seat, self.played.topology, learner, self.played.settings, journal=journal)
        self.secrecy = Secrecy.of(place, averaging(learner))
        self.trainers[seat] = SecretTrainer(learner, 0, journal, self.secrecy, self.floors)
        peer_id = f"seat{seat:07d}"
        lives = len(self.told[seat])
        transport = MemoryNetwork().transport(peer_id, signer=SimulatedSigner(peer_id, str(lives)))
        node = SimpleNamespace(emit=self.told[seat].append, transport=transport)
        self.peers[seat] = SimpleNamespace(seat=0, node=node, label="server", id=peer_id)

    @property
    def ids(self) -> dict[str, int]:
        return {peer.id: seat for seat, peer in self.peers.items()}

    async def ask(self, seat: int, request: Any) -> Any:
        names = {Enlist: "enlist", Share: "share", Mask: "mask", Confirm: "confirm", Reveal: "reveal", Train: "train",
                 Evaluate: "evaluate"}  # fmt: skip
        return await getattr(self.trainers[seat], names[type(request)])(request, self.peers[seat])

    def enlist(self, nonce: str, round: int = 0) -> Enlist:
        return Enlist(nonce, self.run, round, self.secrecy.rule.down.tensors(self.params))

    async def begin(self, nonce: str, round: int = 0) -> Aggregator:
        """A session up to its list."""
        session = Session(self.run, round, nonce, model_hash(self.params), self.secrecy.terms)
        verifies = SimulatedSigner("seat0000000").verifies
        aggregator = Aggregator(session, self.secrecy.rule.up.numel, verifies)
        for seat, peer in self.peers.items():
            keys = await self.ask(seat, self.enlist(nonce, round))
            aggregator.enlist(peer.id, Advert(peer.id, keys.keys, keys.signature))
        self.adverts = [(each.peer, each.keys, each.signature) for each in aggregator.close_list()]
        for seat, peer in self.peers.items():
            shares = await self.ask(seat, Share(nonce, self.adverts))
            aggregator.deal(peer.id, Dealt(shares.commitment, shares.sealed, shares.signature))
        self.sharers = aggregator.close_shares()
        return aggregator

    def mask(self, aggregator: Aggregator, seat: int) -> Mask:
        return Mask(aggregator.session.nonce, self.sharers, aggregator.sealed_for(self.peers[seat].id))

    async def to_reveal(self, nonce: str = "first") -> tuple[Aggregator, Callable[[int], Reveal]]:
        """A session up to the reveal, and what each is asked then."""
        aggregator = await self.begin(nonce)
        for seat, peer in self.peers.items():
            masked = await self.ask(seat, self.mask(aggregator, seat))
            words = self.secrecy.words(masked.words)
            aggregator.add(peer.id, words, await digest(words), masked.signature)
        survivors = aggregator.close_sum()
        for seat, peer in self.peers.items():
            aggregator.confirm(peer.id, (await self.ask(seat, Confirm(nonce, survivors))).signature)
        aggregator.close_confirmations()
        return aggregator, lambda seat: Reveal(nonce, survivors, aggregator.confirmations(self.peers[seat].id))

    def alarms(self, seat: int) -> list[str]:
        return [event.reason for event in self.told[seat] if isinstance(event, AggregationLeft)]


async def test_updates_and_scores_in_the_clear_are_refused_and_told() -> None:
    table = Table()
    params = table.secrecy.rule.down.tensors(table.params)
    for ask, what in ((Train(0, params), "update"), (Evaluate(0, params, each=False), "score")):
        with pytest.raises(AggregationAborted, match=r"course.privacy forbids it"):
            await table.ask(1, ask)
        assert table.alarms(1)[-1] == f"we were asked for our {what} in the clear"
    assert "WARNING: the secure aggregation of round 1 is left" in str(table.told[1][0])
    stranger = SimpleNamespace(seat=2, node=table.peers[1].node, label="other")
    with pytest.raises(RemoteProtocolError, match="has no say here"):
        await table.trainers[1].train(Train(0, params), stranger)


async def test_every_answer_is_the_same_however_often_it_is_asked_for() -> None:
    """An answer that was lost on its way is asked for again; another one would tell something."""
    table = Table()
    aggregator, reveal = await table.to_reveal()
    again = await table.ask(1, table.enlist("first"))
    assert again.keys == aggregator.roster[table.peers[1].id].keys
    assert await table.ask(1, reveal(1)) == await table.ask(1, reveal(1))
    table = Table()
    aggregator = await table.begin("first")
    ask = table.mask(aggregator, 1)
    one, other = await table.ask(1, ask), await table.ask(1, ask)
    assert bytes(one.words["words"]) == bytes(other.words["words"]) and one.signature == other.signature
    assert not table.alarms(1)


async def test_an_update_is_given_to_one_session_only() -> None:
    """Two sums over sets that differ in one client tell its update: who has given it, and is asked anew, refuses."""
    table = Table()
    aggregator = await table.begin("first")
    await table.ask(1, table.mask(aggregator, 1))
    with pytest.raises(AggregationAborted, match="this update was given to a session before"):
        await table.ask(1, table.enlist("second"))
    assert table.alarms(1) == ["this update was given to a session before: it is not given to another"]
    await table.ask(2, table.enlist("second"))  # who has not given it yet may
    table.restart(1)
    with pytest.raises(AggregationAborted, match="this update was given to a session before"):
        await table.ask(1, table.enlist("third"))
    await table.ask(1, table.enlist("fourth", round=1))  # what is trained anew is another


async def test_a_new_session_is_the_end_of_the_one_before() -> None:
    table = Table()
    aggregator = await table.begin("first")
    await table.ask(1, table.enlist("second"))
    with pytest.raises(AggregationAborted, match="not the session that we take part in"):
        await table.ask(1, table.mask(aggregator, 1))


async def test_what_is_revealed_is_on_the_disk_before_it_leaves() -> None:
    """F5: the process dies between the two, and never reveals for this session, nor for anybody else in it."""
    table = Table()
    aggregator, reveal = await table.to_reveal()
    trainer, written = table.trainers[1], asyncio.Event()
    keep = trainer._journal.keep

    async def stuck(name: str, state: Any) -> None:
        await keep(name, state)
        written.set()
        await asyncio.Event().wait()  # and the process is killed here

    trainer._journal.keep = stuck
    asking = asyncio.create_task(table.ask(1, reveal(1)))
    await written.wait()
    asking.cancel()
    await asyncio.wait([asking])
    kept = Journal(table.disks[1], "run").kept("secagg")
    assert kept["revealed"] and kept["given"]
    table.restart(1)
    assert table.trainers[1]._revealed == kept["revealed"]
    with pytest.raises(AggregationAborted, match="not the session that we take part in"):
        await table.ask(1, reveal(1))
    for seat in range(2, N + 1):  # the others are enough
        seeds = await table.ask(seat, reveal(seat))
        aggregator.reveal(table.peers[seat].id, Revealed(seeds.own, seeds.mask, seeds.signature))
    assert len(aggregator.unmask()) == table.secrecy.size


async def test_what_cannot_be_written_down_does_not_leave() -> None:
    table = Table()
    aggregator = await table.begin("first")
    table.disks[1].full = True
    with pytest.raises(AggregationAborted, match="cannot be written down"):
        await table.ask(1, table.mask(aggregator, 1))
    table = Table()
    _, reveal = await table.to_reveal()
    table.disks[1].full = True
    with pytest.raises(AggregationAborted, match="cannot be written down"):
        await table.ask(1, reveal(1))
    with pytest.raises(AggregationAborted, match="not the session"):  # even if there is room again
        await table.ask(1, reveal(1))


async def test_a_memory_that_has_rotted_is_not_gone_on_without() -> None:
    table = Table()
    aggregator = await table.begin("first")
    await table.ask(1, table.mask(aggregator, 1))
    table.disks[1].rot("kept-secagg.safetensors")
    with pytest.raises(JournalError):
        table.restart(1)


async def test_a_second_reveal_for_another_set_is_an_alarm() -> None:
    table = Table()
    _, reveal = await table.to_reveal()
    await table.ask(1, reveal(1))
    with pytest.raises(AggregationAborted, match="a second, different question"):
        await table.ask(1, replace(reveal(1), survivors=[0, 1, 2, 3, 4]))
    assert len(table.alarms(1)) == 1
    with pytest.raises(AggregationAborted, match="not the session"):
        await table.ask(1, reveal(1))


async def test_what_a_client_asks_of_sessions_counts() -> None:
    table = Table(Floors(sessions_per_hour=2))
    for nonce in ("first", "second"):
        await table.ask(1, table.enlist(nonce))
    with pytest.raises(AggregationAborted, match="2 sessions were begun within an hour"):
        await table.ask(1, table.enlist("third"))
    await asyncio.sleep(3601)
    await table.ask(1, table.enlist("fourth"))
    table = Table(Floors(min_cohort=7))
    with pytest.raises(AggregationAborted, match="6 clients are on the list, and we ask for 7"):
        await table.begin("first")


async def test_who_its_transport_does_not_admit_is_no_neighbour() -> None:
    table = Table()
    table.peers[1].node.transport.admits = lambda peer: peer != "seat0000004"
    with pytest.raises(AggregationAborted, match="seat0000004 is on the list of clients, and is not admitted here"):
        await table.begin("first")


async def test_a_session_of_another_run_or_another_model() -> None:
    with pytest.raises(AggregationAborted, match="the session is of another run"):
        await Table(run="other").begin("first")
    table = Table()
    nonce, session = "first", None
    for seat in table.peers:
        table.params = torch.zeros_like(table.params) if seat == 3 else table.played.model.initial
        keys = await table.ask(seat, table.enlist(nonce))
        if seat == 3:
            forged = keys
    session = Session("run", 0, nonce, model_hash(table.played.model.initial), table.secrecy.terms)
    aggregator = Aggregator(session, table.secrecy.rule.up.numel, SimulatedSigner("seat0000000").verifies)
    with pytest.raises(AggregationAborted, match="has not signed these keys for this session, model and terms"):
        aggregator.enlist("seat0000003", Advert("seat0000003", forged.keys, forged.signature))


async def test_secrets_are_gone_with_the_course() -> None:
    table = Table()
    await table.begin("first")
    trainer = table.trainers[1]
    client = trainer._pledge.client
    trainer._leave()
    assert not any(map(any, (client._share_key, client._mask_key, client._mask_seed, client._own_seed)))


def test_nobody_without_the_protocol_can_take_its_place() -> None:
    """A client that needs no torch would answer with its update."""
    table = Table()
    assert not any(trainer.only_trains for trainer in table.trainers.values())
    setup = prepare(from_mapping({"course": {"name": "fedavg", "privacy": CONSISTENT}, "data": {"subsample": 0.1}}))
    assert setup.plain_layout == ()
    assert prepare(from_mapping({"course": {"name": "fedavg"}, "data": {"subsample": 0.1}})).plain_layout
