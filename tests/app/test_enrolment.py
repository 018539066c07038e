"""How hosts come into a course, on virtual time. With real processes it is in tests/test_end_to_end.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from p2pfl.app.config import Config, course_hash, from_mapping, to_mapping
from p2pfl.app.console import Display
from p2pfl.app.enrolment import Enrolled, Enrolment, refuse_foreign_code
from p2pfl.app.node_options import LocalData, NodeOptions
from p2pfl.app.registrar import Join
from p2pfl.errors import ConfigError
from p2pfl.journal.journal import Commit
from p2pfl.link.memory import MemoryNetwork
from p2pfl.node.node import Node
from tests.node.kit import QUIET, make

CONFIG = from_mapping({"course": {"name": "fedavg"}, "topology": {"n": 3}, "data": {"subsample": 0.05}})


class Site:
    """Hosts in one process, each with a base of run folders."""

    def __init__(self, base: Path, config: Config[Any] = CONFIG) -> None:
        self.config = config
        self.network = MemoryNetwork()
        self.base = base
        self.lines: list[str] = []

    def node(self, name: str) -> Node:
        node = make(self.network, name, listen=name, peers=[] if name == "hub" else ["hub"], settings=QUIET)
        node.dispatch.expecting = True
        return node

    async def enrol(self, node: Node, **options: object) -> Enrolled:
        own = {"runs": self.base / node.id, "peers": () if node.id == "hub" else ("hub",), **options}
        display = Display(as_json=False, total=1)
        display.line = self.lines.append  # type: ignore[method-assign]  # what a person would read
        config = self.config if node.id == "hub" else None
        enrolled = await Enrolment(node, NodeOptions(**own), config, LocalData(), display).enrol()  # type: ignore[arg-type]  # by name
        node.add(enrolled.courier)
        await node.members.announce(seat=enrolled.mark.seat)
        return enrolled


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def end(*enrolled: Enrolled) -> None:
    """As the end of a process does it."""
    for each in enrolled:
        each.folder.__exit__(None, None, None)
        if each.setup.budgets is not None:
            each.setup.budgets.close()


async def test_all_who_join_play_the_same_run_in_seats_of_their_own(site: Site) -> None:
    async with site.node("hub") as hub, site.node("a") as a, site.node("b") as b:
        first = await site.enrol(hub)
        others = [await site.enrol(node) for node in (a, b)]
        assert {each.mark.run for each in (first, *others)} == {first.mark.run}
        assert [each.mark.seat for each in (first, *others)] == [0, 1, 2]
        assert first.mark.course == course_hash(CONFIG)
        end(first, *others)


async def test_who_was_killed_goes_on_with_its_run_in_its_seat_without_being_seated_anew(site: Site) -> None:
    async with site.node("hub") as hub:
        first = await site.enrol(hub)
        async with site.node("a") as a:
            before = await site.enrol(a)
            await before.journal.commit(Commit(4, {"params": torch.ones(2)}))
            end(before)
        async with site.node("a") as again:
            after = await site.enrol(again)
        assert (after.mark, after.folder.path) == (before.mark, before.folder.path)
        last = after.journal.last()
        assert last is not None
        assert last.rounds == 4
        assert any("going on with" in line and "after round 4" in line for line in site.lines)
        end(first, after)


async def test_a_first_node_that_was_killed_knows_run_and_seats(site: Site) -> None:
    async with site.node("hub") as hub, site.node("a") as a:
        before = await site.enrol(hub)
        joined = await site.enrol(a)
        end(before, joined)
    site.network = MemoryNetwork()
    async with site.node("hub") as hub, site.node("b") as b:
        after = await site.enrol(hub)
        assert after.mark.run == before.mark.run
        await b.linked()
        seated = await b.peers[0].ask(Join(course_hash(CONFIG), "b", None))
        assert seated.seat == 2, "seat 1 is kept for a"
        end(after)


async def test_fresh_begins_anew(site: Site) -> None:
    async with site.node("hub") as hub:
        end(before := await site.enrol(hub))
    async with site.node("hub") as hub:
        end(after := await site.enrol(hub, fresh=True))
    assert after.mark.run != before.mark.run
    assert after.folder.path != before.folder.path


async def test_a_run_that_ended_is_over(site: Site) -> None:
    async with site.node("hub") as hub:
        before = await site.enrol(hub)
        before.folder.report({})
        end(before)
    async with site.node("hub") as hub:
        end(after := await site.enrol(hub))
    assert after.mark.run != before.mark.run


async def test_what_is_spent_of_own_data_is_kept_over_all_runs(tmp_path: Path) -> None:
    private = {"mode": "ldp", "noise_multiplier": 1.0}
    config = from_mapping({**to_mapping(CONFIG), "course": {"name": "fedavg", "weights": "equal"}, "privacy": private})
    site, ledgers = Site(tmp_path, config), tmp_path / "ledgers"
    spent = []
    for _ in range(2):
        async with site.node("hub") as hub, site.node("a") as a:
            first = await site.enrol(hub, fresh=True, privacy_ledgers=ledgers)
            other = await site.enrol(a, fresh=True, privacy_ledgers=ledgers, epsilon_max=9.0)
            budgets, seat = other.setup.budgets, other.mark.seat
            account = budgets.account(seat, other.setup.shards[seat], other.mark.run)
            account.charge(0)
            spent.append(account.ledger.spent.mu_squared)
            assert account.most == 9.0
        end(first, other)
    assert spent == [1.0, 2.0]
    assert len(list(ledgers.iterdir())) == 1, "the coordinator adds no noise, and has none"


async def test_a_host_with_a_limit_does_not_join_without_noise(site: Site) -> None:
    async with site.node("hub") as hub:
        with pytest.raises(ConfigError, match="--epsilon-max is given, and the course adds no noise"):
            await site.enrol(hub, epsilon_max=1.0)


async def test_damage_is_told(site: Site) -> None:
    async with site.node("hub") as hub:
        before = await site.enrol(hub)
        await before.journal.commit(Commit(1, {"round": 1}))
        await before.journal.commit(Commit(2, {"round": 2}))
        end(before)
    (before.folder.path / "round-000002.safetensors").write_bytes(b"torn")
    async with site.node("hub") as hub:
        after = await site.enrol(hub)
        end(after)
    assert any("after round 1" in line for line in site.lines)
    assert any(line.startswith("WARNING: round-000002.safetensors is passed over") for line in site.lines)


def test_where_a_host_keeps_its_files_is_no_part_of_the_course() -> None:
    course = {"course": {"name": "fedavg"}, "partition": {"scheme": "own"}}
    here, there = (from_mapping(course | {"data": {"source": source}}) for source in ("/data/a.csv", "./b.csv"))
    assert course_hash(here) == course_hash(there)
    assert course_hash(here) != course_hash(from_mapping(course | {"data": {"source": "digits"}}))


@pytest.mark.parametrize("where", ["model.name", "model.loss", "train.function", "nodes.3.train.function"])
def test_a_peer_does_not_choose_what_code_runs_here(where: str) -> None:
    table: object = "os:system"
    for name in reversed(where.split(".")):
        table = {name: table}
    config = from_mapping({"course": {"name": "fedavg"}, **table})
    with pytest.raises(ConfigError, match=f"the peer's course has {where} 'os:system'.*say --code os:system"):
        refuse_foreign_code(config, ())
    with pytest.raises(ConfigError):
        refuse_foreign_code(config, ("my_model:Net",))
    refuse_foreign_code(config, ("os:system",))
    measured = from_mapping({"course": {"name": "fedavg"}, "metrics": {"own": ["./mine.py:f1", "os:system"]}})
    with pytest.raises(ConfigError, match=r"metrics\.own 'os:system'"):
        refuse_foreign_code(measured, ("./mine.py:f1",))
    refuse_foreign_code(from_mapping({"course": {"name": "fedavg"}, "model": {"name": "cnn"}}), ())
