import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pfl.errors import MessageError, RemoteProtocolError
from p2pfl.wire.tensor import ITEM_BYTES, Tensors, TensorSpec, describe, parse, schema_bytes

specs = st.builds(
    TensorSpec,
    st.text(st.characters(exclude_categories=["Cs"]), max_size=8),
    st.sampled_from(list(ITEM_BYTES)),
    st.lists(st.integers(0, 5), max_size=4).map(tuple),
)
schemas = st.lists(specs, max_size=4, unique_by=lambda spec: spec.name).map(tuple)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["tensors", "at", "x"]), inner),
    max_leaves=12,
)


def one(name: str = "w", dtype: str = "f32", shape: tuple[int, ...] = (2,)) -> TensorSpec:
    return TensorSpec(name, dtype, shape)  # type: ignore[arg-type]  # tests give wrong dtypes, too


@given(schemas)
def test_holds_each_name_with_its_memory(schema) -> None:
    buffers = [memoryview(bytes(spec.nbytes)) for spec in schema]
    tensors = Tensors(schema, buffers)
    assert list(tensors) == [spec.name for spec in schema]
    assert [tensors[name].nbytes for name in tensors] == [spec.nbytes for spec in schema]
    assert tensors.nbytes == schema_bytes(schema) == sum(buffer.nbytes for buffer in buffers)
    assert len(tensors) == len(schema)
    assert tensors == Tensors(schema, buffers)


@pytest.mark.parametrize(
    ("dtype", "numpy_name"),
    [("bool", "bool"), ("i8", "i1"), ("u16", "u2"), ("f16", "f2"), ("i32", "i4"), ("f32", "f4"), ("u64", "u8")],
)  # fmt: skip
def test_item_sizes_are_those_of_numpy(dtype, numpy_name) -> None:
    assert ITEM_BYTES[dtype] == np.dtype(numpy_name).itemsize


def test_memory_is_shared_and_read_only() -> None:
    memory = np.arange(6, dtype="f4").reshape(2, 3)
    tensors = Tensors([one(shape=(2, 3))], [memoryview(memory)])
    memory[1, 2] = 9
    assert np.frombuffer(tensors["w"], "f4").tolist() == [0, 1, 2, 3, 4, 9]
    with pytest.raises(TypeError):
        tensors["w"][0] = 1  # type: ignore[index]  # that it is refused is the point


def test_empty_tensors_of_any_shape() -> None:
    for shape in [(0,), (3, 0), (0, 0, 2)]:
        assert Tensors([one(shape=shape)], [memoryview(np.zeros(shape, "f4"))])["w"].nbytes == 0


def test_scalar() -> None:
    assert one(shape=()).nbytes == 4
    assert math.isclose(np.frombuffer(Tensors([one(shape=())], [memoryview(np.array(2.5, "f4"))])["w"], "f4")[0], 2.5)


@pytest.mark.parametrize(
    ("schema", "buffers", "sentence"),
    [
        ([one()], [], "1 tensors are described, 0 buffers"),
        ([], [bytes(8)], "0 tensors are described, 1 buffers"),
        ([one(), one()], [bytes(8), bytes(8)], "two tensors have one name"),
        ([one(dtype="f33")], [bytes(8)], "'w': dtype 'f33' is none of bool, i8"),
        ([one(shape=(3,))], [bytes(8)], "'w'.* takes 12 bytes, not 8"),
    ],
)
def test_refuses_what_does_not_fit(schema, buffers, sentence) -> None:
    with pytest.raises(MessageError, match=sentence):
        Tensors(schema, [memoryview(buffer) for buffer in buffers])


def test_refuses_memory_with_gaps() -> None:
    with pytest.raises(MessageError, match="not contiguous"):
        Tensors([one(shape=(2, 2))], [memoryview(np.zeros((4, 2), "f4"))[::2]])


def test_no_such_name() -> None:
    tensors = Tensors([one()], [memoryview(bytes(8))])
    with pytest.raises(KeyError, match="bias"):
        tensors["bias"]
    assert "bias" not in tensors
    assert tensors.get("bias") is None


def test_equal_by_schema_and_content_and_not_hashable() -> None:
    zeros, ones = memoryview(bytes(8)), memoryview(b"\1" * 8)
    assert Tensors([one()], [zeros]) == Tensors([one()], [memoryview(bytearray(8))])
    assert Tensors([one()], [zeros]) != Tensors([one()], [ones])
    assert Tensors([one()], [zeros]) != Tensors([one("v")], [zeros])
    assert Tensors([one()], [zeros]) != {"w": zeros}
    with pytest.raises(TypeError):
        hash(Tensors([one()], [zeros]))


def test_repr_is_one_line_without_contents() -> None:
    many = [one(str(number)) for number in range(5)]
    assert repr(Tensors(many, [memoryview(bytes(8))] * 5)) == "<Tensors 0: f32[2], 1: f32[2], 2: f32[2], 2 more>"
    assert repr(Tensors([one()], [memoryview(bytes(8))])) == "<Tensors w: f32[2]>"


@given(schemas, st.integers(0, 1 << 62))
def test_description_round_trip(schema, at) -> None:
    located = parse(describe(schema, at))
    assert located.tensors == schema
    assert located.at == at


@given(json_values)
def test_parse_takes_nothing_else(described) -> None:
    try:
        located = parse(described)
    except RemoteProtocolError:
        return
    assert describe(located.tensors, located.at) == described


@pytest.mark.parametrize(
    "described",
    [
        {"tensors": [["w", "f32", [-1]]], "at": 0},
        {"tensors": [["w", "f32", [1 << 48]]], "at": 0},
        {"tensors": [["w", "f32", [True]]], "at": 0},
        {"tensors": [["w", "f32", [2.0]]], "at": 0},
        {"tensors": [["w", "f32", [1] * 17]], "at": 0},
        {"tensors": [["w", "complex", [1]]], "at": 0},
        {"tensors": [["w", "f32", [1], 0]], "at": 0},
        {"tensors": [[7, "f32", [1]]], "at": 0},
        {"tensors": [], "at": -1},
        {"tensors": []},
        {"tensors": [], "at": 0, "more": 0},
    ],
)
def test_parse_refuses(described) -> None:
    with pytest.raises(RemoteProtocolError, match="tensors are not described"):
        parse(described)
