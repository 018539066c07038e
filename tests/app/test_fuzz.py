"""`p2pfl fuzz`: for our courses and for a user's own, what it says of a bug, and what reproduces it."""

from __future__ import annotations

from pathlib import Path

import pytest

from p2pfl.app.cli import main
from p2pfl.app.fuzz import Failure, fuzz_command, try_seed
from p2pfl.app.trial import Trial
from p2pfl.courses.fedavg import FEDAVG, FedAvgSettings
from p2pfl.errors import ConfigError
from p2pfl.sim.nemesis import Crash
from p2pfl.topology.families import build

OWN = '''
from dataclasses import dataclass, replace
from p2pfl.courses.fedavg import FEDAVG, FedAvgSettings, Server

class Gullible(Server):
    """Believes that a node that was restarted has nothing to remember."""

    def resume(self, state):
        pass

def play(place):
    roles = FEDAVG.play(place)
    for role in roles:
        if isinstance(role, Server):
            role.__class__ = {role}
    return roles

@dataclass(frozen=True)
class Settings(FedAvgSettings):
    name: str = "gullible"
    rounds: int = 2

MINE = replace(FEDAVG, name="gullible", settings=Settings, play=play)
'''


@pytest.fixture(autouse=True)
def no_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("P2PFL_SEED", raising=False)


def own(folder: Path, role: str = "Gullible") -> str:
    path = folder / "mine.py"
    path.write_text(OWN.replace("{role}", role))
    return str(path)


def test_a_sound_course_passes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fuzz", "fedavg", "--seeds", "3", "--topologies", "star:4"]) == 0
    said = capsys.readouterr().out
    assert "fedavg on <Topology star: 4 seats" in said and "I1, I2, I3, I7, I8, I9, I10, I11, I12 must hold" in said
    assert "3 of 3 runs, of which 0 failed" in said


def test_what_is_added_up_in_secret_is_traced_all_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    """With the file's own settings traces would be rounded away."""
    assert main(["fuzz", str(Path(__file__).parents[2] / "examples" / "additive.toml"), "--seeds", "3"]) == 0
    assert "3 of 3 runs, of which 0 failed" in capsys.readouterr().out


def test_a_course_file_is_tried_on_its_own_topology(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "course.toml"
    path.write_text('[course]\nname = "dpsgd"\nrounds = 1\n[topology]\nfamily = "ring"\nn = 3\n')
    assert main(["fuzz", str(path), "--seeds", "2", "--faults", "delay,cut"]) == 0
    assert "dpsgd on <Topology ring: 3 seats" in capsys.readouterr().out


def test_a_bug_in_a_users_own_course_is_found_and_comes_again_under_its_seed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = own(tmp_path)
    assert main(["fuzz", mine, "--seeds", "20", "--faults", "crash", "--topologies", "star:3"]) == 1
    said = capsys.readouterr().out
    first = next(line for line in said.splitlines() if line.startswith("P2PFL_SEED="))
    assert "fails on <Topology star: 3 seats" in first
    assert "I3 is violated: seat 0 begins round 1 after it has committed" in said
    assert "these are enough:" in said and "seat 0 is killed" in said and "FAULT: seat 0 is killed" in said
    seed = first.split()[0].partition("=")[2]
    again = f"P2PFL_SEED={seed} p2pfl fuzz {mine} --topologies star:3 --faults crash"
    assert again in said
    shown = said[said.index(first) :].partition(again)[0]
    monkeypatch.setenv("P2PFL_SEED", seed)
    assert main(["fuzz", mine, "--topologies", "star:3", "--faults", "crash"]) == 1
    said = capsys.readouterr().out
    assert "1 of 1 runs, of which 1 failed" in said
    assert said[said.index(first) :].partition(again)[0] == shown
    assert main(["fuzz", own(tmp_path, "Server"), "--topologies", "star:3", "--faults", "crash"]) == 0


def test_side_by_side_the_same_is_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = []
    for jobs in ("1", "2"):
        arguments = [own(tmp_path), "--seeds", "8", "--faults", "crash", "--topologies", "star:3", "--jobs", jobs]
        fuzz_command(arguments)
        said.append(capsys.readouterr().out)
    assert said[0] == said[1]


def test_time_that_is_up_ends_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fuzz", "fedavg", "--seeds", "100", "--seconds", "0.0001", "--topologies", "star:3"]) == 0
    runs = int(capsys.readouterr().out.splitlines()[-1].split()[0])
    assert runs <= 1


def test_a_failure_reads_well() -> None:
    failure = Failure(7, (), (Crash(1.0, 2.0, 0),), 3, ("it happened",))
    assert list(failure.lines()) == [
        "of the 3 faults of this seed, these are enough:",
        "      1.000 s to   2.000 s: seat 0 is killed, and restarted",
        "what happened then:",
        "    it happened",
    ]
    assert "it takes no fault:" in list(Failure(7, (), (), 3, ()).lines())


def test_a_seed_of_a_sound_course_gives_nothing() -> None:
    assert try_seed(Trial(FEDAVG, FedAvgSettings(rounds=1), build("star", 3), ("I11",)), ["cut"], 1) is None


def test_its_help_names_all_options(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["fuzz", "--help"])
    said = capsys.readouterr().out
    assert left.value.code == 0
    for option in (
        "--seeds",
        "--seed",
        "--faults",
        "--topologies",
        "--invariants",
        "--seconds",
        "--jobs",
        "P2PFL_SEED",
    ):
        assert option in said


MISTAKES = [
    (["fedavg", "--faults", "earthquake"], "--faults has 'earthquake'; choose some of crash, vanish"),
    (["fedavg", "--invariants", "I99"], "--invariants has 'I99'; choose some of I1, I2"),
    (["fedavg", "--topologies", "star:x"], "--topologies has 'star:x'; write a family and a number of seats"),
    (["fedavg", "--topologies", "sta"], "family 'sta' is unknown: did you mean 'star'?"),
    (["fedavg", "--topologies", "ring"], "topology: fedavg cannot run on"),
    (["fedavg", "--seeds", "0"], "--seeds is 0; it must be at least 1"),
    (["fedavg", "--jobs", "0"], "--jobs is 0; it must be at least 1"),
    (["none.toml"], "there is no course file none.toml"),
    (["no.such.module"], "there is no module 'no.such.module'"),
    (["p2pfl.errors"], "p2pfl.errors has 0 courses of its own; give a module with one Course"),
]


@pytest.mark.parametrize(("arguments", "sentence"), MISTAKES, ids=[sentence for _, sentence in MISTAKES])
def test_mistakes_are_one_sentence(arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fuzz", *arguments]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and sentence in said and said.count("\n") == 1


def test_a_seed_in_the_environment_that_is_none_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("P2PFL_SEED", "lucky")
    with pytest.raises(ConfigError, match="P2PFL_SEED is 'lucky'; give it a seed, which is a number, or unset it"):
        fuzz_command(["fedavg"])
