"""The names that `import p2pfl` offers: they resolve, they are documented, and what is logged reads well."""

import subprocess
import sys
import typing

import pytest

import p2pfl
from p2pfl import MemoryNetwork, Node, Topology
from p2pfl.topology import build

HEAVY = ("torch", "aiohttp", "networkx", "numpy", "nacl")


@pytest.mark.parametrize("name", p2pfl.__all__)
def test_exports_resolve_and_are_documented(name) -> None:
    value = getattr(p2pfl, name)
    assert value.__name__ == name
    written = value.__doc__ or ""
    assert written.strip(), f"{name} has no docstring"
    assert not written.startswith(f"{name}("), f"the docstring of {name} is one that dataclasses make up"


def test_every_export_is_known_to_type_checkers_and_at_run_time() -> None:
    assert set(p2pfl.__all__) == set(p2pfl._HOMES)
    assert set(p2pfl.__all__) <= set(dir(p2pfl))


def test_no_other_name() -> None:
    with pytest.raises(AttributeError, match="module 'p2pfl' has no attribute 'Nod'"):
        typing.cast("typing.Any", p2pfl).Nod  # noqa: B018 - to look is the test


def loaded_by(code: str) -> set[str]:
    """Which of the slow packages a fresh interpreter has loaded after running `code`."""
    script = f"{code}\nimport sys\nprint(*[name for name in {HEAVY!r} if name in sys.modules])"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(run.stdout.split())


@pytest.mark.parametrize(
    ("code", "allowed"),
    [
        ("import p2pfl", set()),
        ("from p2pfl import Message, Request, Tensors, Node, Peer, MemoryNetwork, RemoteError, RoundEnded", set()),
        ("from p2pfl import Topology", set()),
        ("from p2pfl import Identity, NetworkKey", {"nacl"}),
        ("from p2pfl import WebSocketTransport", {"aiohttp", "nacl"}),
    ],
)
def test_names_load_no_more_than_they_need(code, allowed) -> None:
    assert loaded_by(code) <= allowed


async def test_representations_are_one_line() -> None:
    network = MemoryNetwork()
    async with (
        Node(transport=network.transport("hub"), listen="hub", name="hub", seat=0) as hub,
        Node(transport=network.transport("leaf"), peers=["hub"], name="leaf") as leaf,
    ):
        await leaf.meet([0])
        (peer,) = leaf.peers
        (link, *_) = next(iter(network.links.values()))
        assert repr(hub) == "<Node hub seat 0 on memory:hub, 1 peers>"
        assert repr(leaf) == "<Node leaf, 1 peers>"
        assert repr(peer) == "<Peer hub seat 0 linked>"
        shown = repr(link)
        assert shown.startswith("<MemoryLink")
        assert "\n" not in shown
        assert {"hub", "leaf"} <= set(shown.replace(">", " ").replace("<", " ").split()), shown
    assert repr(peer).endswith("not linked>")


def test_the_representation_of_a_topology_is_one_line() -> None:
    topology = build("ring", n=4)
    assert isinstance(topology, Topology)
    shown = repr(topology)
    assert shown.startswith("<Topology")
    assert "\n" not in shown
    assert len(shown) < 120
