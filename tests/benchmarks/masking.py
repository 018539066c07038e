"""What it costs to add up in secret: `python -m tests.benchmarks.masking`.

Masks of one client, against the raw cost of the same ChaCha20 streams, generated and added; target: 1.3 times. A whole
round of a hundred clients in one process, training excluded, against a plain one; target: 2.5 times. All clients share
one processor here, as they do not on hosts, so what their streams alone take is told beside it.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from nacl.bindings import randombytes_buf_deterministic

from p2pfl.compute.job import FitJob
from p2pfl.courses.fedavg import FEDAVG, FedAvgSettings
from p2pfl.courses.secagg import CONSISTENT, SecAggSpec
from p2pfl.crypto.drg import SEED_BYTES
from p2pfl.crypto.masks import CHUNK_ENTRIES, Binding, agree, public_of
from p2pfl.learn.specs import ModelSpec, PartitionSpec
from p2pfl.learn.train import FitResult
from p2pfl.privacy.secagg_masks import Mask, add_masks
from p2pfl.privacy.thresholds import Resilience, plan
from p2pfl.topology.families import build
from tests.courses.kit import Played

NEIGHBOURS = 19
WORD_BYTES = 4


def seconds(work: Callable[[], object]) -> float:
    """Of this process, which does it all on one thread."""
    began = time.process_time()
    work()
    return time.process_time() - began


def raw(words: np.ndarray, seeds: list[bytes]) -> None:
    """Streams from seeds that are there already, and their sum."""
    for start in range(0, len(words), CHUNK_ENTRIES):
        chunk = words[start : start + CHUNK_ENTRIES]
        for seed in seeds:
            drawn = np.frombuffer(randombytes_buf_deterministic(chunk.nbytes, seed), dtype="<u4")
            np.add(chunk, drawn, out=chunk)


def masked(words: np.ndarray, own: bytes, others: list[bytes]) -> None:
    """All that a client does for its masks: agree on keys, derive a seed for each chunk, generate, add."""
    masks = [Mask(own, True), *(Mask(agree(own, other), bool(index % 2)) for index, other in enumerate(others))]
    add_masks(words, masks, Binding(own, "model", "schema"))


def of_masks(entries: int, repeats: int) -> list[tuple[str, str]]:
    words = np.zeros(entries, dtype="<u4")
    seeds = [bytes([index]) * SEED_BYTES for index in range(NEIGHBOURS + 1)]
    others = [public_of(seed) for seed in seeds[1:]]
    pairs = [
        (seconds(lambda: raw(words, seeds)), seconds(lambda: masked(words, seeds[0], others))) for _ in range(repeats)
    ]
    bare, ours = (statistics.median(column) for column in zip(*pairs, strict=True))
    ratio = statistics.median(mine / theirs for theirs, mine in pairs)
    return [
        (f"streams for {entries} entries, {NEIGHBOURS + 1} masks, ms", f"{1000 * bare:.1f}"),
        ("masks of a client, ms", f"{1000 * ours:.1f}"),
        ("masks / streams (target 1.3)", f"{ratio:.2f}"),
    ]


class Idle:
    """Learns nothing, and says what takes no time: another model than it was given, for each client."""

    parallel = 1

    async def run(self, job: Any) -> Any:
        (result,) = await self.run_all([job])
        return result

    async def run_all(self, jobs: list[Any]) -> list[Any]:
        return [FitResult(job.params + 1e-3, 8, 1.0, 1) if isinstance(job, FitJob) else job() for job in jobs]

    async def close(self) -> None:
        return None


def of_round(clients: int, hidden: int, rounds: int) -> list[tuple[str, str]]:
    settings = FedAvgSettings(rounds=rounds, evaluate="none")
    split = PartitionSpec("bootstrap", examples_per_client=8)
    model = ModelSpec("mlp", hidden=(hidden,))
    plain = Played(FEDAVG, settings, build("star", clients + 1), model_spec=model, split=split, compute=Idle())
    spec = SecAggSpec(most_examples=8)
    chosen = plan(clients, Resilience(spec.adversaries, spec.dropouts, active=True))
    secret = replace(plain, settings=replace(settings, privacy=CONSISTENT, secagg=spec), events=[])
    curious = replace(plain, settings=replace(settings, privacy="secagg", secagg=spec), events=[])
    times = [[seconds(replace(each, events=[]).play) / rounds for each in (plain, curious, secret)] for _ in range(3)]
    masks = clients * (chosen.degree + 2)  # each client's own, which is taken away again, and one for each neighbour
    words = np.zeros(plain.model.layout.numel, dtype="<u4")
    streams = masks / 20 * statistics.median(seconds(lambda: raw(words, [bytes(SEED_BYTES)] * 20)) for _ in range(9))
    bare, simple, ours = (statistics.median(column) for column in zip(*times, strict=True))
    numel = plain.model.layout.numel
    return [
        (f"plain round, {clients} clients, {numel} numbers, ms", f"{1000 * bare:.0f}"),
        ("secagg round, ms", f"{1000 * simple:.0f}"),
        ("secagg / plain (target 2.5)", f"{simple / bare:.2f}"),
        (f"secagg+consistency round, {chosen.degree} neighbours, ms", f"{1000 * ours:.0f}"),
        ("secagg+consistency / plain (target 2.5)", f"{ours / bare:.2f}"),
        (f"of which the streams of {masks} masks, ms", f"{1000 * streams:.0f}"),
        ("streams alone / plain", f"{streams / bare:.2f}"),
    ]


def main(arguments: list[str] | None = None) -> list[tuple[str, str]]:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--entries", type=int, default=1_000_000)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--clients", type=int, default=100)
    parser.add_argument("--hidden", type=int, default=1333, help="of a model of 75 numbers for each")
    parser.add_argument("--rounds", type=int, default=1)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    return [*of_masks(options.entries, options.repeats), *of_round(options.clients, options.hidden, options.rounds)]


if __name__ == "__main__":
    for label, value in main():
        print(f"{label:56} {value:>10}")
