"""A state as bytes that tell whether they are whole: tensors by safetensors, all else as JSON in its header."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import msgspec
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from p2pfl.errors import JournalError

__all__ = ["State", "dump", "parse"]

State = Mapping[str, Tensor | int | float | str]
"""What has to be known to go on, by name. Tensors are not written to afterwards."""

_HEADER_BYTES = 8  # the length of the header, little-endian


def dump(state: State, about: object = None) -> bytes:
    """The state, with something that JSON can tell about it. `parse` gives both back."""
    tensors = {name: value.detach().clone() for name, value in state.items() if isinstance(value, Tensor)}
    plain = {name: value for name, value in state.items() if not isinstance(value, Tensor)}
    text = msgspec.json.encode({"plain": plain, "about": about}).decode()
    return save(tensors, {"state": text, "digest": _digest(tensors, text)})


def parse(content: bytes) -> tuple[dict[str, Tensor | int | float | str], Any]:
    """What was dumped, and what was told about it. Raises JournalError for bytes that are torn or have rotted."""
    try:
        tensors = load(content)
        size = int.from_bytes(content[:_HEADER_BYTES], "little")
        header = msgspec.json.decode(content[_HEADER_BYTES : _HEADER_BYTES + size], type=dict[str, Any])
        text, digest = header["__metadata__"]["state"], header["__metadata__"]["digest"]
        if digest != _digest(tensors, text):
            raise JournalError("its digest is another than that of its content")
        found = msgspec.json.decode(text, type=dict[str, Any])
        plain: dict[str, int | float | str] = msgspec.convert(found["plain"], dict[str, int | float | str])
    except (SafetensorError, msgspec.MsgspecError, KeyError, TypeError, ValueError) as error:
        raise JournalError(f"it is torn, or has rotted ({error})") from error
    return {**tensors, **plain}, found["about"]


def _digest(tensors: Mapping[str, Tensor], text: str) -> str:
    whole = hashlib.blake2b(text.encode(), digest_size=16, person=b"p2pfl-state")
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        whole.update(f"\0{name}\0{tensor.dtype}{tuple(tensor.shape)}\0".encode())
        whole.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return whole.hexdigest()
