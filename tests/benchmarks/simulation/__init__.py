"""Federated averaging in one machine, the same work by several systems: `python -m tests.benchmarks.simulation`."""
