"""A node as operators see it: pages while it runs, logs for a collector, exit codes for a service manager."""

from __future__ import annotations

import json
import signal
import sys
from asyncio import create_subprocess_exec, timeout
from asyncio.subprocess import PIPE
from contextlib import closing
from pathlib import Path

import pytest
from aiohttp import ClientSession
from prometheus_client.parser import text_string_to_metric_families

from p2pfl.app.cli import main
from p2pfl.app.exits import Exit
from p2pfl.app.node_options import host_command
from p2pfl.app.station import Station
from tests.end_to_end.process import node, places

pytestmark = pytest.mark.sockets

COURSE = """
[course]
name = "fedavg"
rounds = 5000
[topology]
n = 2
"""


async def test_a_node_is_seen_from_outside_while_it_runs(tmp_path: Path) -> None:
    course = tmp_path / "course.toml"
    course.write_text(COURSE)
    options = ("--course", str(course), "--listen", ":0", "--metrics-listen", ":0", "--log", "json")
    async with node(tmp_path / "hub", *options) as hub, ClientSession() as session, timeout(90):
        ready = await hub.row("node")
        own_port = ready["addresses"][0].replace("ws", "http", 1).removesuffix("/p2pfl/v1")
        async with node(tmp_path / "client", "--peers", ready["addresses"][0]) as client:
            await hub.row("round")
            for port in (own_port, ready["metrics"]):
                async with session.get(f"{port}/healthz") as response:
                    said = await response.json()
                assert (response.status, said["status"], said["node"], said["peers"]) == (200, "ok", ready["id"], 1)
                async with session.get(f"{port}/metrics") as response:
                    families = text_string_to_metric_families(await response.text())
                seen = {sample.name: sample.value for family in families for sample in family.samples}
                assert seen["p2pfl_peers"] == 1
                assert seen["p2pfl_round"] >= 1
                assert seen["p2pfl_received_bytes_total"] > 1000
                assert seen["p2pfl_event_loop_lag_seconds"] >= 0
            hub.interrupt()
            assert await hub.end() == Exit.DONE
            client.interrupt()
            assert await client.end() == Exit.DONE
    assert client.complaints == ""  # it was not asked for a log, and there is nothing to warn of
    lines = [json.loads(line) for line in hub.stderr.splitlines()]
    assert {line["node"] for line in lines} == {ready["id"]}
    assert {"Listening", "PeerJoined", "RoundStarted", "RoundEnded"} <= {line.get("event") for line in lines}
    assert any(line["round"] >= 1 and line["seat"] == 0 for line in lines)


def test_a_mistake_is_a_line_of_the_log_and_an_exit_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["node", "--peers", ":1", "--trust", "nobody", "--log", "json", *places(tmp_path / "home")]
    assert main(arguments) == Exit.MISTAKE
    said = capsys.readouterr()
    [line] = [json.loads(line) for line in said.err.splitlines()]
    assert (line["level"], line["logger"]) == ("error", "p2pfl.app")
    assert "nobody" in line["message"]
    assert said.out == ""


async def test_a_node_that_is_terminated_is_done(tmp_path: Path) -> None:
    """As systemd and containers do it."""
    process = await create_subprocess_exec(
        sys.executable, "-m", "p2pfl.node", "--peers", ":1", *places(tmp_path / "home"), "--json", stdout=PIPE
    )
    assert process.stdout is not None
    await process.stdout.readline()
    process.send_signal(signal.SIGTERM)
    assert (await process.communicate())[0] is not None
    assert process.returncode == Exit.DONE


async def test_options_that_operators_give(tmp_path: Path) -> None:
    options, _, _ = host_command(
        ["--peers", ":1", "--log-level", "error", "--metrics-open", *places(tmp_path / "home")]
    )
    assert (options.logs.log, options.logs.log_level, options.monitor.metrics_open) == ("text", "error", True)
    station = Station(options)
    with closing(station):
        assert station.node.transport.pages.public  # type: ignore[attr-defined]  # of sockets
