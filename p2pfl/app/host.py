"""`python -m p2pfl.node`: one node of a course on this host.

The first node has the course file and gives seats; the others are told an address and ask there for the course. Data
and code of models are always this host's own.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from p2pfl.app.computes import make_compute
from p2pfl.app.config import Config, course_hash
from p2pfl.app.console import Display
from p2pfl.app.contact import patience, remember, remembered
from p2pfl.app.enrolment import Enrolled, Enrolment
from p2pfl.app.exits import Exit, exit_of
from p2pfl.app.identity_options import make_transport
from p2pfl.app.logs import Patience, StderrLog
from p2pfl.app.monitor import Monitor
from p2pfl.app.node_options import LocalData, NodeOptions, host_command
from p2pfl.app.run import RunFolder
from p2pfl.app.software import own_software
from p2pfl.compute.meter import FlopMeter
from p2pfl.courses.course import HoldsModel
from p2pfl.courses.durable import RoundCommitted
from p2pfl.courses.scores import ClientsEvaluated
from p2pfl.errors import P2pflError
from p2pfl.learn.params import model_hash
from p2pfl.node.events import Event, RoundEnded, RoundStarted
from p2pfl.node.node import Node
from p2pfl.node.probing import Probed

__all__ = ["Host", "run_host"]


class Host:
    """One run of a node on this host."""

    def __init__(self, options: NodeOptions, config: Config[Any] | None, data: LocalData) -> None:
        """Raises UserError for keys, trust and certificates that cannot work."""
        self._compute = make_compute(options.compute, auto="threads")
        self._meter = FlopMeter()
        self._options = options
        self._config = config
        self._data = data
        rounds = config.course.rounds if config else 0
        self._display = Display(as_json=options.json, total=rounds, quiet=options.logs.log == "json")
        transport, held = make_transport(options)
        with held:  # it is let go again if the node cannot be made
            self._remembered = () if options.fresh else remembered(options.runs, transport.peer_id, options.run)
            self._node = Node(
                transport=transport,
                listen=[_with_host(address) for address in options.listen],
                peers=[*options.peers, *self._remembered],
                name=options.name,
            )
            self._node.dispatch.expecting = True  # we learn from our peers what we are to play
            self._probed = Probed(self._node, own_software())
            self._node.add(self._probed)
            self._monitor = Monitor(self._node, options.monitor)
            transport.pages = self._monitor.pages
            self._held = held.pop_all()

    @property
    def node(self) -> Node:
        """The node that plays the course."""
        return self._node

    async def run(self) -> int:
        """Play the course to its end; the exit code."""
        with self._held, ExitStack() as kept, self._display, self._node.events() as events:
            watching = asyncio.create_task(self._watch(events))
            try:
                async with self._monitor, self._node as node, self._monitor.up():
                    if self._options.advertise:
                        await node.members.announce(addresses=self._options.advertise)
                    self._display.line(f"peer id {node.id}")
                    self._display.row("node", id=node.id, addresses=node.addresses, metrics=self._monitor.where)
                    async with patience(node, self._options.patience_seconds, resuming=bool(self._remembered)):
                        enrolled = await Enrolment(node, self._options, self._config, self._data, self._display).enrol()
                        kept.enter_context(enrolled.folder)
                        await self._take_part(node, enrolled)
            finally:
                watching.cancel()
                await self._compute.close()
        return Exit.DONE

    async def _take_part(self, node: Node, enrolled: Enrolled) -> None:
        setup, seat, folder = enrolled.setup, enrolled.mark.seat, enrolled.folder
        self._probed.course = course_hash(setup.config)
        self._probed.model_bytes = 4 * setup.model.layout.numel  # float32
        roles = setup.roles(seat, self._meter.on(self._compute), journal=enrolled.journal)
        recording = _Recording(folder, self._display)
        node.observe(recording)
        node.add(enrolled.courier, *roles)
        node.dispatch.expecting = False
        await node.members.announce(seat=seat)
        self._display.line(f"seat {seat} of {setup.topology!r}")
        began = time.monotonic()
        remembering = asyncio.create_task(remember(node, enrolled.mark, folder))
        try:
            await node.run()
        finally:
            remembering.cancel()
        for role in roles:
            if isinstance(role, HoldsModel):
                self._report(node, enrolled, role.params, recording.metrics, time.monotonic() - began)
        self._display.line(f"run folder {folder.path}")

    def _report(
        self, node: Node, enrolled: Enrolled, params: Tensor, metrics: dict[str, float], seconds: float
    ) -> None:
        folder = enrolled.folder
        folder.model(enrolled.setup.model.layout, params)
        figures = {
            "course": enrolled.mark.course,
            "run": enrolled.mark.run,
            "model_hash": model_hash(params),
            "seat": node.seat,
            "peer_id": node.id,
            "metrics": metrics,
            "seconds": seconds,
            "train_flops": self._meter.flops,
            **asdict(node.statistics()),
        }
        folder.report(figures)
        self._display.row("report", **figures, folder=str(folder.path))
        self._display.line(f"final model {figures['model_hash']}")

    async def _watch(self, events: Any) -> None:
        patience = Patience()
        async for event in events:
            if patience.tells(event) and not isinstance(event, (RoundEnded, RoundStarted)):
                if not isinstance(event, RoundCommitted):  # a round that ended is one: nothing new to a person
                    self._display.line(str(event))
                self._display.row("event", event=type(event).__name__, text=str(event))


@dataclass(slots=True, eq=False)
class _Recording:
    """Writes the rounds of this node into its run folder and onto the screen."""

    folder: RunFolder
    display: Display
    metrics: dict[str, float] = field(default_factory=dict)

    def push(self, event: Event) -> None:
        self.folder.log(str(event))
        if isinstance(event, ClientsEvaluated):
            self.folder.clients(event.round, event.clients)
        if isinstance(event, RoundEnded):
            self.metrics = event.metrics or self.metrics
            self.folder.metrics(**asdict(event))
            self.display.row("round", **asdict(event))
            self.display.line(str(event))
            self.display.step(event.round, f"round {event.round}")

    def finish(self) -> None:
        return None


def _with_host(address: str) -> str:
    """`:7700` is short for this machine only."""
    return f"127.0.0.1{address}" if address.startswith(":") else address


def run_host(arguments: list[str]) -> int:
    """The whole command: parse, run, handle signals. Returns the exit code; raises UserError."""
    options, config, data = host_command(arguments)
    torch.set_num_threads(1)
    with StderrLog(options.logs) as log:
        try:
            host = Host(options, config, data)
            log.follow(host.node)
            with asyncio.Runner(loop_factory=_loop_factory(options.loop)) as runner:
                return runner.run(_with_signals(host))
        except P2pflError as error:
            if not log.last_words(error):
                raise
            return exit_of(error)


def _loop_factory(name: str) -> Callable[[], asyncio.AbstractEventLoop]:
    if name == "asyncio":
        return asyncio.new_event_loop
    import uvloop  # noqa: PLC0415 - only this command uses it, and some platforms lack it

    return uvloop.new_event_loop


async def _with_signals(host: Host) -> int:
    """The first SIGINT or SIGTERM lets the node say goodbye and end with 0; the second ends it at once with 130."""
    loop = asyncio.get_running_loop()
    work = asyncio.current_task()
    assert work is not None
    asked = False

    def stop() -> None:
        nonlocal asked
        if asked:
            os._exit(Exit.INTERRUPTED)
        asked = True
        work.cancel()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop)
    try:
        return await host.run()
    except asyncio.CancelledError:
        if not asked:
            raise
        return Exit.DONE
