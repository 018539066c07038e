"""`python -m p2pfl.node`: one node of a course on this host.

The first node has the course file and gives seats; the others are told an address and ask there for the course. Data
and code of models are always this host's own.
"""

from __future__ import annotations

import asyncio
import fcntl
import itertools
import os
import signal
from collections.abc import Collection
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Generic, TypeVar

import orjson
import torch
import tyro

from p2pfl.app.build import Setup, prepare, topology_notes
from p2pfl.app.computes import ComputeOptions, make_compute
from p2pfl.app.config import Config, course_hash, from_mapping, load_config, to_mapping, with_topology
from p2pfl.app.console import Display
from p2pfl.app.options import parse
from p2pfl.app.registrar import Courier, CourseText, FetchCourse, Join, Registrar
from p2pfl.app.run import RunFolder, model_hash
from p2pfl.courses.course import HoldsModel
from p2pfl.crypto.identity import Identity, NetworkKey
from p2pfl.errors import ConfigError, CourseError, LinkError, RemoteError
from p2pfl.link.tls import TlsSettings
from p2pfl.link.trust import parse_trust
from p2pfl.link.websocket import WebSocketTransport
from p2pfl.node.events import Event, RoundEnded, RoundStarted, Waiting
from p2pfl.node.node import Node
from p2pfl.node.peer import Peer
from p2pfl.topology.file import loads

__all__ = ["Hosting", "Joining", "NodeOptions", "host_command", "own_identity", "refuse_foreign_code", "run_host"]

SettingsT = TypeVar("SettingsT")


@dataclass(frozen=True, slots=True)
class NodeOptions:
    """Where this node listens, whom it dials, who it is, and whom it trusts."""

    listen: tuple[str, ...] = ()
    """Addresses to listen on, such as :7700 (this machine only) or 0.0.0.0:7700. None: only dial out."""
    peers: tuple[str, ...] = ()
    """Addresses of nodes to link to, such as hub:7700. One is enough: the others are learnt."""
    name: str = ""
    """What this node is called; a topology file may keep a seat for the name."""
    seat: int | None = None
    """The seat to ask for. By default a free one."""
    identity: Path | None = None
    """Key file of this node; it is made if it is not there. By default .p2pfl/identity.key or, while other nodes run
    from this folder, the first of identity-2.key, identity-3.key ... that none of them holds."""
    trust: tuple[str, ...] = ()
    """allow_list, tofu, network_key, open; several: all must agree. By default allow_list or network_key where one of
    these is given, else open, which is for this machine only."""
    allow: tuple[str, ...] = ()
    """Peer ids that are admitted (allow_list)."""
    allow_file: Path | None = None
    """A file with a peer id per line (allow_list); it is read again when it changes."""
    known_peers: Path = Path(".p2pfl/known_peers.json")
    """Where pinned peers are kept (tofu)."""
    network_key: Path | None = None
    """A file with the network's key; `p2pfl key FILE` makes one."""
    network: str = "p2pfl"
    """Name of the network; nodes of another do not link."""
    insecure_open: bool = False
    """Let trust open go beyond this machine: anybody who can reach it may join."""
    tls_cert: Path | None = None
    """Certificate for TLS underneath the encrypted links."""
    tls_key: Path | None = None
    """Its private key."""
    tls_ca: Path | None = None
    """Certificates that other ends must be signed by."""
    code: tuple[str, ...] = ()
    """Import paths that a peer's course may name as model or loss, such as my_model:Net: code of this host only."""
    compute: ComputeOptions = field(default_factory=ComputeOptions)
    runs: Path = Path("runs")
    """Where run folders are made."""
    run: str = ""
    """Name of the run folder; by default course, hash and date."""
    json: bool = False
    """One JSON object per line on stdout instead of text."""


@dataclass(frozen=True, slots=True)
class Hosting(Generic[SettingsT]):
    """Run a node that has the course file. Without --peers it is the first, which gives the seats."""

    config: Annotated[Config[SettingsT], tyro.conf.arg(name="")]
    node: Annotated[NodeOptions, tyro.conf.arg(name="")] = field(default_factory=NodeOptions)


@dataclass(frozen=True, slots=True)
class LocalData:
    source: str = ""
    """Where this host has its examples, if not where the course says."""


@dataclass(frozen=True, slots=True)
class Joining:
    """Run a node that asks its first peer for the course. With --course FILE, every field of it is an option too."""

    node: Annotated[NodeOptions, tyro.conf.arg(name="")] = field(default_factory=NodeOptions)
    data: LocalData = field(default_factory=LocalData)


def host_command(arguments: list[str]) -> tuple[NodeOptions, Config[Any] | None, LocalData]:
    """Parse the command line. Raises ConfigError."""
    rest, course = _without_course(arguments)
    program = "python -m p2pfl.node"
    if course is None:
        joining = parse(Joining, rest, program)
        if not joining.node.peers:
            raise ConfigError("give --course FILE to start a course, or --peers ADDRESS to join one")
        return joining.node, None, joining.data
    config = load_config(Path(course))
    kind: Any = Hosting[type(config.course)]  # type: ignore[misc]  # the class of settings is known only now
    hosting = parse(kind, rest, f"{program} --course {course}", Hosting(config))
    if not hosting.node.listen and not hosting.node.peers:
        raise ConfigError("nobody could reach this node: give --listen, such as --listen :7700, or --peers, or both")
    return hosting.node, with_topology(hosting.config), LocalData()


def _without_course(arguments: list[str]) -> tuple[list[str], str | None]:
    rest, course, given = [], None, iter(arguments)
    for argument in given:
        if argument == "--course":
            course = next(given, None)
            if course is None:
                raise ConfigError("--course needs a file: --course examples/digits.toml")
        elif argument.startswith("--course="):
            course = argument.removeprefix("--course=")
        else:
            rest.append(argument)
    return rest, course


class Host:
    """One run of a node on this host."""

    def __init__(self, options: NodeOptions, config: Config[Any] | None, data: LocalData) -> None:
        """Raises UserError for keys, trust and certificates that cannot work."""
        self._compute = make_compute(options.compute, auto="threads")
        self._options = options
        self._config = config
        self._data = data
        self._display = Display(as_json=options.json, total=config.course.rounds if config else 0)
        transport, held = _transport(options)
        with held:  # it is let go again if the node cannot be made
            self._node = Node(
                transport=transport,
                listen=[_with_host(address) for address in options.listen],
                peers=options.peers,
                name=options.name,
            )
            self._held = held.pop_all()

    async def run(self) -> int:
        """Play the course to its end; the exit code."""
        with self._held, ExitStack() as kept, self._display, self._node.events() as events:
            watching = asyncio.create_task(self._watch(events))
            try:
                async with self._node as node:
                    self._display.line(f"peer id {node.id}")
                    self._display.row("node", id=node.id, addresses=node.addresses)
                    setup, seat, courier = await self._come_together(node)
                    roles = setup.roles(seat, self._compute)
                    node.add(courier, *roles)
                    folder = kept.enter_context(RunFolder(self._options.runs, setup.config, self._options.run))
                    await node.members.announce(seat=seat)
                    self._display.line(f"seat {seat} of {setup.topology!r}")
                    await self._play(node, setup, roles, folder)
            finally:
                watching.cancel()
                await self._compute.close()
        return 0

    async def _play(self, node: Node, setup: Setup, roles: tuple[object, ...], folder: RunFolder) -> None:
        recording = _Recording(folder, self._display)
        node.observe(recording)
        await node.run()
        for role in roles:
            if isinstance(role, HoldsModel):
                folder.model(setup.model.layout, role.params)
                figures = {
                    "course": course_hash(setup.config),
                    "model_hash": model_hash(role.params),
                    "seat": node.seat,
                    "peer_id": node.id,
                    "metrics": recording.metrics,
                    **asdict(node.statistics()),
                }
                folder.report(figures)
                self._display.row("report", **figures, folder=str(folder.path))
                self._display.line(f"final model {figures['model_hash']}")
        self._display.line(f"run folder {folder.path}")

    # -- before the course -----------------------------------------------------------------------------------------

    async def _come_together(self, node: Node) -> tuple[Setup, int, Courier]:
        if self._config is not None and not self._options.peers:
            return await self._found(node, self._config)
        return await self._join(node)

    async def _found(self, node: Node, config: Config[Any]) -> tuple[Setup, int, Courier]:
        """Be the first: keep the course, give the seats."""
        named = _named_seats(config)
        seat = self._options.seat if self._options.seat is not None else named.get(self._options.name, 0)
        setup = await asyncio.to_thread(prepare, config, seat)
        if not 0 <= seat < setup.topology.n:
            raise ConfigError(f"--seat is {seat}; the course has seats 0 to {setup.topology.n - 1}")
        text = orjson.dumps(to_mapping(config)).decode()
        node.add(Registrar(course_hash(config), setup.topology.n, seat, named))
        for note in topology_notes(config):
            self._display.line(f"note: {note}")
        for address in node.addresses:
            self._display.line(f"others join with: python -m p2pfl.node --peers {address}")
        return setup, seat, Courier(CourseText(text, course_hash(config), node.id))

    async def _join(self, node: Node) -> tuple[Setup, int, Courier]:
        """Ask a peer for the course, and who keeps the seats for one."""
        course = await self._fetch(node)
        config = _checked(course)
        self._display.line(f"course {config.course.name} {course.hash[:8]}: {course.text}")
        self._display.row("course", hash=course.hash, course=to_mapping(config))
        if self._config is not None and course_hash(self._config) != course.hash:
            raise ConfigError(
                f"--course has the hash {course_hash(self._config)[:8]}, the peers' course {course.hash[:8]}; "
                "use the same file and options, or leave --course out to take theirs"
            )
        if self._data.source:
            config = replace(config, data=replace(config.data, source=self._data.source))
        elif self._config is not None:
            config = self._config
        if _is_local(config) and not self._data.source and self._config is None:
            raise ConfigError(
                f"the course says data.source {config.data.source!r}; say --data.source PATH on this host"
            )
        if self._config is None:
            refuse_foreign_code(config, self._options.code)
        registrar = await self._registrar(node, course.registrar)
        join = Join(course_hash(config), self._options.name, self._options.seat)
        seated = await registrar.ask(join)
        if seated.seat is None:
            raise ConfigError(seated.refusal)
        setup = await asyncio.to_thread(prepare, config, seated.seat)
        return setup, seated.seat, Courier(course)

    async def _fetch(self, node: Node) -> CourseText:
        with node.waiting("a peer that has the course"):
            while True:
                for peer in node.peers:
                    try:
                        return await peer.ask(FetchCourse())
                    except (RemoteError, LinkError) as error:
                        self._display.line(f"{peer.name} does not give the course: {error}")
                await node.change()

    async def _registrar(self, node: Node, peer_id: str) -> Peer:
        with node.waiting("a link to the node that gives the seats"):
            while not node.peer(peer_id).connected:
                member = node.members.get(peer_id)
                if member is not None and member.seat is not None:
                    node.want([member.seat])
                await node.change()
        return node.peer(peer_id)

    async def _watch(self, events: Any) -> None:
        waits: dict[str, float] = {}  # what a person was told to be waiting for, and for how long then
        async for event in events:
            if isinstance(event, Waiting):
                if event.seconds < 2 * waits.get(event.what, 0.0):
                    continue  # ever more seldom: patience is no news
                waits = {event.what: event.seconds}
            if not isinstance(event, (RoundEnded, RoundStarted)):
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
        if isinstance(event, RoundEnded):
            self.metrics = event.metrics or self.metrics
            self.folder.metrics(**asdict(event))
            self.display.row("round", **asdict(event))
            self.display.line(str(event))
            self.display.step(event.round, f"round {event.round}")

    def finish(self) -> None:
        return None


def _checked(course: CourseText) -> Config[Any]:
    try:
        config = from_mapping(orjson.loads(course.text))
    except (orjson.JSONDecodeError, ConfigError) as error:
        raise CourseError(f"the peer's course cannot be read here: {error}; both ends need the same p2pfl") from error
    if course_hash(config) != course.hash:
        raise CourseError("the peer's course does not have the hash that it says; both ends need the same p2pfl")
    return config


def refuse_foreign_code(config: Config[Any], allowed: Collection[str]) -> None:
    """Raise ConfigError if a peer's course names a callable of this host that its user has not allowed.

    An import path can name anything that is installed here, `os:system` included.
    """
    for name, path in (("model.name", config.model.name), ("model.loss", config.model.loss)):
        if ":" in path and path not in allowed:
            raise ConfigError(
                f"the peer's course has {name} {path!r}, code of this host; if it is yours, say --code {path}"
            )


def _is_local(config: Config[Any]) -> bool:
    return "/" in config.data.source or "{" in config.data.source or Path(config.data.source).suffix != ""


def _named_seats(config: Config[Any]) -> dict[str, int]:
    if not config.topology.file:
        return {}
    return {member.name: member.seat for member in loads(config.topology.text).members}


def _with_host(address: str) -> str:
    """`:7700` is short for this machine only."""
    return f"127.0.0.1{address}" if address.startswith(":") else address


def own_identity(path: Path | None) -> tuple[Identity, ExitStack]:
    """The identity in a file, and what to close at the end.

    Without a path: the first file in .p2pfl that no other process holds; it is held to the end. Raises IdentityError.
    """
    held = ExitStack()
    if path is not None:
        return Identity.load_or_create(path), held
    for number in itertools.count(1):
        file = Path(".p2pfl") / (f"identity-{number}.key" if number > 1 else "identity.key")
        identity = Identity.load_or_create(file)
        handle = held.enter_context(file.open("rb"))
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            held.close()
            continue
        break
    return identity, held


def _transport(options: NodeOptions) -> tuple[WebSocketTransport, ExitStack]:
    """How this host reaches others, and what to close at the end."""
    key = NetworkKey.load(options.network_key) if options.network_key else None
    names = list(options.trust)
    if not names:
        names += ["allow_list"] if options.allow or options.allow_file else []
        names += ["network_key"] if key else []
    trust = parse_trust(
        names or ["open"],
        allow=options.allow,
        allow_file=options.allow_file,
        known_peers=options.known_peers,
        insecure_open=options.insecure_open,
    )
    tls = None
    if options.tls_cert or options.tls_ca:
        tls = TlsSettings(options.tls_cert, options.tls_key, options.tls_ca)
        tls.client_context()  # loads all files once, so that wrong ones are told before anything else
    identity, held = own_identity(options.identity)  # last: nothing is held by a command line that cannot work
    transport = WebSocketTransport(identity, trust=trust, network_key=key, network_name=options.network, tls=tls)
    return transport, held


def run_host(arguments: list[str]) -> int:
    """The whole command: parse, run, handle signals. Returns the exit code; raises UserError."""
    options, config, data = host_command(arguments)
    torch.set_num_threads(1)
    host = Host(options, config, data)
    import uvloop  # noqa: PLC0415 - only this command uses it, and some platforms lack it

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_with_signals(host))


async def _with_signals(host: Host) -> int:
    """The first SIGINT or SIGTERM lets the node say goodbye and end with 0; the second ends it at once with 130."""
    loop = asyncio.get_running_loop()
    work = asyncio.current_task()
    assert work is not None
    asked = False

    def stop() -> None:
        nonlocal asked
        if asked:
            os._exit(130)
        asked = True
        work.cancel()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop)
    try:
        return await host.run()
    except asyncio.CancelledError:
        if not asked:
            raise
        return 0
