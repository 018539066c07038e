"""Readers of array and image files, on files that the tests write."""

import gzip
import io
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from p2pfl.errors import ConfigError
from p2pfl.learn.files import find_idx, read_idx, read_image_folder, read_npz

numbers = st.sampled_from(["<f4", ">f4", "<f8", "u1", "<i4", ">i8", "?", "<U3"])


@given(arrays.arrays(numbers, arrays.array_shapes(min_dims=0, max_dims=3, min_side=0)), st.booleans(), st.booleans())
def test_arrays_are_read_as_numpy_wrote_them(array: np.ndarray, packed: bool, fortran: bool) -> None:
    file = io.BytesIO()
    (np.savez_compressed if packed else np.savez)(file, x=np.array(array, order="F" if fortran else "C"))
    found = read_npz(file)["x"]  # type: ignore[arg-type]  # zipfile takes open files too
    np.testing.assert_array_equal(found, array)
    assert found.shape == array.shape
    assert found.flags.writeable


def npz(path: Path, header: bytes, data: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + data)
    return path


@pytest.mark.parametrize(
    ("header", "data", "words"),
    [
        (
            b"{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000,), }\n",
            b"1234",
            "needs 4000000000000 bytes",
        ),
        (
            b"{'descr': '<f4', 'fortran_order': False, 'shape': (1,), }\n",
            b"12345678",
            "needs 4 bytes, and the file holds 8",
        ),
        (
            b"{'descr': '|O', 'fortran_order': False, 'shape': (1,), }\n",
            b"12345678",
            "never loaded; convert it to numbers",
        ),
        (
            b"{'descr': '<c8', 'fortran_order': False, 'shape': (1,), }\n",
            b"12345678",
            "complex64, which is never loaded",
        ),
        (b"__import__('os').system('true')\n", b"", "is no npy array"),
        (b"{'descr': '<f4', 'fortran_order': False, 'shape': (-1,), }\n", b"", "needs -4 bytes"),
        (b" " * 20_000 + b"\n", b"", "is no npy array"),
    ],
)
def test_headers_that_lie_are_refused_before_anything_is_allocated(
    tmp_path: Path, header: bytes, data: bytes, words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        read_npz(npz(tmp_path / "bad.npz", header, data))


def test_pickles_zip_bombs_and_garbage_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "objects.npz", x=np.array([{}], dtype=object))
    with pytest.raises(ConfigError, match=r"never loaded; convert it to numbers with .astype"):
        read_npz(tmp_path / "objects.npz")
    np.savez_compressed(tmp_path / "bomb.npz", x=np.zeros(100_000))
    with pytest.raises(ConfigError, match="unpacks to 800128 bytes, more than the 1000 allowed"):
        read_npz(tmp_path / "bomb.npz", max_bytes=1000)
    (tmp_path / "garbage.npz").write_bytes(b"no archive")
    with pytest.raises(ConfigError, match=r"not an .npz file that can be read"):
        read_npz(tmp_path / "garbage.npz")
    with pytest.raises(ConfigError, match="there is no file"):
        read_npz(tmp_path / "nowhere.npz")


def idx(array: np.ndarray) -> bytes:
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


def test_idx_files_packed_or_not(tmp_path: Path) -> None:
    images = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(images)))
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx(np.array([7, 9], np.uint8)))
    found = find_idx(tmp_path, "train")
    np.testing.assert_array_equal(found.images, images)
    assert found.labels.tolist() == [7, 9]
    with pytest.raises(ConfigError, match=r"has no file \*t10k-images-idx3-ubyte\*; copy all four"):
        find_idx(tmp_path, "t10k")
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx(np.array([7], np.uint8)))
    with pytest.raises(ConfigError, match=r"images \(2, 3, 4\) and labels \(1,\)"):
        find_idx(tmp_path, "train")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "cannot be read as an idx file"),
        (b"\x00\x00\x0d\x01" + struct.pack(">I", 1) + b"1234", "not an idx file of unsigned bytes"),
        (b"\x00\x00\x08\x01" + struct.pack(">I", 5) + b"1234", "does not hold the 5 bytes"),
        (b"\x00\x00\x08\x01" + struct.pack(">I", 3) + b"1234", "does not hold the 3 bytes"),
        (b"\x00\x00\x08\x03" + struct.pack(">III", *[2**31] * 3) + b"1234", "more than the 8589934592 allowed"),
    ],
)
def test_damaged_idx_files(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "images"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=words):
        read_idx(path)


def test_truncated_gzip(tmp_path: Path) -> None:
    path = tmp_path / "images.gz"
    path.write_bytes(gzip.compress(idx(np.random.default_rng(0).integers(0, 255, 999, np.uint8)))[:-200])
    with pytest.raises(ConfigError, match="cannot be read as an idx file"):
        read_idx(path)


def test_image_folders(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image", reason="pip install pillow")
    for name, grey in (("cat", 10), ("dog", 200)):
        (tmp_path / name).mkdir()
        image.new("L", (6, 4), grey).save(tmp_path / name / "a.png")
        (tmp_path / name / "notes.txt").write_text("not an image")
    image.new("RGB", (3, 3), (255, 0, 0)).save(tmp_path / "dog" / "b.png")
    pixels, labels, classes = read_image_folder(tmp_path, (4, 6), colour=False)
    assert (pixels.shape, labels.tolist(), classes) == ((3, 1, 4, 6), [0, 1, 1], ("cat", "dog"))
    assert pixels[:2, 0, 0, 0].tolist() == [10, 200]
    pixels, _, _ = read_image_folder(tmp_path, (2, 2), colour=True)
    assert pixels[2, :, 0, 0].tolist() == [255, 0, 0]
    (tmp_path / "cat" / "broken.png").write_bytes(b"\x89PNG")
    with pytest.raises(ConfigError, match=r"broken.png cannot be read as an image"):
        read_image_folder(tmp_path, (4, 6), colour=False)
    with pytest.raises(ConfigError, match="holds neither idx files nor a sub-folder of images"):
        read_image_folder(tmp_path / "dog", (4, 6), colour=False)
