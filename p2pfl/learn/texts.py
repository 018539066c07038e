"""Text by speaking role, and the windows that a next-character model is trained on."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from p2pfl.errors import ConfigError

__all__ = ["Windows", "read_plays"]

_SPEAKER = re.compile(r"\*\*(.+?)\*\*")
_DIRECTION = re.compile(r"_[^_\n]*_")


def read_plays(folder: Path, min_letters: int = 0) -> dict[str, str]:
    """What each role of each play says, as "play: ROLE" -> lines, in the order of first appearance.

    Reads all .md files below `folder`: a speaker's name is bold on a line of its own, stage directions are in italics.
    (A direction that runs over two lines stays in the text.) Roles with fewer than `min_letters` characters, line
    breaks not counted, are left out. Raises ConfigError if there are none.
    """
    lines: dict[str, list[str]] = {}
    for path in sorted(folder.rglob("*.md")):
        said: list[str] | None = None
        for line in path.read_text("utf-8").splitlines():
            speaker = _SPEAKER.match(line)
            if speaker:
                said = lines.setdefault(f"{path.stem}: {speaker[1]}", [])
                line = line[speaker.end() :]
            spoken = _DIRECTION.sub("", line).strip()
            if said is not None and spoken and not spoken.startswith("#"):
                said.append(spoken)
    roles = {role: "\n".join(said) for role, said in lines.items() if sum(map(len, said)) >= min_letters}
    if not roles:
        raise ConfigError(f"{folder} holds no plays with **SPEAKER** lines in .md files; check the folder")
    return roles


@dataclass(frozen=True, slots=True, eq=False)
class Windows:
    """Every window of a corpus with the character that follows it. `x` is a view of the text: it costs no memory."""

    x: Tensor  # (rows, window) codes
    y: Tensor  # (rows,) the code that follows
    alphabet: tuple[str, ...]  # the character of each code
    groups: Tensor  # (rows,) the role that the following character belongs to
    train: Tensor  # rows whose window and following character are in the first part of one role
    test: Tensor  # rows whose following character is in the last part of the same role as the window

    @classmethod
    def of(cls, roles: Mapping[str, str], window: int, test_share: float) -> Windows:
        """Windows of all roles. As in LEAF, the last `test_share` of what a role says is for testing."""
        text = "".join(roles.values())
        points = np.frombuffer(text.encode("utf-32-le"), np.uint32)
        alphabet, codes = np.unique(points, return_inverse=True)
        if len(points) <= window:
            raise ConfigError(f"data.window is {window}, and the text has {len(points)} characters; make it shorter")
        lengths = np.array([len(said) for said in roles.values()])
        ends = np.cumsum(lengths)
        groups = np.repeat(np.arange(len(lengths)), lengths).astype(np.int32)
        cuts = ends - np.rint(lengths * test_share).astype(np.int64)
        follower = np.arange(window, len(codes))  # the place of the character that follows each window
        role = groups[follower]
        inside = follower - window >= (ends - lengths)[role]
        late = follower >= cuts[role]
        packed = torch.from_numpy(codes.astype(np.uint8 if len(alphabet) <= 256 else np.int32))
        return cls(
            x=packed.unfold(0, window, 1)[:-1],
            y=packed[window:],
            alphabet=tuple(chr(point) for point in alphabet),
            groups=torch.from_numpy(role),
            train=torch.from_numpy(np.flatnonzero(inside & ~late)),
            test=torch.from_numpy(np.flatnonzero(inside & late)),
        )
