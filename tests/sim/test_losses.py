import asyncio
import gc
import weakref
from statistics import fmean

import pytest

from p2pfl.link.memory import MemoryNetwork
from p2pfl.node.events import PeerJoined, PeerLost
from p2pfl.node.node import Node
from p2pfl.sim.loop import run_virtual
from p2pfl.sim.losses import Losses


class Ends:
    """A link's end that notes how it ended."""

    def __init__(self):
        self.errors = []

    def admit(self, head, sizes):
        raise AssertionError("there is nothing to admit")

    def packet_received(self, packet):
        pass

    def link_closed(self, error):
        self.errors.append((asyncio.get_running_loop().time(), type(error).__name__))


def ends(seed, links=400, mean=60.0, begin=0.0):
    """When each of many links broke, and what both ends were told."""

    async def run():
        memory = MemoryNetwork(opened=Losses(mean, seed))
        far, found = [], []
        await memory.transport("b").listen("b", far.append)
        for number in range(links):
            near = await memory.transport(f"a{number}").dial("b")
            found.append(Ends())
            near.start(found[-1])
        await asyncio.sleep(0)
        others = [Ends() for _ in far]
        for link, other in zip(far, others, strict=True):
            link.start(other)
        await asyncio.sleep(100 * mean)
        assert [end.errors for end in found] == [end.errors for end in others]
        return [error for end in found for error in end.errors]

    return run_virtual(run(), begin)


def test_links_last_for_exponential_times_and_both_ends_are_told():
    found = ends(seed=1)
    assert {what for _, what in found} == {"LinkTruncated"}
    assert len(found) == 400
    assert fmean(at for at, _ in found) == pytest.approx(60, rel=0.15)
    assert sum(at > 60 for at, _ in found) / 400 == pytest.approx(0.368, abs=0.07)


def test_the_seed_rules_when():
    assert ends(1, 20) == ends(1, 20) != ends(2, 20)


def test_a_world_that_begins_later_has_other_losses():
    later = [at - 1000 for at, _ in ends(1, 20, begin=1000.0)]
    assert min(later) > 0
    assert later != pytest.approx([at for at, _ in ends(1, 20)])


async def test_nodes_redial_by_themselves():
    memory, seen = MemoryNetwork(opened=Losses(60.0, 0)), []

    class Sees:
        def push(self, event):
            if isinstance(event, PeerJoined | PeerLost):
                seen.append(type(event))

        def finish(self):
            pass

    async with (
        Node(transport=memory.transport("a"), listen="a") as a,
        Node(transport=memory.transport("b"), peers=["a"]),
    ):
        a.observe(Sees())
        await asyncio.sleep(3600)
        lost, joined = seen.count(PeerLost), seen.count(PeerJoined)
    assert lost > 20 and joined in (lost, lost + 1)


def test_links_that_have_ended_are_not_kept_until_they_would_have_broken():
    async def run():
        memory = MemoryNetwork(opened=Losses(3600.0, 1))
        await memory.transport("b").listen("b", lambda link: link.start(Ends()))
        near = await memory.transport("a").dial("b")
        near.start(Ends())
        await near.close()
        there = weakref.ref(near)
        del near
        await asyncio.sleep(1)
        gc.collect()
        return there()

    assert run_virtual(run()) is None
