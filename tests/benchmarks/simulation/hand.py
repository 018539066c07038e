"""The baseline: the loop that anyone writes first, and writes well."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn.functional import cross_entropy

from tests.benchmarks.simulation.workload import State, Work


def run(work: Work, done: Callable[[], None]) -> State:
    """Every subject is such a function: do the work, say `done` after each round, give the final weights."""
    module, state = work.module(), work.initial
    for cohort in work.plan:
        mean = {name: torch.zeros_like(weight) for name, weight in state.items()}
        for batches in cohort:
            module.load_state_dict(state)
            optimizer = torch.optim.SGD(module.parameters(), lr=work.scenario.lr)
            for rows in batches:
                optimizer.zero_grad()
                cross_entropy(module(work.x[rows]), work.y[rows]).backward()
                optimizer.step()
            for name, weight in module.state_dict().items():
                mean[name].add_(weight, alpha=1 / len(cohort))
        state = mean
        done()
    return state
