"""How a node comes to a course and a seat, without torch. What hosts make of it is in test_enrolment.py."""

from __future__ import annotations

import asyncio

import orjson
import pytest

from p2pfl.app.config import course_hash, from_mapping, to_mapping
from p2pfl.app.joining import agreed_hash, fetch_course, take_seat
from p2pfl.app.registrar import Courier, CourseText, Join, Registrar, Seated
from p2pfl.errors import ConfigError
from p2pfl.link.memory import MemoryNetwork
from p2pfl.node.peer import Peer
from tests.node.kit import QUIET, make

LAYOUT = (("weight", (2, 3), (3, 1)), ("bias", (2,), (1,)))


@pytest.mark.parametrize("source", ["digits", "./mine.csv", "/data/{seat}.npz"])
def test_the_hash_can_be_found_from_the_text_that_travels(source: str) -> None:
    tables = {"course": {"name": "fedopt"}, "train": {"lr": 0.1}, "data": {"source": source}}
    config = from_mapping(tables | {"network": {"latency_ms": 5}})
    assert agreed_hash(orjson.loads(orjson.dumps(to_mapping(config)))) == course_hash(config)
    assert course_hash(config) == course_hash(from_mapping(tables))
    assert course_hash(config) != course_hash(from_mapping(tables | {"train": {"lr": 0.2}}))


async def test_course_and_seat_come_from_who_has_them() -> None:
    network, lines = MemoryNetwork(), list[str]()
    course = CourseText("{}", "right", "hub", "run", LAYOUT)
    async with (
        make(network, "hub", Courier(course), Registrar("right", 2, 0, {}), settings=QUIET) as hub,
        make(network, "idle", peers=["hub"], settings=QUIET),
        make(network, "a", peers=["idle", "hub"], settings=QUIET) as node,
    ):
        await hub.members.announce(seat=0)
        assert await fetch_course(node, lines.append) == course
        assert await take_seat(node, course.registrar, Join("right", "a", None)) == 1
        with pytest.raises(ConfigError, match="leave --course out"):
            await take_seat(node, course.registrar, Join("wrong", "a", None))
    assert all("does not give the course" in line for line in lines)


@pytest.mark.parametrize("killed", ["before it gives the seat", "once it has given it"])
async def test_who_gives_the_seats_may_be_lost_meanwhile(killed: str) -> None:
    network, registrar = MemoryNetwork(), Registrar("right", 2, 0, {})

    class Dying:
        """The first time the link is cut instead of an answer; then it gives no seats yet."""

        times = 0

        @Join.handler
        async def join(self, ask: Join, peer: Peer) -> Seated:
            self.times += 1
            if self.times > 1:
                return await registrar.join(ask, peer)
            if killed == "once it has given it":
                await registrar.join(ask, peer)
            network.cut("hub", "a")
            await asyncio.Event().wait()
            raise AssertionError

    async with make(network, "hub", Dying()) as hub, make(network, "a", peers=["hub"]) as node:
        await hub.members.announce(seat=0)
        assert await take_seat(node, "hub", Join("right", "a", None)) == 1
        assert hub.dispatch.failures == 0


async def test_who_gives_the_seats_may_not_be_ready_yet() -> None:
    network = MemoryNetwork()
    async with make(network, "hub") as hub, make(network, "a", peers=["hub"]) as node:
        hub.dispatch.expecting = True
        asking = asyncio.create_task(take_seat(node, "hub", Join("right", "a", None)))
        await asyncio.sleep(1)
        hub.add(Registrar("right", 2, 0, {}))
        await hub.members.announce(seat=0)
        assert await asking == 1
