import numpy as np
import pytest

from p2pfl.crypto.masks import CHUNK_ENTRIES, Binding, stream
from p2pfl.privacy.secagg_masks import Mask, add_masks

BINDING = Binding(b"s" * 32, "model", "schema")


@pytest.mark.parametrize("dtype", ["<u4", "<u8"])
@pytest.mark.parametrize("size", [1, CHUNK_ENTRIES, CHUNK_ENTRIES + 7])
def test_what_is_added_and_taken_away_is_gone(dtype: str, size: int) -> None:
    before = np.arange(size, dtype=dtype)
    words = before.copy()
    add_masks(words, [Mask(b"a" * 32, added=True), Mask(b"b" * 32, added=False)], BINDING)
    assert (words != before).mean() > 0.99
    add_masks(words, [Mask(b"b" * 32, added=True)], BINDING)
    add_masks(words, [Mask(b"a" * 32, added=False)], BINDING)
    assert np.array_equal(words, before)


def test_each_chunk_has_a_stream_of_its_own() -> None:
    words = np.zeros(2 * CHUNK_ENTRIES, dtype="<u4")
    add_masks(words, [Mask(b"a" * 32, added=True)], BINDING)
    assert words.tobytes() == stream(b"a" * 32, BINDING, 0, 4 * CHUNK_ENTRIES) + stream(
        b"a" * 32, BINDING, 1, 4 * CHUNK_ENTRIES
    )


def test_masked_entries_look_like_noise() -> None:
    """Chi squared over 256 buckets, and no likeness to what is hidden."""
    plain = np.arange(CHUNK_ENTRIES, dtype="<u4")
    words = plain.copy()
    add_masks(words, [Mask(b"a" * 32, added=True)], BINDING)
    for shift in (0, 8, 16, 24):
        counts = np.bincount((words >> shift) & 255, minlength=256)
        chi_squared = ((counts - plain.size / 256) ** 2 / (plain.size / 256)).sum()
        assert 170 < chi_squared < 350  # 255 degrees of freedom: 4 deviations to either side
    assert abs(np.corrcoef(plain, words)[0, 1]) < 4 / np.sqrt(plain.size)
