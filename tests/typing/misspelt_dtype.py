"""A dtype that tensors do not have."""

from __future__ import annotations

from p2pfl import TensorSpec

print(TensorSpec("w", "float32", (2,)))  # E: arg-type
