"""`p2pfl key` and `p2pfl id`: files with secrets, and what may be told of them."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from p2pfl.crypto.identity import Identity, NetworkKey

__all__ = ["id_command", "key_command"]


def key_command(arguments: list[str]) -> int:
    """Make a network key; all hosts of a network need a copy of the file."""
    parser = argparse.ArgumentParser("p2pfl key", description=key_command.__doc__)
    parser.add_argument("file", type=Path, help="where the key is written; it must not exist yet")
    options = parser.parse_args(arguments)
    NetworkKey.generate().save(options.file)
    sys.stdout.write(f"network key written to {options.file}; copy it to every host by a safe way\n")
    return 0


def id_command(arguments: list[str]) -> int:
    """Print the peer id of an identity file, which is made if it is not there. Ids are public."""
    parser = argparse.ArgumentParser("p2pfl id", description=id_command.__doc__)
    parser.add_argument("file", type=Path, nargs="?", default=Path(".p2pfl/identity.key"), help="the key file")
    options = parser.parse_args(arguments)
    sys.stdout.write(f"{Identity.load_or_create(options.file).peer_id}\n")
    return 0
