"""The table [compress]: what may stand in it, and which pipelines it makes."""

import pytest
import torch
from torch import nn

from p2pfl.errors import ConfigError
from p2pfl.learn.compression import CompressSpec, DownSpec, UpSpec
from p2pfl.learn.params import Layout
from p2pfl.learn.transform import Chain, Ef21, ErrorFeedback
from p2pfl.wire.tensor import schema_bytes
from tests.learn.test_transform import rng, there_and_back

LAYOUT = Layout.of(nn.Linear(60, 20))
NUMEL = LAYOUT.numel


def test_by_default_nothing_is_compressed():
    assert CompressSpec().plain and not CompressSpec().up.stateful
    vector = torch.randn(NUMEL)
    for spec in (UpSpec(), DownSpec()):
        assert torch.equal(there_and_back(spec.transform(NUMEL, LAYOUT), vector), vector)


@pytest.mark.parametrize(
    ("spec", "nbytes"),
    [
        ({"values": "float16"}, 2 * NUMEL),
        ({"values": "bfloat16"}, 2 * NUMEL),
        ({"values": "uniform", "bits": 4, "bucket": NUMEL}, NUMEL / 2 + 8),
        ({"values": "qsgd", "bits": 2, "bucket": NUMEL}, NUMEL / 4 + 4),
        ({"values": "sign", "bucket": 244}, NUMEL / 8 + 5 * 4 + 0.5),
        ({"select": "top-k", "fraction": 0.01}, 12 * 6 / 8 + 4 + 12 * 4),
        ({"select": "random-k", "fraction": 0.1}, 122 * 4 + 8),
        ({"select": "low-rank", "rank": 3}, 4 * (3 * 80 + 20)),
        ({"select": "top-k", "fraction": 0.1, "values": "qsgd", "bits": 4}, 46 + 35 + 61 + 4),
        ({"select": "top-k", "fraction": 0.1, "values": "ternary"}, 46 + 35 + 16 + 4),
    ],
)
@pytest.mark.parametrize("kind", [UpSpec, DownSpec])
def test_bytes_by_hand(kind, spec, nbytes):
    transform = kind(**spec).transform(NUMEL, LAYOUT)
    assert schema_bytes(transform.schema) == nbytes
    payload = transform.encode(torch.randn(NUMEL), {}, rng()).payload
    assert sum(each.nbytes for each in payload) == nbytes


def test_feedback_goes_with_contractions_only():
    assert isinstance(UpSpec(select="top-k").transform(9, None), ErrorFeedback)
    assert isinstance(UpSpec(select="top-k", feedback=False).transform(9, None), Chain)
    vector = torch.ones(9)
    scaled = UpSpec(select="random-k", fraction=0.4, feedback=False).transform(9, None)
    assert there_and_back(scaled, vector).max() == pytest.approx(9 / 4)
    assert there_and_back(UpSpec(select="random-k", fraction=0.4).transform(9, None), vector).max() == 1


def test_ef21_in_place_of_the_error():
    spec = UpSpec(select="top-k", memory="ef21")
    assert isinstance(spec.transform(9, None), Ef21) and spec.incremental and spec.stateful
    assert not UpSpec(memory="ef21").incremental, "where all is sent, nothing is to be remembered"
    with pytest.raises(ConfigError, match=r"^compress.up.memory is 'ef22'; it must be one of error, ef21"):
        UpSpec(memory="ef22")
    with pytest.raises(ConfigError, match=r"^compress.up.memory is 'ef21', and compress.up.feedback is false"):
        UpSpec(memory="ef21", feedback=False)


def test_what_loses_nothing_needs_no_memory():
    spec = UpSpec(entropy="zlib")
    assert not spec.plain and spec.lossless and not spec.stateful


def test_who_remembers():
    assert UpSpec(values="sign").stateful and UpSpec(select="low-rank", feedback=False).stateful
    assert not UpSpec(values="sign", feedback=False).stateful


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"select": "topk"}, "select is 'topk'; it must be one of all, top-k"),
        ({"values": "int8"}, "values is 'int8'; it must be one of float32"),
        ({"entropy": "gzip"}, "entropy is 'gzip'; it must be one of none, zlib, zstandard"),
        ({"fraction": 0.0}, r"fraction is 0.0; it must lie in \(0, 1\]"),
        ({"bits": 3}, "bits is 3; it must be 2, 4 or 8"),
        ({"values": "ternary"}, "values is 'ternary', which is zero where top-k does not select; set .* to top-k"),
        ({"rank": 0}, "rank is 0; it must be at least 1"),
        ({"bucket": 0}, "bucket is 0; it must be at least 1"),
    ],
)
@pytest.mark.parametrize("kind", [UpSpec, DownSpec])
def test_a_mistake_is_one_sentence(kind, wrong, sentence):
    table = "compress.up" if kind is UpSpec else "compress.down"
    with pytest.raises(ConfigError, match=f"^{table}.{sentence}"):
        kind(**wrong)


def test_low_rank_needs_to_know_the_matrices():
    with pytest.raises(ConfigError, match="sends a part of the model; set it to top-k"):
        DownSpec(select="low-rank").transform(9, None)
