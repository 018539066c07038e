"""The command line: help for everything, one line and exit code 2 for every mistake, never a traceback."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from p2pfl.app.cli import COMMANDS, main
from p2pfl.app.exits import EXIT_CODES

DIGITS = str(Path(__file__).parents[2] / "examples" / "digits.toml")


def test_without_a_command_it_lists_them(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == main(["-h"]) == main(["--help"]) == 0
    said = capsys.readouterr().out
    assert all(f"\n  {name} " in said for name in COMMANDS)
    assert said.count(EXIT_CODES) == 3


@pytest.mark.parametrize(
    "arguments",
    [
        ["simulate", DIGITS, "--help"], ["node", "--help"], ["node", "--course", DIGITS, "--help"], ["check", "--help"],
        ["doctor", "--help"], ["client", "--help"],
        ["topology", "--help"], ["topology", "show", "--help"], ["data", "--help"], ["key", "--help"], ["id", "--help"],
    ],
    ids=" ".join,
)  # fmt: skip
def test_every_command_has_help(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(arguments)
    assert left.value.code in (0, None)
    said = capsys.readouterr()
    assert "usage: " in said.out
    assert said.out.endswith(f"\n{EXIT_CODES}\n")
    assert not said.err


def test_help_of_a_course_shows_its_own_fields_with_the_values_of_the_file(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["simulate", DIGITS, "--help"])
    said = " ".join(capsys.readouterr().out.replace("│", " ").split())
    for option in ("--course.rounds", "--course.quorum", "--train.lr", "--partition.alpha", "--seed", "--runs"):
        assert option in said
    assert "(default: 0.2)" in said


MISTAKES = {
    ("simulat", DIGITS): "there is no command 'simulat'",
    ("simulate",): "a course file is missing",
    ("simulate", "--help"): "give a course file first",
    ("simulate", "none.toml"): "there is no course file none.toml",
    ("simulate", DIGITS, "--train.lrr", "3"): "did you mean --train.lr?",
    ("simulate", DIGITS, "--train.lr", "fast"): "error parsing --train.lr",
    ("simulate", DIGITS, "--train.lr"): "missing value for argument '--train.lr'",
    ("simulate", DIGITS, "--model.hidden", "3", "x"): "error parsing --model.hidden",
    ("simulate", DIGITS, "surplus"): "unrecognized options: surplus",
    ("simulate", DIGITS, "--course.rounds", "0"): "course.rounds is 0; it must be at least 1",
    ("simulate", DIGITS, "--data.source", "digit"): "did you mean 'digits'",
    ("simulate", DIGITS, "--data.source", "./none.csv"): "none.csv",
    ("simulate", DIGITS, "--model.name", "mpl"): "did you mean 'mlp'",
    ("simulate", DIGITS, "--model.name", "./none.py:Net"): "there is no file none.py",
    ("simulate", DIGITS, "--topology.family", "stra"): "did you mean 'star'",
    ("simulate", DIGITS, "--topology.family", "ring"): "fedavg cannot run on",
    ("simulate", DIGITS, "--topology.n", "0"): "choose at least 1",
    ("simulate", DIGITS, "--topology.n", "1"): "",
    ("simulate", DIGITS, "--topology.n", "5000"): "",
    ("simulate", DIGITS, "--topology.parameters", "edges", "2"): "parameter 'edges' is unknown",
    ("simulate", DIGITS, "--partition.scheme", "iidd"): "partition.scheme is 'iidd'; it must be one of iid",
    ("simulate", DIGITS, "--compute", "thread"): "did you mean 'threads'",
    ("simulate", DIGITS, "--train.optimizer", "Adamm"): "did you mean 'Adam'",
    ("simulate", DIGITS, "--runs", "/proc/none"): "cannot be written",
    ("node",): "give --course FILE to start a course, or --peers ADDRESS to join one",
    ("node", "--course"): "--course needs a file",
    ("node", "--course", DIGITS): "give --listen",
    ("node", "--course", DIGITS, "--listen", ":x"): "",
    ("node", "--course", DIGITS, "--listen", "0.0.0.0:0"): "",
    ("node", "--course", DIGITS, "--listen", ":0", "--seat", "77"): "--seat is 77; the course has seats 0 to 8",
    ("node", "--peers", ":1", "--course.rounds", "3"): "unrecognized options",
    ("node", "--peers", ":1", "--pers", ":1"): "did you mean --peers?",
    ("node", "--peers", ":1", "--trust", "nobody"): "nobody",
    ("node", "--peers", ":1", "--network-key", "none.key"): "none.key",
    ("node", "--peers", ":1", "--allow", "me"): "",
    ("node", "--peers", ":1", "--tls-ca", "none.pem"): "the PEM files cannot be loaded",
    ("node", "--peers", ":1", "--name", "a\nb"): "name is",
    ("node", "--peers", ":1", "--compute", "gpu"): "--compute 'gpu' is unknown",
    ("node", "--peers", ":1", "--log", "jason"): "invalid choice 'jason' for argument '--log'",
    ("node", "--peers", ":1", "--log-level", "loud"): "invalid choice 'loud' for argument '--log-level'",
    ("node", "--peers", ":1", "--metrics-listen", "http://x"): "--metrics-listen is 'http://x'; write HOST:PORT",
    ("doctor",): "--peers is missing",
    ("doctor", "--peers", "hub"): "the port is missing",
    ("doctor", "--peers", ":1", "--course", "none.toml"): "there is no course file none.toml",
    ("check", "none.toml"): "none.toml",
    ("check", "none"): "none",
    ("topology", "show", "none"): "none",
    ("topology", "show", "ring:x"): "after the colon comes the number of nodes",
    ("topology", "show", "ring:8", "--to", "a.pdf"): "",
    ("data", "show", "none.toml"): "none.toml",
    ("data", "show", DIGITS, "--to", "a.pdf"): "name a file that ends in .svg",
}


@pytest.mark.parametrize("arguments", MISTAKES, ids=" ".join)
def test_a_mistake_is_one_line_and_exit_code_2(
    arguments: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: "), said
    assert said.count("\n") == 1, said
    assert MISTAKES[arguments] in said


def test_a_key_that_others_can_read_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    key = tmp_path / "identity.key"
    assert main(["id", str(key)]) == 0
    key.chmod(0o640)
    capsys.readouterr()
    assert main(["node", "--peers", ":1", "--identity", str(key)]) == 2
    said = capsys.readouterr().err
    assert str(key) in said
    assert said.count("\n") == 1


def test_who_reads_no_further_gets_no_traceback(tmp_path: Path) -> None:
    code = "from p2pfl.app.cli import run; run()"
    command = [
        sys.executable,
        "-c",
        code,
        "simulate",
        DIGITS,
        "--json",
        "--runs",
        str(tmp_path),
        "--course.rounds",
        "2",
    ]
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True, timeout=60, check=False)
    os.close(writing)
    assert done.returncode == 1
    assert done.stderr == ""
