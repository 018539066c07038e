"""Nodes as processes on 127.0.0.1: courses over real sockets, and all that users and strangers do to them."""

from __future__ import annotations

import asyncio
import json
import math
import os
import re
import socket
import tomllib
from array import array
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientSession, WSMsgType, WSServerHandshakeError

from p2pfl import Identity, LinkError, Message, NetworkKey, Node, Peer, Request, Tensors, TensorSpec, WebSocketTransport
from p2pfl.app.build import prepare
from p2pfl.app.cli import main
from p2pfl.app.config import Config, course_hash, from_mapping
from p2pfl.app.host import Host
from p2pfl.app.node_options import host_command
from p2pfl.app.registrar import FetchCourse, Join
from p2pfl.compute.inline import Inline
from p2pfl.courses.course import HoldsModel
from p2pfl.errors import ConfigError
from p2pfl.learn.params import model_hash
from p2pfl.link.secure import offered_subprotocols
from p2pfl.link.trust import Open
from p2pfl.sim.loop import run_virtual
from p2pfl.sim.world import World
from p2pfl.wire.packet import Packet
from tests.end_to_end.process import Running, node, places

pytestmark = pytest.mark.sockets

FEDAVG = """
seed = 7
[course]
name = "fedavg"
rounds = 3
[topology]
n = 3
[partition]
scheme = "dirichlet"
[train]
batch_size = 10
"""
DPSGD = FEDAVG.replace("fedavg", "dpsgd")
HIERARCHICAL = (
    FEDAVG.replace("fedavg", "hierarchical").replace("n = 3", "n = 5\nparameters = { edges = 2 }")
    + '[metrics]\nclients = ["fairness", "each"]\n'
).replace("rounds = 3", 'rounds = 3\nevaluate = "both"')
LONG = FEDAVG.replace("rounds = 3", "rounds = 5000")
BUSY = LONG + "epochs = 2000\n"


def written(folder: Path, text: str) -> Path:
    path = folder / "course.toml"
    path.write_text(text)
    return path


def parsed(text: str) -> Config[Any]:
    return from_mapping(tomllib.loads(text))


def simulated(text: str) -> list[str]:
    """The hash of each seat's final model."""
    setup = prepare(parsed(text))
    config = setup.config
    world = World(setup.topology.n, setup.roles, Inline(), config.network, config.devices, config.seed)
    run_virtual(world.run(lambda seconds, seat, event: None))
    roles = (role for seat in world.seats.values() for role in seat.roles)
    return [model_hash(role.params) for role in roles if isinstance(role, HoldsModel)]


async def joined(home: Path, *arguments: str) -> int:
    """Join from within this process, where it is the refusal that matters."""
    return await Host(*host_command([*arguments, *places(home), "--compute", "inline"])).run()


def blameless(*processes: Running) -> None:
    for process in processes:
        assert process.complaints == ""


@pytest.mark.parametrize(
    ("text", "count"), [(FEDAVG, 3), (DPSGD, 2), (HIERARCHICAL, 3)], ids=["fedavg", "dpsgd", "hierarchical"]
)
async def test_nodes_on_hosts_end_with_the_models_of_the_simulation(text: str, count: int, tmp_path: Path) -> None:
    """`count` nodes are processes of their own; the others share this one, to save a second of imports each."""
    course, seats = str(written(tmp_path, text)), range(parsed(text).topology.n)
    listen = () if text is FEDAVG else ("--listen", ":0")
    async with AsyncExitStack() as kept:
        hub = await kept.enter_async_context(node(tmp_path / "0", "--course", course, "--listen", ":0"))
        join = ("--peers", await hub.address(), *listen)
        processes = [await kept.enter_async_context(node(tmp_path / str(seat), *join)) for seat in seats[1:count]]
        async with asyncio.TaskGroup() as group:
            ends = [group.create_task(process.end()) for process in (hub, *processes)]
            ends += [group.create_task(joined(tmp_path / str(seat), *join)) for seat in seats[count:]]
    assert [end.result() for end in ends] == [0] * len(seats)
    blameless(hub, *processes)
    folders = [tmp_path / str(seat) / "runs" / "run" for seat in seats]
    reports = [json.loads(content) for content in contents(folders, "report.json")]
    expected = await asyncio.to_thread(simulated, text)
    assert {report["seat"]: report["model_hash"] for report in reports} == dict(enumerate(expected))
    assert {report["course"] for report in reports} == {course_hash(parsed(text))}
    if text is HIERARCHICAL:
        found = [json.loads(line) for line in (folders[0] / "clients.jsonl").read_text().splitlines()]
        assert [(row["round"], row["seat"]) for row in found] == [(r, s) for r in (1, 2, 3) for s in (3, 4)]
        assert reports[0]["metrics"]["client_accuracy_min"] == min(row["accuracy"] for row in found[-2:])
    assert len(contents(folders, "model.safetensors")) == len(contents(folders, "course.json")) == len(seats)


def contents(folders: list[Path], name: str) -> list[bytes]:
    return [(folder / name).read_bytes() for folder in folders]


async def test_seats_are_given_once_and_a_joiner_passes_the_course_on(tmp_path: Path) -> None:
    course = written(tmp_path, LONG)
    async with (
        node(tmp_path / "hub", "--course", str(course), "--listen", ":0") as hub,
        node(tmp_path / "first", "--peers", await hub.address(), "--listen", ":0") as first,
    ):
        await first.row("course")
        with pytest.raises(ConfigError, match=r"^seat 0 is taken: leave --seat out"):
            await joined(tmp_path / "greedy", "--peers", await hub.address(), "--seat", "0")
        with pytest.raises(ConfigError, match=r"^there is no seat 9: the course has seats 0 to 2"):
            await joined(tmp_path / "lost", "--peers", await hub.address(), "--seat", "9")
        other = str(written(tmp_path, LONG.replace("seed = 7", "seed = 8")))
        with pytest.raises(ConfigError, match=r"^--course has the hash \w{8}, the peers' course \w{8}; use the same"):
            await joined(tmp_path / "deviant", "--peers", await hub.address(), "--course", other)
        async with node(tmp_path / "second", "--peers", await first.address()) as second:
            await second.row("course")
            await hub.row("round")
            with pytest.raises(ConfigError, match=r"^all 3 seats are taken"):
                await joined(tmp_path / "late", "--peers", await hub.address())
            async with asyncio.timeout(5):
                hub.interrupt()
                assert await hub.end() == 0
            await second.row("event", "the node stops")
            async with asyncio.timeout(5):
                second.interrupt()
                assert await second.end() == 0
    blameless(hub, second)


async def test_code_that_a_course_names_runs_where_its_user_says_so(tmp_path: Path) -> None:
    path = "p2pfl.learn.models:logistic"
    text = FEDAVG.replace("n = 3", "n = 2") + f'[model]\nname = "{path}"\n'
    async with node(tmp_path / "hub", "--course", str(written(tmp_path, text)), "--listen", ":0") as hub:
        with pytest.raises(ConfigError, match=rf"^the peer's course has model.name '{path}'.*say --code {path}$"):
            await joined(tmp_path / "wary", "--peers", await hub.address())
        assert await joined(tmp_path / "willing", "--peers", await hub.address(), "--code", path) == 0
        assert await hub.end() == 0


async def test_an_interrupted_client_says_goodbye_even_in_the_midst_of_training(tmp_path: Path) -> None:
    course = written(tmp_path, BUSY)
    async with AsyncExitStack() as kept:
        hub = await kept.enter_async_context(node(tmp_path / "hub", "--course", str(course), "--listen", ":0"))
        address = await hub.address()
        polite, hasty = [
            await kept.enter_async_context(node(tmp_path / name, "--peers", address)) for name in ("polite", "hasty")
        ]
        for client in (polite, hasty):
            await client.row("course")
        identity = (await polite.row("node"))["id"][:10]
        await hub.row("event", f"{identity} joined")
        await started(tmp_path / "hub")
        async with asyncio.timeout(5):
            polite.interrupt()
            assert await polite.end() == 0
        await hub.row("event", f"{identity} is gone: it said goodbye")
        async with asyncio.timeout(3):
            hasty.interrupt()
            while hasty.alive:  # it is busy saying goodbye when it is told again
                await asyncio.sleep(0.1)
                hasty.interrupt()
            assert await hasty.end() == 130
        async with asyncio.timeout(5):
            hub.interrupt()
            assert await hub.end() == 0
    blameless(hub, polite, hasty)


async def started(home: Path) -> None:
    """Wait until the first round has begun."""
    log = home / "runs" / "run" / "log.txt"
    while "started" not in await asyncio.to_thread(log.read_text):  # noqa: ASYNC110 - of another process
        await asyncio.sleep(0.05)


class Update(Message):
    """As in courses.messages, but it takes anything."""

    round: int
    params: Tensors
    num_examples: int
    loss: float | None


class Train(Request[Update]):
    round: int
    params: Tensors


class Finished(Message):
    pass


class Finish(Request[Finished]):
    rounds: int
    params: Tensors


@dataclass
class Saboteur:
    """A seated client that answers with something else in each round, and then with nothing."""

    lies: list[Tensors | None]

    @Train.handler
    async def train(self, ask: Train, peer: Peer) -> Update:
        lie = self.lies.pop(0) if self.lies else None
        if lie is None:
            await asyncio.Event().wait()
        return Update(ask.round, lie or ask.params, 1, None)

    @Finish.handler
    async def finish(self, message: Finish, peer: Peer) -> Finished:
        return Finished()


def floats(*numbers: float) -> Tensors:
    return Tensors((TensorSpec("params", "f32", (len(numbers),)),), (memoryview(array("f", numbers)),))


async def garbage(address: str) -> None:
    """No WebSocket at all, then a WebSocket with rubbish in place of a handshake, then an unknown version."""
    host, port = address.removeprefix("ws://").partition("/")[0].split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(os.urandom(100_000))
    await reader.read()
    writer.close()
    async with ClientSession() as session:
        async with session.ws_connect(address, protocols=offered_subprotocols()) as socket:
            await socket.send_bytes(os.urandom(1000))
            assert (await socket.receive()).type is not WSMsgType.BINARY
        with pytest.raises(WSServerHandshakeError, match="426"):
            await session.ws_connect(address, protocols=("p2pfl.v99.chachapoly",))


class _Ended:
    """A receiver that waits for the end."""

    def __init__(self) -> None:
        self.error: asyncio.Future[LinkError] = asyncio.get_running_loop().create_future()

    def admit(self, head: bytes, sizes: tuple[int, ...]) -> bool:
        return True

    def packet_received(self, packet: Packet) -> None:
        pass

    def link_closed(self, error: LinkError) -> None:
        self.error.set_result(error)


async def nonsense(address: str, *packets: Packet) -> LinkError:
    """A proper link of a stranger, and improper messages on it; how the node ended it."""
    transport = WebSocketTransport(Identity.generate(), trust=Open())
    link = await transport.dial(address)
    ended = _Ended()
    link.start(ended)
    for packet in packets:
        link.send(packet)
    return await ended.error


async def test_a_course_goes_on_whatever_strangers_and_a_hostile_client_send(tmp_path: Path) -> None:
    course = written(tmp_path, FEDAVG.replace("rounds = 3", "rounds = 6\ndeadline_seconds = 1.5"))
    lies = [floats(*[math.nan] * 2410), None, floats(1, 2, 3)]
    async with (
        node(tmp_path / "hub", "--course", str(course), "--listen", ":0") as hub,
        node(tmp_path / "honest", "--peers", await hub.address()) as honest,
        Node(Saboteur(lies), peers=[await hub.address()], name="saboteur") as saboteur,
    ):
        address = await hub.address()
        await garbage(address)
        huge = Packet(b'{"t":1,"m":"Update"}', (memoryview(bytes(1 << 24)),))
        for packet in (Packet(b"\xff" * 100), Packet(b"[" * 100_000), Packet(b"{}"), huge):
            assert isinstance(await nonsense(address, packet), LinkError)
        [peer] = await saboteur.linked()
        text = await peer.ask(FetchCourse())
        seated = await peer.ask(Join(text.hash, "saboteur", None))
        assert seated.seat is not None
        await saboteur.members.announce(seat=seated.seat)
        assert await hub.end() == 0
        assert await honest.end() == 0
    blameless(hub, honest)
    rounds = [row for row in hub.rows if row["kind"] == "round"]
    told = [row["text"] for row in hub.rows if row["kind"] == "event"]
    assert [row["participants"] for row in rounds] == [1] * 6
    for words in (
        "NaN or infinite",
        "nothing came before the deadline",
        "another shape than agreed",
        "broke the protocol",
    ):
        assert any(words in text for text in told), told
    reports = [next(row for row in process.rows if row["kind"] == "report") for process in (hub, honest)]
    assert reports[0]["model_hash"] == reports[1]["model_hash"]


async def shown(capsys: pytest.CaptureFixture[str], words: str) -> str:
    """The first line with these words, once this process has written it."""
    while True:
        for line in capsys.readouterr().out.splitlines():
            if words in line:
                return line
        await asyncio.sleep(0.05)


async def test_who_may_not_join_is_told_why_and_the_node_lives_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    NetworkKey.generate().save(tmp_path / "ours.key")
    NetworkKey.generate().save(tmp_path / "theirs.key")
    friend = Identity.load_or_create(tmp_path / "friend.key").peer_id
    course = str(written(tmp_path, FEDAVG))
    guarded = ("--network-key", str(tmp_path / "ours.key"), "--allow", friend)
    async with node(tmp_path / "hub", "--course", course, "--listen", ":0", *guarded) as hub:
        address = await hub.address()
        for name, key, words in (
            ("keyless", "theirs.key", "does not decrypt: the other end has another network key"),
            ("stranger", "ours.key", "is not on the allow list: add "),
        ):
            joining = asyncio.create_task(
                joined(tmp_path / name, "--peers", address, "--network-key", str(tmp_path / key))
            )
            await hub.row("event", words)
            await shown(capsys, "the other end refused the handshake: compare network keys, names and trust")
            joining.cancel()
            await asyncio.wait((joining,))
        assert hub.alive
        hub.interrupt()
        assert await hub.end() == 0
    blameless(hub)


async def test_nobody_at_the_address_is_tried_again_and_told_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as closed:  # bound and not listening: nobody else gets the port
        closed.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{closed.getsockname()[1]}"
        joining = asyncio.create_task(joined(tmp_path / "lonely", "--peers", address))
        line = await shown(capsys, "no link to")
        await shown(capsys, "no link to")
        joining.cancel()
        await asyncio.wait((joining,))
    assert re.fullmatch(
        rf"no link to {address}: ws://{address}/p2pfl/v1: Connection refused: is the node running there, and the port "
        r"right\? \(next try in \d\.\d s\)",
        line,
    )


def test_a_port_in_use_is_one_line_and_exit_code_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    course = written(tmp_path, FEDAVG)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        identity = ["--identity", str(tmp_path / "identity.key")]
        assert main(["node", "--course", str(course), "--listen", f":{port}", *identity]) == 2
    said = capsys.readouterr().err
    assert re.fullmatch(rf"error: cannot listen at ws://127.0.0.1:{port}/p2pfl/v1: Address already in use: .*\n", said)
