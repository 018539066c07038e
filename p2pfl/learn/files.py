"""Readers of array and image files. Sizes are checked before anything is allocated, and nothing is unpickled."""

from __future__ import annotations

import gzip
import math
import struct
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from p2pfl.errors import ConfigError, MissingPackage

__all__ = ["Idx", "Images", "as_pixels", "find_idx", "find_parts", "read_idx", "read_image_folder", "read_npz"]

Array = npt.NDArray[np.generic]
Bytes = npt.NDArray[np.uint8]

_MAX_BYTES = 8 << 30  # of one file, unpacked
_MAX_HEADER = 10_000  # bytes of an npy header
_IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp"}


def read_npz(path: Path, max_bytes: int = _MAX_BYTES) -> dict[str, Array]:
    """The arrays of an .npz file: numbers and strings, never Python objects.

    Raises ConfigError if the file is damaged, larger than `max_bytes` unpacked, or holds pickled objects.
    """
    arrays: dict[str, Array] = {}
    try:
        with zipfile.ZipFile(path) as archive:
            total = sum(info.file_size for info in archive.infolist())
            if total > max_bytes:
                raise ConfigError(f"{path} unpacks to {total} bytes, more than the {max_bytes} allowed; split it")
            for info in archive.infolist():
                name = info.filename.removesuffix(".npy")
                with archive.open(info) as member:
                    arrays[name] = _read_npy(f"{path}: array {name!r}", member, info.file_size)
    except FileNotFoundError as error:
        raise ConfigError(f"there is no file {path}; check the path") from error
    except (OSError, zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise ConfigError(f"{path} is not an .npz file that can be read ({error}); save it anew") from error
    return arrays


def _read_npy(what: str, member: IO[bytes], size: int) -> Array:
    try:
        version = np.lib.format.read_magic(member)
        header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = header(member, max_header_size=_MAX_HEADER)
    except ValueError as error:
        raise ConfigError(f"{what} is no npy array ({error}); save it with numpy.savez") from error
    if dtype.hasobject or dtype.kind not in "biufU":
        raise ConfigError(
            f"{what} is {dtype}, which is never loaded; convert it to numbers with .astype and save it anew"
        )
    expected = math.prod(shape) * dtype.itemsize
    if expected != size - member.tell():
        raise ConfigError(f"{what} needs {expected} bytes, and the file holds {size - member.tell()}; save it anew")
    data = np.frombuffer(bytearray(member.read(expected)), dtype)
    return data.reshape(shape, order="F" if fortran else "C").astype(dtype.newbyteorder("="), copy=False)


class Idx(NamedTuple):
    """One part of a data set in MNIST's format."""

    images: Bytes  # (n, height, width)
    labels: Bytes  # (n,)


def find_idx(folder: Path, part: str) -> Idx:
    """The images and labels of `part` (`train` or `t10k`) in a folder. Raises ConfigError if they do not match."""
    images = read_idx(_one(folder, f"*{part}-images-idx3-ubyte*"))
    labels = read_idx(_one(folder, f"*{part}-labels-idx1-ubyte*"))
    if images.ndim != 3 or labels.shape != images.shape[:1]:
        shapes = f"images {images.shape} and labels {labels.shape}"
        raise ConfigError(f"{folder}: the {part} part has {shapes}; copy both files of one data set")
    return Idx(images, labels)


def _one(folder: Path, pattern: str) -> Path:
    found = sorted(folder.glob(pattern))
    if not found:
        raise ConfigError(f"{folder} has no file {pattern}; copy all four files of the data set into the folder")
    return found[0]


def read_idx(path: Path) -> Bytes:
    """An idx file of unsigned bytes, packed by gzip or not. Raises ConfigError if it is damaged or of another type."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            zeros, kind, rank = struct.unpack(">HBB", file.read(4))
            if zeros != 0 or kind != 8 or not 1 <= rank <= 4:
                raise ConfigError(f"{path} is not an idx file of unsigned bytes; download it anew")
            shape = struct.unpack(f">{rank}I", file.read(4 * rank))
            size = math.prod(shape)
            if size > _MAX_BYTES:
                raise ConfigError(f"{path} claims {size} bytes, more than the {_MAX_BYTES} allowed; check the file")
            data = bytearray(file.read(size + 1))
    except (OSError, EOFError, zlib.error, struct.error) as error:
        raise ConfigError(f"{path} cannot be read as an idx file ({error}); download it anew") from error
    if len(data) != size:
        raise ConfigError(f"{path} does not hold the {size} bytes that its header says; download it anew")
    return np.frombuffer(data, np.uint8).reshape(shape)


class Images(NamedTuple):
    """The images of a folder."""

    pixels: Bytes  # (n, channels, height, width)
    labels: npt.NDArray[np.int64]  # (n,) places in `classes`
    classes: tuple[str, ...]  # the sub-folders' names


def find_parts(folder: Path) -> tuple[Path, Path | None]:
    """The training and the test part of an image folder, where it has a sub-folder for each of them; else itself."""
    for test in ("test", "val", "valid", "validation"):
        if (folder / "train").is_dir() and (folder / test).is_dir():
            return folder / "train", folder / test
    return folder, None


def read_image_folder(
    folder: Path, size: Sequence[int], *, colour: bool, classes: tuple[str, ...] | None = None
) -> Images:
    """Images of a folder with one sub-folder per class, at any depth within it, scaled to `size` (height, width).

    `classes`: those that there may be; else as there are, in order. Raises ConfigError if there are no images, one
    cannot be read, or one is of another class, MissingPackage without Pillow.
    """
    try:
        from PIL import Image, UnidentifiedImageError  # noqa: PLC0415 - optional: only image folders need it
    except ImportError as error:
        raise MissingPackage(f"the image folder {folder}", "pip install pillow") from error
    found = tuple(sorted(entry.name for entry in folder.iterdir() if entry.is_dir()))
    classes = found if classes is None else classes
    if strange := next((name for name in found if name not in classes), None):
        raise ConfigError(f"{folder / strange}: there is no class {strange!r} in the training part; add or remove it")
    paths = [
        (path, label)
        for label, name in enumerate(classes)
        for path in sorted((folder / name).rglob("*"))
        if path.suffix.lower() in _IMAGE_SUFFIXES
    ]
    if not paths:
        raise ConfigError(f"{folder} holds neither idx files nor a sub-folder of images per class; check the path")
    pixels = np.empty((len(paths), 3 if colour else 1, *size), np.uint8)
    for row, (path, _) in enumerate(paths):
        try:
            with Image.open(path) as image:
                pixels[row] = as_pixels(image, size, colour=colour)
        except (OSError, UnidentifiedImageError, Image.DecompressionBombError) as error:
            raise ConfigError(f"{path} cannot be read as an image ({error}); remove or replace it") from error
    labels = np.array([label for _, label in paths], np.int64)
    return Images(pixels, labels, classes)


def as_pixels(image: Any, size: Sequence[int], *, colour: bool) -> Bytes:
    """A Pillow image as (channels, height, width), scaled to `size` (height, width)."""
    height, width = size
    scaled = np.asarray(image.convert("RGB" if colour else "L").resize((width, height)))
    return scaled.reshape(height, width, -1).transpose(2, 0, 1)
