"""The doctor and its patients over real sockets of this host: each way in which a link can be ill is provoked."""

from __future__ import annotations

import asyncio
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import orjson
import pytest
from aiohttp import web

from p2pfl.app.config import course_hash, load_config, with_topology
from p2pfl.app.console import Display
from p2pfl.app.identity_options import IdentityOptions
from p2pfl.app.software import own_software
from p2pfl.crypto.identity import Identity, NetworkKey
from p2pfl.doctor.doctor import DoctorOptions, check_links, doctor_command
from p2pfl.errors import ConfigError
from p2pfl.link.base import LinkLimits
from p2pfl.link.secure import Versions
from p2pfl.link.tls import TlsSettings
from p2pfl.link.trust import AllowList, Open
from p2pfl.link.websocket import WebSocketTransport
from p2pfl.node.node import Node
from p2pfl.node.probing import Probed, Software
from tests.link import certificates

DIGITS = Path(__file__).parents[2] / "examples" / "digits.toml"
HUB = Identity.from_seed(bytes([1]) * 32)


@asynccontextmanager
async def patient(
    listen: str = "127.0.0.1:0", peers: tuple[str, ...] = (), clock: float = 0.0, **options: Any
) -> AsyncIterator[Node]:
    """A node of a host, with whatever is wrong with it."""
    software, course = options.pop("software", own_software()), options.pop("course", "")
    transport = WebSocketTransport(options.pop("identity", HUB), **{"trust": Open()} | options)
    node = Node(transport=transport, listen=listen, peers=peers, name="hub")
    role = Probed(node, software, lambda: time.time() + clock)
    role.course = course
    node.add(role)
    async with node:
        yield node


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


class Diagnosis:
    def __init__(self, code: int, out: str) -> None:
        self.code = code
        self.peers = [orjson.loads(line) for line in out.splitlines()]

    @property
    def only(self) -> dict[str, Any]:
        (peer,) = self.peers
        return peer

    @property
    def sentences(self) -> str:
        return "\n".join(advice["sentence"] for peer in self.peers for advice in peer["advice"])


@pytest.fixture
def doctor(home: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    async def run(*peers: str, course: str = "", **options: Any) -> Diagnosis:
        own = {name: options.pop(name) for name in ("listen", "all", "seconds") if name in options}
        links = IdentityOptions(**{"identity": home / "doctor.key"} | options)
        given = DoctorOptions(peers, json=True, megabytes=0.2, links=links, **own)
        capsys.readouterr()
        code = await check_links(given, course, Display(as_json=True, total=1))
        return Diagnosis(code, capsys.readouterr().out)

    return run


pytestmark = pytest.mark.sockets


async def test_all_well(doctor: Any) -> None:
    async with patient() as hub:
        found = await doctor(hub.addresses[0], listen="127.0.0.1:0")
    assert found.code == 0
    peer = found.only
    assert (peer["kind"], peer["link"], peer["peer_id"], peer["advice"]) == ("peer", "direct", HUB.peer_id, [])
    assert peer["suite"].startswith("Noise_XX_25519_")
    assert peer["trust"] == "open"
    assert peer["dialled_back"] == "reached"
    assert peer["down_mbit"] > 0
    assert peer["up_mbit"] > 0
    assert 0 < peer["rtt_ms"] < 10_000
    assert peer["described"]["name"] == "hub"
    assert peer["described"]["p2pfl"] == own_software().p2pfl


def closed_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port: int = taken.getsockname()[1]
        return port


async def test_peers_side_by_side_that_do_not_answer(doctor: Any) -> None:
    port = closed_port()
    async with patient() as hub:
        found = await doctor("nowhere.invalid:1", f"127.0.0.1:{port}", hub.addresses[0], *hub.addresses)
    assert found.code == 1
    assert [peer["link"] for peer in found.peers] == ["unknown name", "connection refused", "direct"]
    assert "the name nowhere.invalid does not resolve" in found.sentences
    assert f"start the node there with --listen 0.0.0.0:{port}" in found.sentences


async def test_two_addresses_of_one_node(doctor: Any) -> None:
    async with patient() as hub:
        port = hub.addresses[0].rpartition(":")[2].partition("/")[0]
        found = await doctor(f"127.0.0.1:{port}", f"localhost:{port}")
    assert found.code == 0
    assert sorted(peer["same_as"] == "" for peer in found.peers) == [False, True]


@asynccontextmanager
async def mute() -> AsyncIterator[tuple[str, asyncio.Semaphore]]:
    """The address of somebody who takes connections and says nothing, and how many there have been."""
    dialled, visits = asyncio.Semaphore(0), set()

    async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        visits.add(asyncio.current_task())
        dialled.release()
        with suppress(OSError):
            await reader.read()
        writer.close()

    server = await asyncio.start_server(listen, "127.0.0.1", 0)
    yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}", dialled
    server.close()
    await asyncio.wait(visits)


async def test_a_port_that_accepts_and_says_nothing(doctor: Any) -> None:
    async with mute() as (address, _):
        found = await doctor(address, seconds=1.0)
    assert found.only["link"] == "no answer"
    assert "open TCP port" in found.sentences


async def test_something_else_answers(doctor: Any) -> None:
    runner = web.AppRunner(web.Application())
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    found = await doctor(f"127.0.0.1:{runner.addresses[0][1]}")
    await runner.cleanup()
    assert found.only["link"] == "no p2pfl node"
    assert "HTTP 404" in found.sentences


@pytest.fixture
def tls(home: Path) -> TlsSettings:
    for name, text in (("ca", certificates.CA), ("cert", certificates.CERTIFICATE), ("key", certificates.KEY)):
        (home / name).write_text(text)
    return TlsSettings(home / "cert", home / "key", home / "ca")


async def test_tls(doctor: Any, tls: TlsSettings, home: Path) -> None:
    files = {"tls_cert": tls.cert, "tls_key": tls.key, "tls_ca": tls.ca}
    async with patient(tls=tls) as hub:
        (address,) = hub.addresses
        well = await doctor(address, listen="127.0.0.1:0", **files)
        unknown_authority = await doctor(address)
        not_spoken = await doctor(address.replace("wss://", "ws://"))
    assert (well.code, well.only["dialled_back"]) == (0, "reached")
    assert unknown_authority.only["link"] == "TLS failed"
    assert "give --tls-ca the authority of its certificate" in unknown_authority.sentences
    assert not_spoken.only["link"] == "no p2pfl node"
    assert "write wss://" in not_spoken.sentences


@pytest.mark.parametrize(("ours", "theirs"), [("a", "b"), ("a", None), (None, "a")])
async def test_another_network_key(doctor: Any, home: Path, ours: str | None, theirs: str | None) -> None:
    keys = {name: home / f"{name}.key" for name in "ab"}
    for key in keys.values():
        NetworkKey.generate().save(key)
    async with patient(network_key=NetworkKey.load(keys[theirs]) if theirs else None) as hub:
        found = await doctor(hub.addresses[0], network_key=keys[ours] if ours else None)
    assert found.only["link"] == "handshake failed"
    assert "give the same --network and --network-key at both ends" in found.sentences


async def test_another_network_name(doctor: Any) -> None:
    async with patient(network_name="other") as hub:
        found = await doctor(hub.addresses[0])
    assert found.only["link"] == "handshake failed"
    assert "in a network of another name" in found.sentences


async def test_who_is_not_trusted_here(doctor: Any) -> None:
    stranger = Identity.from_seed(bytes([9]) * 32).peer_id
    async with patient() as hub:
        found = await doctor(hub.addresses[0], allow=(stranger,))
    assert found.only["link"] == "not trusted here"
    assert f"add {HUB.peer_id} if it belongs there" in found.sentences


async def test_who_does_not_trust_us(doctor: Any, home: Path) -> None:
    stranger = Identity.from_seed(bytes([9]) * 32).peer_id
    async with patient(trust=AllowList([stranger])) as hub:
        found = await doctor(hub.addresses[0])
    assert found.only["link"] == "does not trust us"
    assert f"add {Identity.load(home / 'doctor.key').peer_id} to its --allow" in found.sentences


async def test_pins(doctor: Any, home: Path) -> None:
    pins = {"trust": ("tofu",), "known_peers": home / "known_peers.json"}
    async with patient() as hub:
        (address,) = hub.addresses
        first, second = await doctor(address, **pins), await doctor(address, **pins)
    async with patient(address, identity=Identity.from_seed(bytes([2]) * 32)):
        third = await doctor(address, **pins)
    assert [found.only["trust"] for found in (first, second)] == ["tofu (pinned now)", "tofu (pinned)"]
    assert third.only["link"] == "not trusted here"
    assert "if the peer did change its key" in third.sentences


async def test_another_protocol_version(doctor: Any) -> None:
    async with patient() as hub:
        hub.transport.versions = Versions(2, 2)  # type: ignore[attr-defined]  # of a WebSocketTransport
        found = await doctor(hub.addresses[0])
    assert found.only["link"] == "other protocol"
    assert "upgrade p2pfl here" in found.sentences


async def test_other_software_and_a_clock_that_is_off(doctor: Any) -> None:
    async with patient(software=Software("0.0.9", "1", "3", "1.0", "x"), clock=-99) as hub:
        found = await doctor(hub.addresses[0])
    assert "runs p2pfl 0.0.9" in found.sentences
    assert "has torch 1.0" in found.sentences
    assert "its clock is 99 s behind this host's" in found.sentences


async def test_the_identity_of_the_peer_itself(doctor: Any, home: Path) -> None:
    Identity.load_or_create(home / "hub.key")
    async with patient(identity=Identity.load(home / "hub.key")) as hub:
        found = await doctor(hub.addresses[0], identity=home / "hub.key")
    assert found.only["link"] == "this node itself"


async def test_a_full_house(doctor: Any) -> None:
    async with patient(limits=LinkLimits(links=0)) as hub:
        found = await doctor(hub.addresses[0])
    assert found.only["link"] == "takes no link"
    assert "try again in a minute" in found.sentences


async def test_courses_that_differ(doctor: Any) -> None:
    second = Identity.from_seed(bytes([2]) * 32)
    async with patient(course="a" * 32) as one, patient(course="b" * 32, identity=second) as two:
        alone = await doctor(one.addresses[0])
        both = await doctor(one.addresses[0], two.addresses[0])
        ours = await doctor(one.addresses[0], course="c" * 32)
    assert alone.code == 0
    assert "plays the course bbbbbbbb, not aaaaaaaa" in both.sentences
    assert "plays the course aaaaaaaa, not cccccccc" in ours.sentences


async def test_all_whom_the_peers_know(doctor: Any) -> None:
    second, third = (Identity.from_seed(bytes([n]) * 32) for n in (2, 3))
    async with (
        patient() as hub,
        patient(peers=hub.addresses, identity=second),
        patient((), hub.addresses, identity=third),  # type: ignore[arg-type]  # it listens nowhere
    ):
        await hub.linked(2)
        few, everybody = await doctor(hub.addresses[0]), await doctor(hub.addresses[0], all=True)
    assert [peer["peer_id"] for peer in few.peers] == [HUB.peer_id]
    links = {peer["peer_id"]: peer["link"] for peer in everybody.peers}
    assert links == {HUB.peer_id: "direct", second.peer_id: "direct", third.peer_id: "dials out only"}
    assert everybody.code == 0
    assert "relays link it to others" in everybody.sentences


async def test_a_host_that_cannot_be_dialled_back(doctor: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    async with patient() as hub:

        async def firewall(*_: object) -> None:
            raise TimeoutError

        hub.transport.dial_back = firewall  # type: ignore[attr-defined, method-assign]  # of a WebSocketTransport
        found = await doctor(hub.addresses[0], listen="127.0.0.1:0")
    assert found.code == 1
    assert "cannot dial this host at the port of --listen" in found.sentences


async def test_dialling_back_pins_nobody(doctor: Any, home: Path) -> None:
    """A stranger that is let in could else have any port of its host pinned to itself."""
    from p2pfl.link.trust import Tofu

    async with patient(trust=Tofu(home / "pins.json")) as hub:
        found = await doctor(hub.addresses[0], listen="127.0.0.1:0")
    assert found.only["dialled_back"] == "reached"
    assert not (home / "pins.json").exists()


async def test_people_get_a_table_and_sentences(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    port = closed_port()
    async with patient(course="a" * 32) as hub:
        for address, code in ((hub.addresses[0], 0), (f":{port}", 1)):
            links = IdentityOptions(identity=home / "doctor.key")
            options = DoctorOptions((address,), megabytes=0.1, links=links)
            assert await check_links(options, "", Display(as_json=False, total=1)) == code
    said = capsys.readouterr().out
    for words in ("direct", "aaaaaaaa", "hub", "all well\n", f"! :{port}: the host refuses", "1 to mend\n"):
        assert words in said
    assert max(map(len, (line for line in said.splitlines() if line[:1] in "│┃┏"))) <= 80


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "--peers is missing"),
        (["--peers", "hub"], "the port is missing"),
        (["--peers", ":1", "--listen", "ftp://x"], "the scheme 'ftp' is unknown"),
        (["--peers", ":1", "--seconds", "0"], "--seconds is 0; it must be at least 1"),
        (["--peers", ":1", "--megabytes", "0"], "--megabytes is 0; it must be over 0 and at most 1000"),
        (["--peers", ":1", "--trust", "friends"], "'friends' is none of"),
        (["--peers", ":1", "--course", "none.toml"], "there is no course file none.toml"),
        (["--peers", ":1", "--listen", "0.0.0.0:0"], "'open' listens on loopback only"),
        (["--pers", ":1"], "did you mean --peers?"),
    ],
)
def test_mistakes_are_one_sentence(home: Path, arguments: list[str], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        doctor_command(arguments)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


async def test_a_course_file_is_what_all_should_have(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    right = course_hash(with_topology(load_config(DIGITS)))
    second = Identity.from_seed(bytes([2]) * 32)
    async with patient(course=right) as one, patient(course="b" * 32, identity=second) as two:
        arguments = ["--json", "--megabytes", "0.1", "--course", str(DIGITS)]
        codes = [
            await asyncio.to_thread(doctor_command, ["--peers", node.addresses[0], *arguments]) for node in (one, two)
        ]
    assert codes == [0, 1]
    assert f"not {right[:8]}" in capsys.readouterr().out


async def test_interrupted_it_ends_at_once_and_quietly(home: Path) -> None:
    command = (sys.executable, "-W", "error", "-c", "from p2pfl.app.cli import run; run()", "doctor")
    pipe = asyncio.subprocess.PIPE
    async with mute() as (address, dialled):
        process = await asyncio.create_subprocess_exec(*command, "--peers", address, stdout=pipe, stderr=pipe)
        for _ in range(2):  # to see whether it is open, and to link
            await dialled.acquire()
        process.send_signal(signal.SIGINT)
        out, err = await process.communicate()
    assert (process.returncode, out, err) == (130, b"", b"")
