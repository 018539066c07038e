"""A node as a process of its own, warnings being errors, and what it tells in JSON."""

from __future__ import annotations

import asyncio
import json
import resource
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any

__all__ = ["Running", "launch", "limited", "node", "places"]

Row = dict[str, Any]


class Running:
    """A process under way. `rows` is what it has told so far."""

    def __init__(self, process: Process) -> None:
        self.rows: list[Row] = []
        self._errors: list[str] = []
        self._process = process
        self._more = asyncio.Condition()
        self._reading = [asyncio.create_task(self._read_rows()), asyncio.create_task(self._read_errors())]

    async def row(self, kind: str, contains: str = "", *, since: int = 0, **fields: object) -> Row:
        """The first row of that kind whose text has these words, and that has these fields, once it is there.

        `since`: so many rows are passed over; those that there were at some moment.
        """
        async with self._more:
            at = since
            while True:
                for row in self.rows[at:]:
                    if row["kind"] == kind and contains in row.get("text", "") and row.items() >= fields.items():
                        return row
                at = len(self.rows)
                if self._reading[0].done():
                    wanted = f"{kind} {contains!r} {fields or ''}"
                    raise AssertionError(f"no {wanted} among {self.rows[since:][-30:]}; stderr: {self.stderr[-5000:]}")
                await self._more.wait()

    async def address(self) -> str:
        """Where it listens."""
        address: str = (await self.row("node"))["addresses"][0]
        return address

    @property
    def stderr(self) -> str:
        """What it has written there so far."""
        return "".join(self._errors)

    @property
    def complaints(self) -> str:
        """The same, but for what took long: in dev mode asyncio tells of it, and this machine may be busy."""
        return "".join(line for line in self.stderr.splitlines(keepends=True) if " asyncio: Executing <" not in line)

    @property
    def alive(self) -> bool:
        """Whether it runs, and is not on its way out."""
        return self._process.returncode is None and not self._reading[0].done()

    @property
    def pid(self) -> int:
        """Of this child of ours, which is not waited for by anybody else: the number is its own while it is `alive`."""
        return self._process.pid

    def send_signal(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError):  # it has just ended
            self._process.send_signal(number)

    def interrupt(self) -> None:
        self.send_signal(signal.SIGINT)

    async def end(self) -> int:
        """Wait for it; the exit code. What it told is complete by then."""
        await asyncio.wait(self._reading)
        return await self._process.wait()

    async def stop(self) -> None:
        """Have it killed if it still runs."""
        self.send_signal(signal.SIGKILL)
        await self.end()

    async def _read_rows(self) -> None:
        assert self._process.stdout is not None
        async for line in self._process.stdout:
            if not line.endswith(b"\n"):
                return  # it was killed in the midst of it
            async with self._more:
                self.rows.append(json.loads(line))  # each line is an object, whatever happens
                self._more.notify_all()

    async def _read_errors(self) -> None:
        assert self._process.stderr is not None
        while chunk := await self._process.stderr.read(1 << 16):
            self._errors.append(chunk.decode(errors="replace"))
        await asyncio.wait(self._reading[:1])
        async with self._more:
            self._more.notify_all()


def places(home: Path) -> list[str]:
    """Options that keep a node's files under `home`, which is made if it is not there."""
    home.mkdir(exist_ok=True)
    return ["--identity", str(home / "identity.key"), "--runs", str(home / "runs"), "--run", "run"]


async def launch(*options: str) -> Running:
    """Start `python -m p2pfl.node`. Who does so sees to its end."""
    command = (sys.executable, "-W", "error", "-X", "dev", "-m", "p2pfl.node", *options, "--json")
    return Running(await asyncio.create_subprocess_exec(*command, stdout=PIPE, stderr=PIPE, limit=1 << 20))


@asynccontextmanager
async def node(home: Path, *options: str) -> AsyncIterator[Running]:
    """`python -m p2pfl.node` with an identity and run folders under `home`."""
    running = await launch(*options, *places(home))
    try:
        yield running
    finally:
        await running.stop()


@contextmanager
def limited(running: Running, what: int, most: int) -> Iterator[None]:
    """It may have no more of something, of `resource.RLIMIT_*`. What it has already stays so."""
    before = resource.prlimit(running.pid, what)
    resource.prlimit(running.pid, what, (most, before[1]))
    try:
        yield
    finally:
        resource.prlimit(running.pid, what, before)
