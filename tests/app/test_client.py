"""A host without torch takes part in a course: what it refuses, and the whole of it with real processes."""

from __future__ import annotations

import asyncio
import sys
from asyncio.subprocess import PIPE
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load

from p2pfl.app.build import prepare
from p2pfl.app.cli import main
from p2pfl.app.client import Client, ClientOptions
from p2pfl.app.config import load_config
from p2pfl.app.host import Host
from p2pfl.app.node_options import host_command
from p2pfl.app.simulate import simulate
from p2pfl.app.station import StationOptions
from p2pfl.errors import ConfigError
from tests.end_to_end.process import Running, node, places

COURSE = """
seed = 7
[course]
name = "fedavg"
rounds = 3
evaluate = "both"
[topology]
n = 3
[partition]
scheme = "dirichlet"
[model]
name = "logistic"
[train]
lr = 0.5
epochs = 4
batch_size = 2000
"""
MINE = """
from pathlib import Path
import numpy as np
from p2pfl.learn.files import read_npz

data = read_npz(Path(__file__).with_name("mine.npz"))
x, y = data["x"], data["y"]

def shares(weights):
    logits = x @ weights["1.weight"].T + weights["1.bias"]
    odds = np.exp(logits - logits.max(1, keepdims=True))
    return odds / odds.sum(1, keepdims=True)

def fit(weights, spec):
    losses = []
    for _ in range(spec.epochs):
        found = shares(weights)
        losses.append(-np.log(found[np.arange(len(y)), y]).mean())
        error = (found - np.eye(10, dtype=np.float32)[y]) / len(y)
        weights["1.weight"] -= spec.lr * error.T @ x
        weights["1.bias"] -= spec.lr * error.sum(0)
    return weights, len(y), float(np.mean(losses))

def score(weights):
    found = shares(weights)
    return float(-np.log(found[np.arange(len(y)), y]).mean()), float((found.argmax(1) == y).mean()), len(y)
"""
WITHOUT_TORCH = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "torch":
            raise ImportError("there is no torch here")
sys.meta_path.insert(0, Blocked())
from p2pfl.app.cli import run
run()
"""


async def client(home: Path, *options: str) -> Running:
    """`p2pfl client` in a process that cannot import torch."""
    place = ("--identity", str(home / "client.key"), "--known-peers", str(home / "known.json"), "--json")
    command = (sys.executable, "-W", "error", "-X", "dev", "-c", WITHOUT_TORCH, "client", *options, *place)
    return Running(await asyncio.create_subprocess_exec(*command, stdout=PIPE, stderr=PIPE, limit=1 << 20))


@pytest.mark.sockets
async def test_a_process_without_torch_takes_part_and_the_model_is_the_same(tmp_path: Path) -> None:
    """Seat 2 trains by softmax regression written out in numpy; in the simulation torch trains it."""
    course, mine = tmp_path / "course.toml", tmp_path / "mine.py"
    course.write_text(COURSE)
    mine.write_text(MINE)
    setup = prepare(load_config(course))
    x, y = setup.dataset.batch(setup.shards[2].indices)
    np.savez(tmp_path / "mine.npz", x=x.flatten(1).numpy(), y=y.numpy())
    async with node(tmp_path / "0", "--course", str(course), "--listen", ":0") as hub:
        peers = ("--peers", await hub.address())
        model = tmp_path / "model.safetensors"
        numpy = await client(
            tmp_path, *peers, "--fit", f"{mine}:fit", "--score", f"{mine}:score", "--seat", "2", "--model", str(model)
        )
        try:
            torch_host = Host(*host_command([*peers, *places(tmp_path / "1"), "--compute", "inline", "--seat", "1"]))
            assert [await torch_host.run(), await hub.end(), await numpy.end()] == [0, 0, 0]
        finally:
            await numpy.stop()
    assert numpy.complaints == hub.complaints == ""
    ended, told = await numpy.row("report"), await hub.row("report")
    assert ended["model_hash"] == told["model_hash"]
    assert ended["seat"] == 2
    simulated = await asyncio.to_thread(simulate, setup)
    weights = load(model.read_bytes())
    assert sorted(weights) == ["1.bias", "1.weight"]
    found = torch.cat([weights["1.weight"].flatten(), weights["1.bias"]])
    torch.testing.assert_close(found, simulated.params, atol=1e-6, rtol=0)
    expected = simulated.rounds[-1].metrics
    assert told["metrics"] == pytest.approx(expected, abs=1e-5)
    assert "client_accuracy" in expected


@pytest.mark.sockets
@pytest.mark.parametrize(
    "changed",
    [
        COURSE.replace("fedavg", "scaffold"),
        COURSE + '[compress.up]\nvalues = "float16"\n',
        COURSE.replace("fedavg", "dpsgd").replace('evaluate = "both"', ""),
    ],
    ids=["scaffold", "compressed", "dpsgd"],
)
async def test_a_course_whose_clients_do_more_is_refused(changed: str, tmp_path: Path) -> None:
    course, mine = tmp_path / "course.toml", tmp_path / "mine.py"
    course.write_text(changed)
    mine.write_text("def fit(weights):\n    return weights, 1, 0.0\n")
    hub = Host(
        *host_command(["--course", str(course), "--listen", ":0", *places(tmp_path / "0"), "--compute", "inline"])
    )
    leading = asyncio.create_task(hub.run())
    async with asyncio.timeout(30):
        while not hub.node.addresses:
            await hub.node.change()
        options = StationOptions(identity=tmp_path / "client.key", peers=tuple(hub.node.addresses))
        with pytest.raises(
            ConfigError, match=r"does more than to train .*; install torch and join with python -m p2pfl"
        ):
            await Client(ClientOptions(f"{mine}:fit", node=options)).run()
    leading.cancel()
    await asyncio.wait([leading])


def test_mistakes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mine = tmp_path / "mine.py"
    mine.write_text("def fit(weights):\n    return weights, 1, 0.0\n")
    place = ["--identity", str(tmp_path / "client.key")]
    assert main(["client", "--fit", f"{mine}:fit", *place]) == 2
    assert "give --peers ADDRESS" in capsys.readouterr().err
    assert main(["client", "--peers", "127.0.0.1:1", *place]) == 2
    assert "--fit" in capsys.readouterr().err
    assert main(["client", "--peers", "127.0.0.1:1", "--fit", f"{mine}:fitt", *place]) == 2
    assert "has no class or function 'fitt'" in capsys.readouterr().err
