from __future__ import annotations

import asyncio
from pathlib import Path

import orjson

from p2pfl.app.config import from_mapping
from p2pfl.app.contact import remember, remembered
from p2pfl.app.run import RunFolder, RunMark
from p2pfl.link.memory import MemoryNetwork
from tests.node.kit import QUIET, make, until

CONFIG = from_mapping({"course": {"name": "fedavg"}})
MARK = RunMark("run", "course", "a", 1)


async def test_where_the_others_are_is_written_down(tmp_path: Path) -> None:
    network = MemoryNetwork()
    with RunFolder(tmp_path, CONFIG, "mine") as folder:
        folder.mark(MARK)
        async with make(network, "a", settings=QUIET) as node:
            remembering = asyncio.create_task(remember(node, MARK, folder))
            async with make(network, "b", peers=["a"], listen="b", settings=QUIET):
                await until(lambda: bool(node.members.get("b")))
                await asyncio.sleep(5)
            remembering.cancel()
        assert orjson.loads((folder.path / "run.json").read_bytes())["addresses"] == ["memory:b"]
        assert remembered(tmp_path, "a") == (), "a process is at it"
    assert remembered(tmp_path, "a") == ("memory:b",)
    assert remembered(tmp_path, "b") == ()
    assert remembered(tmp_path / "nowhere", "a") == ()
