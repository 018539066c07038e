"""What a run leaves behind."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import orjson
import pytest
import torch
from safetensors.torch import load_file

from p2pfl.app.config import from_mapping
from p2pfl.app.run import RunFolder, RunMark, unfinished
from p2pfl.errors import ConfigError
from p2pfl.learn.params import Layout, flatten, model_hash

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


def test_what_clients_have_found_is_kept_by_line_and_goes_back_with_the_run(tmp_path: Path) -> None:
    with RunFolder(tmp_path, CONFIG) as folder:
        for round in (1, 2):
            folder.metrics(round=round)
            folder.clients(round, {3: {"loss": 0.5}, 4: {"loss": 1.5}})
    with RunFolder.reopen(folder.path, rounds=1) as again:
        again.clients(2, {3: {"loss": 0.25}})
    rows = [orjson.loads(line) for line in (folder.path / "clients.jsonl").read_text().splitlines()]
    assert [(row["round"], row["seat"], row["loss"]) for row in rows] == [(1, 3, 0.5), (1, 4, 1.5), (2, 3, 0.25)]
    with RunFolder(tmp_path, CONFIG, folder.path.name):
        assert not (folder.path / "clients.jsonl").exists(), "they are of another run"


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


MARK = RunMark("run-1", "course-1", "peer-1", 3)


def begun(base: Path, name: str, mark: RunMark = MARK) -> RunFolder:
    folder = RunFolder(base, CONFIG, name)
    folder.mark(mark)
    return folder


def test_a_run_that_did_not_end_is_found_by_who_played_it(tmp_path: Path) -> None:
    with begun(tmp_path, "a"):
        assert unfinished(tmp_path, "peer-1") is None, "its process is alive"
    assert unfinished(tmp_path, "peer-1") == (tmp_path / "a", MARK)
    assert unfinished(tmp_path, "peer-2") is None
    assert unfinished(tmp_path, "peer-1", course="course-1", run="run-1", name="a") == (tmp_path / "a", MARK)
    for other in ({"course": "course-2"}, {"run": "run-2"}, {"name": "b"}):
        assert unfinished(tmp_path, "peer-1", **other) is None
    assert unfinished(tmp_path / "nowhere", "peer-1") is None


def test_a_run_that_ended_is_not_gone_on_with(tmp_path: Path) -> None:
    with begun(tmp_path, "a") as folder:
        folder.report({})
    assert unfinished(tmp_path, "peer-1") is None


def test_the_newest_is_gone_on_with(tmp_path: Path) -> None:
    for age, name in enumerate(["new", "old", "older"]):
        with begun(tmp_path, name, replace(MARK, run=name)):
            pass
        os.utime(tmp_path / name / "log.txt", (1e9 - age, 1e9 - age))
    found = unfinished(tmp_path, "peer-1")
    assert found is not None
    assert found[1].run == "new"


def test_a_damaged_mark_is_none(tmp_path: Path) -> None:
    with begun(tmp_path, "a"):
        pass
    (tmp_path / "a" / "run.json").write_text('{"run": 3')
    assert unfinished(tmp_path, "peer-1") is None


def test_a_line_that_was_torn_is_dropped_and_rounds_that_were_not_committed(tmp_path: Path) -> None:
    with RunFolder(tmp_path, CONFIG, "a") as folder:
        for round in (1, 2, 3):
            folder.metrics(round=round)
    path = tmp_path / "a" / "metrics.jsonl"
    with path.open("a") as file:
        file.write('{"rou')
    with RunFolder.reopen(tmp_path / "a", 2) as folder:
        folder.metrics(round=3, again=True)
        assert folder.earlier == [{"round": 1}, {"round": 2}]
    assert path.read_text() == '{"round":1}\n{"round":2}\n{"round":3,"again":true}\n'


def test_a_new_run_under_an_old_name_keeps_nothing_of_the_journal(tmp_path: Path) -> None:
    with begun(tmp_path, "a"):
        for name in ("journal.sqlite", "journal.sqlite-wal", "round-000003.safetensors", "kept-update.safetensors"):
            (tmp_path / "a" / name).write_bytes(b"old")
    with RunFolder(tmp_path, CONFIG, "a"):
        pass
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["course.json", "log.txt", "metrics.jsonl"]
