"""`python -m p2pfl`: the command `p2pfl`, where it is not on the path."""

from __future__ import annotations

from p2pfl.app.cli import run

if __name__ == "__main__":
    run()
