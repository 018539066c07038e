"""A host. What hosts do together is in tests/test_end_to_end.py, with real processes."""

from __future__ import annotations

from pathlib import Path

import pytest

from p2pfl.app.computes import ComputeOptions
from p2pfl.app.host import Host
from p2pfl.app.node_options import LocalData, NodeOptions
from p2pfl.errors import ConfigError, IdentityError


def options(tmp_path: Path, **more: object) -> NodeOptions:
    return NodeOptions(identity=tmp_path / "identity.key", peers=("127.0.0.1:1",), **more)  # type: ignore[arg-type]  # by name


def test_what_cannot_work_is_refused_before_anything_is_opened(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--compute 'gpu' is unknown; it must be one of auto, cohort, inline"):
        Host(options(tmp_path, compute=ComputeOptions("gpu")), None, LocalData())
    with pytest.raises(ConfigError, match="'friends' is none of"):
        Host(options(tmp_path, trust=("friends",)), None, LocalData())
    with pytest.raises(IdentityError, match=r"nowhere\.key"):
        Host(options(tmp_path, network_key=tmp_path / "nowhere.key"), None, LocalData())
