"""A name that the package does not have."""

from __future__ import annotations

from p2pfl import Massage  # E: attr-defined

print(Massage)
