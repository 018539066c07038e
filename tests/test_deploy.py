"""The examples of deployment: their commands are those of this version, and they reach for no registry of their own."""

from __future__ import annotations

import http.client
import json
import re
import shlex
from configparser import ConfigParser
from pathlib import Path
from typing import Any

import pytest

from p2pfl.app.exits import Exit
from p2pfl.app.metrics import NodeMetrics
from p2pfl.app.node_options import host_command
from p2pfl.app.progress import CourseProgress
from p2pfl.link.memory import MemoryNetwork
from p2pfl.node.lag import LoopLag
from tests.node.kit import make

DEPLOY = Path(__file__).parents[1] / "examples" / "deploy"
ROOT = DEPLOY.parents[1]


def read(name: str) -> str:
    return (DEPLOY / name).read_text(encoding="utf-8")


def instructions() -> list[tuple[str, str]]:
    """Those of the Dockerfile: what to do, and with what."""
    text = re.sub(r"\\\n\s*", "", re.sub(r"^#.*\n", "", read("Dockerfile"), flags=re.MULTILINE))
    return [(line.partition(" ")[0], line.partition(" ")[2].strip()) for line in text.splitlines() if line.strip()]


def listed(instruction: str) -> list[str]:
    """The words of an instruction that is given as a list."""
    [given] = [rest for name, rest in instructions() if name == instruction]
    words: list[str] = json.loads(given[given.index("[") :])
    return words


def yaml_of(name: str) -> Any:
    return pytest.importorskip("yaml").safe_load(read(name))


@pytest.fixture
def unit() -> ConfigParser:
    parser = ConfigParser(interpolation=None, strict=True, delimiters=("=",), comment_prefixes=("#",))
    parser.optionxform = str  # type: ignore[method-assign,assignment]  # names of systemd have capitals
    parser.read_string(re.sub(r"\\\n\s*", "", read("p2pfl-node.service")))
    return parser


# -- systemd -----------------------------------------------------------------------------------------------------------


def test_the_unit_starts_a_node_of_this_version(unit: ConfigParser) -> None:
    program, command, *arguments = shlex.split(unit["Service"]["ExecStart"])
    assert (Path(program).name, command) == ("p2pfl", "node")
    options, course, data = host_command(arguments)
    assert options.peers
    assert options.monitor.metrics_listen.startswith(":")  # this machine only
    assert course is None
    assert data.source


def test_the_unit_goes_by_the_exit_codes(unit: ConfigParser) -> None:
    service = unit["Service"]
    assert service["Restart"] == "on-failure"
    assert service["RestartPreventExitStatus"] == str(int(Exit.MISTAKE))
    assert service["KillSignal"] == "SIGTERM"
    assert int(service["TimeoutStopSec"]) > 5


def test_the_unit_writes_nowhere_but_in_its_state_folder(unit: ConfigParser) -> None:
    service = unit["Service"]
    assert service["WorkingDirectory"] == f"/var/lib/{service['StateDirectory']}"
    assert service["ProtectSystem"] == "strict"
    assert service["NoNewPrivileges"] == "yes"
    assert service["CapabilityBoundingSet"] == ""
    assert "ReadWritePaths" not in service
    assert unit["Install"]["WantedBy"] == "multi-user.target"


# -- containers --------------------------------------------------------------------------------------------------------


def test_the_image_starts_a_node_that_is_not_root() -> None:
    assert listed("ENTRYPOINT")[:2] == ["p2pfl", "node"]
    assert [int(rest) for name, rest in instructions() if name == "USER"][-1] > 0
    assert [rest for name, rest in instructions() if name == "WORKDIR"][-1] == "/var/lib/p2pfl"


def test_the_image_takes_nothing_but_what_is_there() -> None:
    copied = [rest.split() for name, rest in instructions() if name == "COPY" and not rest.startswith("--from=build")]
    assert copied
    for *sources, _ in copied:
        assert all((ROOT / source).exists() for source in sources)


@pytest.mark.parametrize(("answer", "left_with"), [(200, 0), (503, 1)])
def test_the_health_check_goes_by_the_status(answer: int, left_with: int, monkeypatch: pytest.MonkeyPatch) -> None:
    python, dash, program = listed("HEALTHCHECK")
    assert (python, dash) == ("python", "-c")
    asked: list[object] = []

    class Connection:
        status = answer

        def __init__(self, host: str, port: int, timeout: float) -> None:
            asked.append((host, port))

        def request(self, method: str, path: str) -> None:
            asked.append((method, path))

        def getresponse(self) -> Connection:
            return self

    monkeypatch.setattr(http.client, "HTTPConnection", Connection)
    with pytest.raises(SystemExit) as left:
        exec(program, {})
    assert int(left.value.code or 0) == left_with
    port = int(host_command([*listed("ENTRYPOINT")[2:], "--peers", "x:1"])[0].monitor.metrics_listen.partition(":")[2])
    assert asked == [("127.0.0.1", port), ("GET", "/healthz")]


def test_compose_has_a_coordinator_and_clients_of_this_version() -> None:
    services = yaml_of("compose.yaml")["services"]
    assert sorted(services) == ["coordinator", "key", "north", "south"]
    names = []
    for name, service in services.items():
        if name == "key":
            continue
        mounted = {target: source for source, target, *_ in (volume.split(":") for volume in service["volumes"])}
        arguments = [*listed("ENTRYPOINT")[2:], *service["command"]]
        here = [_found_here(argument, mounted) for argument in arguments]
        options, course, _ = host_command(here)
        names.append(options.name)
        assert (course is not None) is (name == "coordinator")
        if course is not None:
            assert course.topology.n == len(services) - 1
            assert options.listen
        else:
            assert [peer.partition(":")[0] for peer in options.peers] == ["coordinator"]
        assert options.network_key is not None
        assert str(options.network_key.parent) in mounted
        assert mounted["/var/lib/p2pfl"] == name
        assert service["cap_drop"] == ["ALL"]
    assert names == ["coordinator", "north", "south"]


def _found_here(argument: str, mounted: dict[str, str]) -> str:
    """An argument with a file of the container where it lies on this machine."""
    option, equals, value = argument.partition("=")
    source = mounted.get(value, "")
    return f"{option}={(DEPLOY / source).resolve()}" if equals and source.startswith(".") else argument


def test_compose_declares_what_it_mounts_and_builds_what_is_there() -> None:
    compose = yaml_of("compose.yaml")
    mounted = {volume.partition(":")[0] for service in compose["services"].values() for volume in service["volumes"]}
    assert {name for name in mounted if "/" not in name} == set(compose["volumes"])
    assert all((DEPLOY / name).is_file() for name in mounted if "/" in name)
    for service in compose["services"].values():
        assert (
            DEPLOY / service["build"]["context"] / service["build"]["dockerfile"]
        ).resolve() == DEPLOY / "Dockerfile"


def test_prometheus_asks_the_nodes_where_they_answer() -> None:
    services = set(yaml_of("compose.yaml")["services"]) - {"key"}
    [job] = yaml_of("prometheus.yml")["scrape_configs"]
    targets = [target for group in job["static_configs"] for target in group["targets"]]
    port = host_command([*listed("ENTRYPOINT")[2:], "--peers", "x:1"])[0].monitor.metrics_listen.rpartition(":")[2]
    assert sorted(targets) == sorted(f"{name}:{port}" for name in services)


def test_no_registry_is_named() -> None:
    """The first part of an image's name is a host if it has a dot or a colon in it."""
    stages = {rest.partition(" AS ")[2] for name, rest in instructions() if name == "FROM"}
    images = {rest.split()[0] for name, rest in instructions() if name == "FROM"} - stages
    images |= set(re.findall(r"^\s*image:\s*(\S+)", read("compose.yaml"), re.MULTILINE))
    assert images == {"python:3.12-slim", "p2pfl"}
    for path in DEPLOY.iterdir():
        assert not re.search(r"\b(ghcr|quay|gcr|docker)\.io\b|index-url", path.read_text(encoding="utf-8")), path


# -- what is written about them ----------------------------------------------------------------------------------------


async def test_metrics_that_are_named_are_there() -> None:
    async with make(MemoryNetwork(), "a", seat=0) as node:
        said = NodeMetrics(node, LoopLag(), CourseProgress()).exposition().decode()
    named = set(re.findall(r"\b(?:p2pfl|process)_\w+", read("README.md")))
    assert len(named) > 10
    there = set(re.findall(r"^# TYPE (\S+)", said, re.MULTILINE))
    assert {name.removesuffix("_count") for name in named} <= there


def test_exit_codes_are_those_of_the_command() -> None:
    assert [int(code) for code in re.findall(r"^\| (\d+) \|", read("README.md"), re.MULTILINE)] == list(Exit)


def test_every_file_is_introduced() -> None:
    linked = set(re.findall(r"\]\(([\w.-]+)\)", read("README.md")))
    assert linked == {path.name for path in DEPLOY.iterdir()} - {"README.md"}
