"""What a run leaves behind."""

from __future__ import annotations

from pathlib import Path

import orjson
import pytest
import torch
from safetensors.torch import load_file

from p2pfl.app.config import from_mapping
from p2pfl.app.run import RunFolder
from p2pfl.learn.params import model_hash
from p2pfl.errors import ConfigError
from p2pfl.learn.params import Layout, flatten

CONFIG = from_mapping({"course": {"name": "fedavg"}})


def test_a_folder_has_everything(tmp_path: Path) -> None:
    module = torch.nn.Linear(3, 2)
    with RunFolder(tmp_path, CONFIG) as folder:
        folder.metrics(round=1, accuracy=0.5)
        folder.metrics(round=2, accuracy=0.75)
        folder.log("something happened")
        folder.model(Layout.of(module), flatten(module))
        folder.report({"rounds": 2})
    rows = [orjson.loads(line) for line in (folder.path / "metrics.jsonl").read_text().splitlines()]
    assert rows == [{"round": 1, "accuracy": 0.5}, {"round": 2, "accuracy": 0.75}]
    assert "something happened" in (folder.path / "log.txt").read_text()
    saved = load_file(folder.path / "model.safetensors")
    assert torch.equal(saved["weight"], module.weight)
    assert orjson.loads((folder.path / "report.json").read_bytes()) == {"rounds": 2}
    assert from_mapping(orjson.loads((folder.path / "course.json").read_bytes())) == CONFIG
    assert not list(folder.path.glob(".*"))


def test_runs_of_one_second_have_folders_of_their_own(tmp_path: Path) -> None:
    with RunFolder(tmp_path, CONFIG) as first, RunFolder(tmp_path, CONFIG) as second:
        assert first.path != second.path


def test_lines_are_there_before_the_end(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path, CONFIG, "mine")
    folder.metrics(round=1)
    assert (tmp_path / "mine" / "metrics.jsonl").read_text() == '{"round":1}\n'
    with folder:
        pass


def test_a_folder_that_cannot_be_made_is_a_mistake_of_the_user(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be written"):
        RunFolder(tmp_path / "file", CONFIG)


def test_the_hash_is_of_every_bit() -> None:
    vector = torch.arange(5.0)
    other = vector.clone()
    assert model_hash(vector) == model_hash(other)
    other[3] = torch.nextafter(other[3], torch.tensor(9.0))
    assert model_hash(vector) != model_hash(other)


def test_a_new_run_under_an_old_name_finds_nothing_of_the_old_one(tmp_path: Path) -> None:
    for name in ("checkpoint.safetensors", "model.safetensors", "report.json"):
        (tmp_path / "mine").mkdir(exist_ok=True)
        (tmp_path / "mine" / name).write_bytes(b"old")
    with RunFolder(tmp_path, CONFIG, "mine") as folder:
        assert sorted(file.name for file in folder.path.iterdir()) == ["course.json", "log.txt", "metrics.jsonl"]
