"""The role that compares what everybody has stated: with nodes around it, on a network without delay."""

import asyncio
from contextlib import AsyncExitStack, asynccontextmanager
from random import Random

import numpy as np
import pytest

from p2pfl.courses.equivocation import Proof, Statement, model_digest
from p2pfl.courses.watch import _LARGE, _MOST_STATEMENTS, Convict, Equivocated, Stated, Watch, Withheld
from p2pfl.crypto.identity import Identity
from p2pfl.crypto.signing import IdentitySigner
from p2pfl.errors import ConfigError, RemoteProtocolError
from p2pfl.journal.journal import Journal
from p2pfl.link.memory import MemoryNetwork
from p2pfl.node.events import PeerMisbehaved
from p2pfl.node.node import Node
from p2pfl.sim.disk import SimulatedDisk
from p2pfl.sim.signer import SimulatedSigner
from p2pfl.wire.tensor import Tensors, TensorSpec
from tests.node.kit import Log, make, steps, until

MODELS = [model_digest(bytes([number])) for number in range(3)]


def id_of(seat):
    return f"seat{seat:07d}"


def tensors(*numbers):
    vector = np.array(numbers, np.float32)
    return Tensors([TensorSpec("params", "f32", vector.shape)], [memoryview(vector).cast("B")])


def stated(seat, round=0, model=0, run=""):
    return Statement.signed(SimulatedSigner(id_of(seat)), run, round, seat, MODELS[model])


def digest_of(params):
    return model_digest(params["params"])


class Ring:
    """Nodes in a ring, or in a row of two, each with a watch and a log."""

    def __init__(self, n):
        self.network = MemoryNetwork()
        self.neighbors = [sorted({(seat - 1) % n, (seat + 1) % n}) for seat in range(n)]
        self.watches = [Watch(seat, neighbors) for seat, neighbors in enumerate(self.neighbors)]
        self.nodes = [
            Node(
                watch,
                transport=self.network.transport(id_of(seat), signer=SimulatedSigner(id_of(seat))),
                listen=id_of(seat),
                peers=[id_of(other) for other in self.neighbors[seat] if other < seat],
                seat=seat,
            )
            for seat, watch in enumerate(self.watches)
        ]
        self.logs = [Log(node) for node in self.nodes]

    async def cut(self, seat, other):
        """Break the link, and wait until it is back."""
        self.network.cut(id_of(seat), id_of(other))
        await until(lambda: not self.peer(seat, other).connected)
        await until(lambda: self.peer(seat, other).connected)

    def peer(self, seat, other):
        return self.nodes[seat].peer(id_of(other))

    def convicted(self):
        return [event.peer for log in self.logs for event in log.of(Equivocated)]

    async def check(self, seat, other, params, signature, round=0):
        await self.watches[seat].check(self.peer(seat, other), round, params, signature)


@asynccontextmanager
async def ring(n):
    found = Ring(n)
    async with AsyncExitStack() as stack:
        for node in found.nodes:
            await stack.enter_async_context(node)
        await until(
            lambda: all(len(node.peers) == len(its) for node, its in zip(found.nodes, found.neighbors, strict=True))
        )
        await until(lambda: all(len(node.members) == n for node in found.nodes))
        yield found


async def test_a_model_is_taken_if_its_sender_has_signed_just_this_one():
    async with ring(2) as nodes:
        params = tensors(1, 2)
        signature = await nodes.watches[0].sign(nodes.nodes[0], 0, params)
        assert Statement("", 0, 0, id_of(0), digest_of(params), signature).is_signed(SimulatedSigner(id_of(1)).verifies)
        await nodes.check(1, 0, params, signature)
        await nodes.check(1, 0, tensors(1, 2), signature)  # told again over another link
        for wrong in ((tensors(1, 3), signature, 0), (params, signature, 1), (params, "0" * 32, 0), (params, "", 0)):
            with pytest.raises(RemoteProtocolError, match="seat 0 is to have stated is not signed"):
                await nodes.check(1, 0, *wrong)
        assert not nodes.convicted()


async def test_two_models_to_two_neighbours_are_found_by_whoever_hears_of_both_and_told_to_all():
    async with ring(7) as nodes:
        for seat, model in ((1, 0), (3, 1)):  # seat 2 gives different models to its neighbours
            nodes.watches[seat].stated(Stated([stated(2, 0, model)]), nodes.peer(seat, 2))
        await until(lambda: len(nodes.convicted()) == 6)
        assert nodes.convicted() == [id_of(2)] * 6
        assert [list(watch.convicts) for watch in nodes.watches] == [[2], [2], [], [2], [2], [2], [2]]
        await steps()
        for seat in (1, 3):
            assert not nodes.peer(seat, 2).connected
            assert nodes.peer(seat, 2).quarantine_seconds > 86_000
            misbehaved = nodes.logs[seat].of(PeerMisbehaved)
            assert [(event.peer, event.reason) for event in misbehaved] == [
                (id_of(2), "it has given two models in round 1")
            ]


async def test_two_models_to_one_neighbour_are_found_at_once():
    async with ring(2) as nodes:
        models = tensors(1), tensors(2)
        signer = SimulatedSigner(id_of(0))
        signatures = [Statement.signed(signer, "", 0, 0, digest_of(model)).signature for model in models]
        await nodes.check(1, 0, models[0], signatures[0])
        assert not nodes.watches[1].convicts
        await nodes.check(1, 0, models[1], signatures[1])
        assert list(nodes.watches[1].convicts) == [0], "none of them counts any more"
        (event,) = nodes.logs[1].of(Equivocated)
        assert str(event) == "seat000000 has given two models in round 1: it is banned"


async def test_what_is_new_goes_on_and_what_is_known_does_not():
    async with ring(6) as nodes:
        before = [node.statistics().messages_sent for node in nodes.nodes]
        nodes.watches[1].stated(Stated([stated(0)]), nodes.peer(1, 0))
        await until(lambda: nodes.watches[5]._witness)
        await steps()
        told = [node.statistics().messages_sent for node in nodes.nodes]
        assert [after > once for once, after in zip(before, told, strict=True)] == [False, *[True] * 4, False]
        for seat, source in ((1, 0), (2, 1), (3, 2), (5, 4)):
            nodes.watches[seat].stated(Stated([stated(0)]), nodes.peer(seat, source))
        await steps()
        assert [node.statistics().messages_sent for node in nodes.nodes] == told


@pytest.mark.parametrize("wrong", [stated(2, run="walk"), Statement("", 0, 2, id_of(2), MODELS[0], "")])
async def test_who_passes_on_what_is_not_signed_is_to_blame(wrong):
    async with ring(3) as nodes:
        await nodes.peer(0, 1).tell(Stated([wrong]))
        await nodes.peer(0, 1).tell(Convict(Proof(wrong, stated(2, 0, 1))))
        await steps()
        assert [event.peer for event in nodes.logs[1].of(PeerMisbehaved)] == [id_of(0)] * 2
        assert not nodes.convicted()
        assert nodes.peer(1, 2).connected


async def test_only_neighbours_are_listened_to():
    async with ring(4) as nodes:
        for call, message in (
            (nodes.watches[2].stated, Stated([stated(1)])),
            (nodes.watches[2].convict, Convict(Proof(stated(1), stated(1, 0, 1)))),
        ):
            with pytest.raises(RemoteProtocolError, match="has no say here"):
                call(message, nodes.peer(2, 0))


async def test_over_a_new_link_everything_is_told_again_in_messages_of_limited_size():
    async with ring(2) as nodes:
        many = [stated(0, round) for round in range(40)] + [stated(1, round) for round in range(40)]
        for node, watch in zip(nodes.nodes, nodes.watches, strict=True):
            witness = watch._witness_of(node)
            for statement in many if watch is nodes.watches[0] else ():
                witness.note(statement)
        witness.note(stated(1, 50))
        await nodes.cut(0, 1)
        nodes.watches[0]._witness.note(stated(0, 42))
        nodes.watches[0]._tell(nodes.nodes[0], 1, stated(0, 42))
        await steps()
        assert {*many, stated(0, 42), stated(1, 50)} == set(witness.known())
    with pytest.raises(ValueError, match="over the limit"):
        Stated([stated(0)] * (_MOST_STATEMENTS + 1))


async def test_a_neighbour_that_is_restarted_hears_of_the_convicts_again():
    async with ring(3) as nodes:
        nodes.watches[0].convict(Convict(Proof(stated(2), stated(2, 0, 1))), nodes.peer(0, 1))
        nodes.watches[1]._witness = None  # as it is after a restart
        await nodes.cut(0, 1)
        assert not nodes.watches[1].convicts
        witness = nodes.watches[0]._witness
        witness.note(stated(0))
        nodes.watches[0]._tell(nodes.nodes[0], 1, stated(0))
        await until(lambda: list(nodes.watches[1].convicts) == [2])


async def test_a_large_model_is_hashed_while_the_loop_goes_on():
    async with ring(2) as nodes:
        params = tensors(*np.zeros(_LARGE // 4))
        signing = asyncio.create_task(nodes.watches[0].sign(nodes.nodes[0], 0, params))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert not signing.done()
        await nodes.check(1, 0, params, await signing)


async def test_keys_sign_as_simulated_nodes_do():
    network, watches = MemoryNetwork(), (Watch(0, [1]), Watch(1, [0]))
    near, far = (IdentitySigner(Identity.generate()) for _ in range(2))
    async with (
        Node(watches[0], transport=network.transport(near.peer_id, signer=near), listen="near", seat=0) as a,
        Node(watches[1], transport=network.transport(far.peer_id, signer=far), peers=["near"], seat=1) as b,
    ):
        await until(lambda: b.at(0))
        signature = await watches[0].sign(a, 0, tensors(1))
        await watches[1].check(b.at(0), 0, tensors(1), signature)
        with pytest.raises(RemoteProtocolError, match="not signed"):
            await watches[1].check(b.at(0), 0, tensors(2), signature)
        second = Statement.signed(near, "", 0, 0, digest_of(tensors(2)))
        assert not watches[1].convicts
        await watches[1].check(b.at(0), 0, tensors(2), second.signature)
        assert list(watches[1].convicts) == [0]
        assert b.peer(near.peer_id).quarantine_seconds


async def test_a_transport_that_cannot_sign_is_refused():
    async with make(MemoryNetwork(), "a") as node:
        with pytest.raises(ConfigError, match=r"course\.signed is true, and .* cannot sign"):
            await Watch(0, [1]).run(node)


# -- restarts ----------------------------------------------------------------------------------------------------------


def lives(disk):
    """Watches of one node, one after the other."""
    while True:
        yield Watch(0, [1], Journal(disk, "run"))


@pytest.fixture
def disk():
    return SimulatedDisk(Random(0), 0.0)


async def test_no_life_of_a_node_signs_what_another_one_has_contradicted(disk):
    async with ring(2) as nodes:
        node, life = nodes.nodes[0], lives(disk)
        first = await next(life).sign(node, 3, tensors(1))
        watch = next(life)
        assert await watch.sign(node, 3, tensors(1)) == first
        assert await watch.sign(node, 3, tensors(2)) is None
        assert await watch.sign(node, 2, tensors(1)) is None
        assert await watch.sign(node, 4, tensors(2))
        withheld = nodes.logs[0].of(Withheld)
        assert [event.round for event in withheld] == [4, 3]
        assert str(withheld[0]).startswith("WARNING: round 4 goes on without our model: another one of this round")


async def test_a_pledge_is_on_disk_before_anybody_gets_the_signature(disk):
    disk.sync_seconds = 1.0
    async with ring(2) as nodes:
        signing = asyncio.create_task(Watch(0, [1], Journal(disk, "run")).sign(nodes.nodes[0], 3, tensors(1)))
        await asyncio.sleep(0.9)
        assert not signing.done() and not list(disk.names())
        assert await signing and list(disk.names())


async def test_what_cannot_be_written_is_not_stated(disk):
    async with ring(2) as nodes:
        watch = Watch(0, [1], Journal(disk, "run"))
        disk.full = True
        assert await watch.sign(nodes.nodes[0], 3, tensors(1)) is None
        disk.full = False
        assert await watch.sign(nodes.nodes[0], 3, tensors(2)), "nobody has got the first"
        assert [event.reason for event in nodes.logs[0].of(Withheld)] == [
            "kept-pledge.safetensors cannot be written: the disk is full"
        ]


async def test_who_cannot_read_its_pledge_states_nothing_in_this_run_any_more(disk):
    async with ring(2) as nodes:
        await Watch(0, [1], Journal(disk, "run")).sign(nodes.nodes[0], 3, tensors(1))
        disk.rot("kept-pledge.safetensors")
        assert await Watch(0, [1], Journal(disk, "run")).sign(nodes.nodes[0], 9, tensors(1)) is None
        (event,) = nodes.logs[0].of(Withheld)
        assert event.reason == "the journal cannot tell what was stated before the restart"
