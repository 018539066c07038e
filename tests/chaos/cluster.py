"""A course on hosts: nodes as processes of their own, each of whom reaches the first through a proxy of its own.

Every node has its identity and its run folders in a folder of its own, and its port to itself, so that the command
with which it was started can start it again.
"""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from tests.chaos.proxy import Proxy
from tests.end_to_end.process import Running, launch

__all__ = ["Cluster", "cluster", "cpu_seconds", "free_port", "peak_bytes", "resident_bytes"]

HUB = "hub"
_LOOK_SECONDS = 3.0  # between two looks at who has ended


class Cluster:
    """The nodes of one course, by name. The first, `hub`, has the course file."""

    def __init__(self, folder: Path, course: str, options: tuple[str, ...], latency: float = 0.0) -> None:
        """`latency`: seconds on each way through a proxy; rounds take longer, and leave the processors in peace."""
        self.folder = folder
        self.latency = latency
        self.port = free_port()
        self.nodes: dict[str, Running] = {}
        self.proxies: dict[str, Proxy] = {}
        self._file = folder / "course.toml"
        self._file.write_text(course)
        self._options = options
        self._commands: dict[str, tuple[str, ...]] = {}

    @property
    def hub(self) -> Running:
        return self.nodes[HUB]

    async def start_hub(self, *options: str) -> Running:
        """The node that has the course file and gives the seats."""
        return await self._start(HUB, "--course", str(self._file), "--listen", f":{self.port}", *options)

    async def start(self, name: str, *options: str) -> Running:
        """A node that joins, through a proxy of its own."""
        proxy = self.proxies[name] = Proxy(("127.0.0.1", self.port))
        await proxy.open()
        return await self._start(name, "--peers", proxy.address, *options)

    async def kill(self, name: str) -> None:
        """End it without a warning."""
        self.nodes[name].send_signal(signal.SIGKILL)
        await self.nodes[name].end()

    async def restart(self, name: str) -> Running:
        """Start a node that has ended by the command that started it before."""
        assert not self.nodes[name].alive
        await self.nodes[name].end()
        self.nodes[name] = await launch(*self._commands[name])
        return self.nodes[name]

    async def whole(self) -> None:
        """Undo what was done to the network and to nodes, and wait for a round in which all take part."""
        for proxy in self.proxies.values():
            proxy.clear()
            proxy.up.latency = proxy.down.latency = self.latency
        while True:
            for name in [name for name, running in self.nodes.items() if not running.alive]:
                await self.restart(name)
            with suppress(TimeoutError):  # somebody may give up before the others are back
                async with asyncio.timeout(_LOOK_SECONDS):
                    await self.hub.row("round", since=len(self.hub.rows), participants=len(self.proxies))
                    return

    async def close(self) -> None:
        async with asyncio.TaskGroup() as group:
            for running in self.nodes.values():
                group.create_task(running.stop())
        for proxy in self.proxies.values():
            await proxy.close()

    def home(self, name: str) -> Path:
        """The folder of a node."""
        return self.folder / name

    async def _start(self, name: str, *options: str) -> Running:
        home = self.home(name)
        home.mkdir()
        places = ("--identity", str(home / "identity.key"), "--runs", str(home / "runs"), "--name", name)
        self._commands[name] = (*options, *places, *self._options)
        self.nodes[name] = await launch(*self._commands[name])
        return self.nodes[name]


@asynccontextmanager
async def cluster(folder: Path, course: str, *options: str, latency: float = 0.0) -> AsyncIterator[Cluster]:
    """Nobody yet; all get `options`. What is started ends with it."""
    nodes = Cluster(folder, course, options, latency)
    try:
        yield nodes
    finally:
        await nodes.close()


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port: int = taken.getsockname()[1]
    return port


def resident_bytes(pid: int) -> int:
    """Memory of a process that is in RAM now."""
    return _status(pid)["VmRSS"]


def peak_bytes(pid: int) -> int:
    """The most memory that a process has had in RAM."""
    return _status(pid)["VmHWM"]


def _status(pid: int) -> Mapping[str, int]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {
        name: int(value.split()[0]) * 1024
        for name, _, value in (line.partition(":") for line in lines)
        if name.startswith("Vm")
    }


def cpu_seconds(pid: int) -> float:
    """What a process has computed for so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100  # user and system time, in ticks of 10 ms
