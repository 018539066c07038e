"""`python -m p2pfl.node`: a node on this host. The only place that touches signals and the kind of event loop."""

from __future__ import annotations

import sys

from p2pfl.app.cli import run

if __name__ == "__main__":
    run(["node", *sys.argv[1:]])
