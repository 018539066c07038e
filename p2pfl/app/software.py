"""What this host runs on, for others to compare with theirs."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

from p2pfl.link.secure import VERSIONS
from p2pfl.node.probing import Software

__all__ = ["own_software"]


def own_software() -> Software:
    """Versions as the packages' metadata have them, so that nothing slow is imported."""
    return Software(
        p2pfl=_version("p2pfl-aio"),
        protocol=str(VERSIONS).partition(" ")[2],
        python=platform.python_version(),
        torch=_version("torch"),
        platform=platform.platform(),
    )


def _version(distribution: str) -> str:
    try:
        return version(distribution)
    except PackageNotFoundError:  # run from a folder of sources
        return "unknown"
