"""`python -m p2pfl.node`: one node of a course on this host.

The first node has the course file and gives seats; the others are told an address and ask there for the course. Data
and code of models are always this host's own.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from p2pfl.app.build import privacy_notes
from p2pfl.app.computes import make_compute
from p2pfl.app.config import Config, course_hash
from p2pfl.app.console import Display
from p2pfl.app.contact import remember, remembered
from p2pfl.app.enrolment import Enrolled, Enrolment
from p2pfl.app.exits import Exit
from p2pfl.app.node_options import LocalData, NodeOptions, host_command
from p2pfl.app.run import RunFolder
from p2pfl.app.station import Station, run_player
from p2pfl.compute.meter import FlopMeter
from p2pfl.courses.course import HoldsModel
from p2pfl.courses.durable import RoundCommitted
from p2pfl.courses.scores import ClientsEvaluated
from p2pfl.learn.params import model_hash
from p2pfl.node.events import Event, RoundEnded
from p2pfl.node.node import Node

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
        self._station = Station(
            options,
            rounds=config.course.rounds if config else 0,
            remembered=lambda peer_id: () if options.fresh else remembered(options.runs, peer_id, options.run),
            unsaid=(RoundCommitted,),  # a round that ended is one: nothing new to a person
        )
        self._display = self._station.display

    @property
    def node(self) -> Node:
        """The node that plays the course."""
        return self._station.node

    async def run(self) -> int:
        """Play the course to its end; the exit code."""
        with ExitStack() as kept:
            try:
                async with self._station.up() as node:
                    enrolled = await Enrolment(node, self._options, self._config, self._data, self._display).enrol()
                    kept.enter_context(enrolled.folder)
                    if enrolled.setup.budgets is not None:
                        kept.callback(enrolled.setup.budgets.close)
                    await self._take_part(node, enrolled)
            finally:
                await self._compute.close()
        return Exit.DONE

    async def _take_part(self, node: Node, enrolled: Enrolled) -> None:
        setup, seat, folder = enrolled.setup, enrolled.mark.seat, enrolled.folder
        self._station.probed.course = course_hash(setup.config)
        self._station.probed.model_bytes = 4 * setup.model.layout.numel  # float32
        roles = setup.roles(seat, self._meter.on(self._compute), journal=enrolled.journal, floors=self._options.floors)
        recording = _Recording(folder, self._display)
        node.observe(recording)
        node.add(enrolled.courier, *roles)
        node.dispatch.expecting = False
        await node.members.announce(seat=seat)
        self._display.line(f"seat {seat} of {setup.topology!r}")
        began = time.monotonic()
        for note in privacy_notes(setup.config) if seat in setup.shards else ():
            self._display.line(f"note: {note}")
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
        report = enrolled.setup.report()
        if report is not None:
            figures["privacy"] = asdict(report)
            self._display.line(str(report))
        folder.report(figures)
        self._display.row("report", **figures, folder=str(folder.path))
        self._display.line(f"final model {figures['model_hash']}")


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


def run_host(arguments: list[str]) -> int:
    """The whole command: parse, run, handle signals. Returns the exit code; raises UserError."""
    options, config, data = host_command(arguments)
    torch.set_num_threads(1)
    return run_player(options, lambda: Host(options, config, data))
