"""What a host says that it runs on."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError

import pytest
import torch

from p2pfl.app import software
from p2pfl.app.software import own_software


def test_it_is_what_runs() -> None:
    own = own_software()
    assert own.torch == torch.__version__
    assert own.python == platform.python_version()
    assert own.protocol == "1"


def test_a_folder_of_sources_has_no_version(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(distribution: str) -> str:
        raise PackageNotFoundError(distribution)

    monkeypatch.setattr(software, "version", missing)
    assert own_software().p2pfl == "unknown"
