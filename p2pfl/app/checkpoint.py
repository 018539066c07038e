"""Where a simulation stands between two rounds, as one file: tensors by safetensors, all else as JSON in its header.

A simulation with checkpoints is a chain of worlds. At a checkpoint all nodes pause; the world ends; the next one begins
with the states of the roles. That is so whether or not the process goes on, and so a run that was resumed has the same
bytes as one that was not interrupted. What the file holds is not trusted: it is read as data, never executed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import msgspec
import orjson
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from p2pfl.courses.course import RoleState
from p2pfl.errors import ConfigError

__all__ = ["CHECKPOINT", "Checkpoint", "Standing"]

CHECKPOINT = "checkpoint.safetensors"


@dataclass(frozen=True, slots=True)
class Standing:
    """The figures of a run so far."""

    round: int = 0  # rounds that have been played
    every: int = 0  # rounds between two checkpoints; 0: there are none
    seconds: float = 0.0  # virtual
    packets: int = 0
    bytes: int = 0
    down_bytes: int = 0  # of these, what the coordinator has sent, and what it has received
    up_bytes: int = 0
    missing: int = 0
    flops: float | None = 0.0  # of training; None: they cannot be told
    trace: str = ""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A run between two rounds. `roles` holds the states of the roles of every seat that has some."""

    standing: Standing = field(default_factory=Standing)
    roles: Mapping[int, Sequence[RoleState]] = field(default_factory=dict)

    def save(self, folder: Path) -> None:
        """Write it, whole or not at all."""
        tensors: dict[str, Tensor] = {}
        plain: dict[str, float | str] = {}
        for seat, states in self.roles.items():
            for number, state in enumerate(states):
                for name, value in state.items():
                    key = f"{seat}/{number}/{name}"
                    if isinstance(value, Tensor):
                        tensors[key] = value.clone()  # several may lie in one memory, which safetensors refuses
                    else:
                        plain[key] = value
        text = {"standing": orjson.dumps(asdict(self.standing)).decode(), "plain": orjson.dumps(plain).decode()}
        temporary = folder / f".{CHECKPOINT}.part"
        save_file(tensors, temporary, text)
        temporary.replace(folder / CHECKPOINT)

    @classmethod
    def load(cls, folder: Path) -> Checkpoint:
        """Read it. Raises ConfigError if there is none, or if it cannot be read."""
        path = folder / CHECKPOINT
        if not path.is_file():
            raise ConfigError(
                f"--resume: {folder} holds no {CHECKPOINT}; simulate with --checkpoint-every to make some"
            )
        try:
            with safe_open(path, "pt") as file:
                values: dict[str, Tensor | int | float | str] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no mapping
                text = file.metadata() or {}
            values |= msgspec.json.decode(text["plain"], type=dict[str, int | float | str])
            standing = msgspec.json.decode(text["standing"], type=Standing)
            roles: dict[int, dict[int, dict[str, Tensor | int | float | str]]] = {}
            for key, value in values.items():
                seat, number, name = key.split("/", 2)
                roles.setdefault(int(seat), {}).setdefault(int(number), {})[name] = value
        except (SafetensorError, msgspec.MsgspecError, KeyError, ValueError, OSError) as error:
            raise ConfigError(f"--resume: {path} is damaged ({error}); begin anew without --resume") from error
        return cls(standing, {seat: [states[number] for number in sorted(states)] for seat, states in roles.items()})
