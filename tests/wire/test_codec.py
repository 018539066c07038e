import contextlib
import enum
import math
import typing
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import orjson
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from p2pfl.errors import MessageError, RemoteProtocolError
from p2pfl.wire.codec import Incoming, announced, decode, encode, pack, unpack
from p2pfl.wire.fields import fields_of
from p2pfl.wire.message import Message
from p2pfl.wire.packet import Packet
from p2pfl.wire.tensor import Tensors, TensorSpec


class Color(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


@dataclass(frozen=True)
class Point:
    x: int
    y: float | None = None


@dataclass(frozen=True)
class Path:
    points: list[Point]
    named: dict[str, Point]
    ends: tuple[Point, Point] | None


class Everything(Message):
    flag: bool
    whole: int
    real: float
    word: str
    octets: bytes
    nothing: None
    color: Color
    level: Level
    order: Literal["up", "down"]
    numbers: list[int]
    pair: tuple[int, str]
    many: tuple[float, ...]
    by_name: dict[str, int]
    maybe: str | None
    either: int | str | list[int]
    path: Path
    point: Point | None
    tensors: Tensors
    layers: list[Tensors]


class Update(Message):
    params: Tensors
    samples: int
    loss: float | None = None


class Even(Message):
    number: int

    def __post_init__(self) -> None:
        if self.number % 2:
            raise ValueError("an odd number")


class Tree(Message):
    branches: "list[Tree]"


class Loose(Message):
    value: Any


reals = st.floats(allow_nan=False, allow_infinity=False)
words = st.text(st.characters(exclude_categories=["Cs"]), max_size=10)
integers = st.integers(-(1 << 63), (1 << 64) - 1)
points = st.builds(Point, integers, reals | st.none())
tensors = st.lists(st.integers(0, 9), max_size=3).map(
    lambda counts: Tensors(
        [TensorSpec(str(place), "u8", (count,)) for place, count in enumerate(counts)],
        [memoryview(bytes(range(count))) for count in counts],
    )
)
everything = st.builds(
    Everything,
    flag=st.booleans(),
    whole=integers,
    real=reals,
    word=words,
    octets=st.binary(max_size=20),
    nothing=st.none(),
    color=st.sampled_from(Color),
    level=st.sampled_from(Level),
    order=st.sampled_from(["up", "down"]),
    numbers=st.lists(integers, max_size=3),
    pair=st.tuples(integers, words),
    many=st.lists(reals, max_size=3).map(tuple),
    by_name=st.dictionaries(words, integers, max_size=3),
    maybe=words | st.none(),
    either=integers | words | st.lists(integers, max_size=2),
    path=st.builds(
        Path,
        st.lists(points, max_size=2),
        st.dictionaries(words, points, max_size=2),
        st.tuples(points, points) | st.none(),
    ),
    point=points | st.none(),
    tensors=tensors,
    layers=st.lists(tensors, max_size=2),
)
json_values = st.recursive(
    st.none() | st.booleans() | integers | reals | words,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(words | st.sampled_from(["tensors", "at"]), inner),
    max_leaves=15,
)
SAMPLE = Update(Tensors([TensorSpec("w", "f32", (2,))], [memoryview(np.array([1, 2], "f4"))]), 7, 0.25)


def received(message: Message) -> Incoming:
    """The message as it comes out at the other end of a link."""
    return unpack(pack("tell", 1, encode(message)))[2]


def changed(message: Message, **fields: object) -> Incoming:
    """As `received`, with some of the fields replaced on the way."""
    incoming = received(message)
    return incoming._replace(fields={**incoming.fields, **fields})


# -- round trips -------------------------------------------------------------------------------------------------------


@given(everything)
def test_round_trip_of_every_kind_of_field(message) -> None:
    again = decode(Everything, received(message))
    assert again == message
    for name in fields_of(Everything):
        assert type(getattr(again, name)) is type(getattr(message, name))


def test_defaults_need_not_be_sent() -> None:
    incoming = received(SAMPLE)
    del incoming.fields["loss"]
    assert decode(Update, incoming) == Update(SAMPLE.params, 7, None)


def test_buffers_pass_by_reference() -> None:
    memory = np.zeros(2, "f4")
    message = Update(Tensors([TensorSpec("w", "f32", (2,))], [memoryview(memory)]), 1)
    there = decode(Update, received(message))
    memory[0] = 5
    assert np.frombuffer(there.params["w"], "f4").tolist() == [5, 0]


def test_tensors_of_several_fields_share_one_list_of_buffers() -> None:
    message = Both(SAMPLE.params, [SAMPLE.params, SAMPLE.params])
    assert [d["at"] for d in (received(message).fields["first"], *received(message).fields["rest"])] == [0, 1, 2]
    assert decode(Both, received(message)) == message


class Both(Message):
    first: Tensors
    rest: list[Tensors]


def test_the_head_is_json_that_others_can_read() -> None:
    packet = pack("tell", 3, encode(SAMPLE))
    assert orjson.loads(packet.head) == [
        "tell", 3, "Update",
        {"params": {"tensors": [["w", "f32", [2]]], "at": 0}, "samples": 7, "loss": 0.25},
    ]  # fmt: skip
    assert packet.buffers[0].tobytes() == np.array([1, 2], "<f4").tobytes()


@given(st.integers(0, (1 << 64) - 1), words)
def test_packets_without_a_message(number, reason) -> None:
    kind, there, content = unpack(pack("fail", number, reason=reason))
    assert (kind, there, content.tag, content.fields) == ("fail", number, "", {"reason": reason})


# -- what cannot be sent -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        (math.nan, r"Loose\.value: nan is not a number that JSON has"),
        (-math.inf, r"Loose\.value: -inf is not"),
        (1 << 64, r"Loose\.value: 18446744073709551616 does not fit 64 bits; send it as a str"),
        (-(1 << 63) - 1, "does not fit 64 bits"),
        ("\ud800", r"Loose\.value: a str has '\\ud800', half a character"),
        ({1, 2}, r"Loose\.value: set is not a wire type"),
        (np.float32(1), "float32 is not a wire type"),
        (np.int64(1), "int64 is not a wire type"),
        (object(), "object is not a wire type"),
        (Point, "type is not a wire type"),
        (bytearray(2), "bytearray is not a wire type"),
        ([1, [2, math.nan]], r"Loose\.value\.1\.1: nan"),
        ({"a": {"b": 1j}}, r"Loose\.value\.a\.b: complex"),
        (Point(1, math.inf), r"Loose\.value\.y: inf"),
        ((Path([Point(1), Point(1 << 70)], {}, None),), r"Loose\.value\.0\.points\.1\.x: 1180591620717411303424"),
        ({1: "x"}, r"Loose\.value: the key 1 of a dict is no str"),
        ({"tensors": [], "at": 0}, "the names 'tensors' and 'at' alone mean Tensors"),
    ],
)
def test_refuses_to_send_by_name(value, sentence) -> None:
    with pytest.raises(MessageError, match=sentence):
        encode(Loose(value))


@pytest.mark.parametrize("depth", [300, 100_000])
def test_refuses_to_send_what_is_nested_too_deeply(depth) -> None:
    nested: list[Any] = []
    for _ in range(depth):
        nested = [nested]
    with pytest.raises(MessageError, match="Loose is nested too deeply"):
        encode(Loose(nested))


@given(st.recursive(st.floats() | st.integers() | st.text() | st.binary() | st.none(), st.lists))
def test_what_is_sent_is_never_altered(value) -> None:
    try:
        body = encode(Loose(value))
    except MessageError:
        return
    assert received(Loose(value)).fields["value"] == _base64(value)
    assert orjson.loads(body.json)["value"] == _base64(value)


def _base64(value: Any) -> Any:
    import base64

    if isinstance(value, list):
        return [_base64(item) for item in value]
    return base64.b64encode(value).decode() if isinstance(value, bytes) else value


# -- what must not be received -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"samples": "7"}, r"Update: Expected `int`, got `str` - at `\$\.samples`"),
        ({"samples": 7.0}, r"Expected `int`, got `float` - at `\$\.samples`"),
        ({"samples": True}, r"Expected `int`, got `bool` - at `\$\.samples`"),
        ({"samples": None}, r"Expected `int`, got `null` - at `\$\.samples`"),
        ({"loss": "low"}, r"Expected `float \| null`, got `str` - at `\$\.loss`"),
        ({"params": [1, 2]}, r"Update: tensors are not described as {tensors, at}: .* at `\$\.params`"),
        ({"extra": 1}, "Update: it has no field extra"),
        (
            {"params": {"tensors": [["w", "f32", [3]]], "at": 0}},
            r"Update: tensor 'w': .* takes 12 bytes, not 8 - at `\$\.params`",
        ),
        ({"params": {"tensors": [["w", "f32", [2]]], "at": 1}}, "1 tensors are described, 0 buffers"),
        ({"params": {"tensors": [["w", "f32", [2]]], "at": (1 << 64) - 1}}, "1 tensors are described, 0 buffers"),
    ],
)
def test_refuses_to_receive_by_name(fields, sentence) -> None:
    with pytest.raises(RemoteProtocolError, match=sentence):
        decode(Update, changed(SAMPLE, **fields))


def test_refuses_missing_fields() -> None:
    with pytest.raises(RemoteProtocolError, match="Update: Object missing required field `params`"):
        decode(Update, Incoming("Update", {"samples": 3}, ()))


POINT = {"x": 1, "y": 2.0, "z": 3.0}


@pytest.mark.parametrize(
    ("fields", "path"),
    [
        ({"points": [{"x": 1}, POINT]}, r"route\.points\.1\.z"),
        ({"named": {"home": POINT}}, r"route\.named\.home\.z"),
        ({"ends": [{"x": 1}, POINT]}, r"route\.ends\.1\.z"),
        ({"more": POINT}, r"route\.more"),
    ],
)
def test_refuses_unknown_fields_at_any_depth(fields, path) -> None:
    plain = {"points": [], "named": {}, "ends": None}
    assert decode(Travel, Incoming("Travel", {"route": plain}, ())) == Travel(Path([], {}, None))
    with pytest.raises(RemoteProtocolError, match=f"Travel: it has no field {path}"):
        decode(Travel, Incoming("Travel", {"route": plain | fields}, ()))


class Travel(Message):
    route: Path


def test_a_message_type_may_refuse_values() -> None:
    assert decode(Even, Incoming("Even", {"number": 4}, ())) == Even(4)
    with pytest.raises(RemoteProtocolError, match="Even: an odd number"):
        decode(Even, Incoming("Even", {"number": 3}, ()))


def test_deep_nesting_of_a_recursive_type() -> None:
    nested: dict[str, Any] = {"branches": []}
    for _ in range(5000):
        nested = {"branches": [nested]}
    with pytest.raises(RemoteProtocolError, match="Tree"):
        decode(Tree, Incoming("Tree", nested, ()))


def test_names_of_a_peer_do_not_flood_the_log() -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        decode(Update, changed(SAMPLE, **{"x" * 100_000: 1}))
    assert len(str(caught.value)) < 200


@given(st.dictionaries(st.sampled_from(["flag", *fields_of(Everything)]) | words, json_values))
def test_arbitrary_json_as_fields(fields) -> None:
    with contextlib.suppress(RemoteProtocolError):
        decode(Everything, Incoming("Everything", fields, ()))


@given(everything, st.data())
def test_one_field_replaced_by_arbitrary_json(message, data) -> None:
    name = data.draw(st.sampled_from(list(fields_of(Everything))))
    incoming = changed(message, **{name: data.draw(json_values)})
    try:
        again = decode(Everything, incoming)
    except RemoteProtocolError:
        return
    assert isinstance(again, Everything)


@given(st.binary())
@example(b"[1" * 3000)
@example(b'["tell",1,"X",{}')
@example(b'["tell",true,"X",{}]')
@example(b'["tell",-1,"X",{}]')
@example(b'["tell",1e400,"X",{}]')
@example(b'["tell",1,"X",[]]')
@example(b'["tell",1,"X",{},0]')
@example(b'{"tell":0,"b":0,"c":0,"d":0}')
@example(b'"tell"')
@example(b"\xff\xfe")
@example(b'["tell",1,"\\ud800",{}]')
def test_arbitrary_bytes_as_a_head(head) -> None:
    with pytest.raises(RemoteProtocolError):
        unpack(Packet(head))
    with pytest.raises(RemoteProtocolError):
        list(announced(head))


@given(st.binary(max_size=40), st.integers(0, 200))
def test_damaged_heads(junk, place) -> None:
    head = pack("tell", 1, encode(SAMPLE)).head
    damaged = Packet(head[:place] + junk + head[place + len(junk) :], SAMPLE.params.buffers)
    with contextlib.suppress(RemoteProtocolError):
        decode(Update, unpack(damaged)[2])


# -- announcements -----------------------------------------------------------------------------------------------------


@given(everything)
def test_announces_the_tensors_of_all_fields(message) -> None:
    packet = pack("tell", 1, encode(message))
    schemas = sorted(announced(packet.head))
    assert schemas == sorted(each.schema for each in (message.tensors, *message.layers))
    assert sorted(spec.nbytes for schema in schemas for spec in schema) == sorted(b.nbytes for b in packet.buffers)


@given(json_values)
def test_arbitrary_json_announces_nothing_or_fails(value) -> None:
    try:
        schemas = list(announced(orjson.dumps(["tell", 1, "X", {"value": value}])))
    except RemoteProtocolError:
        return
    assert isinstance(schemas, list)


def test_refuses_to_announce_without_bound() -> None:
    huge = {"tensors": [["w", "f32", [1 << 47, 1 << 47]]], "at": 0}
    with pytest.raises(RemoteProtocolError, match="more than 2\\^48 bytes"):
        list(announced(orjson.dumps(["tell", 1, "X", {"deep": [{"er": huge}]}])))


def test_announcement_reads_what_decoding_reads() -> None:
    assert typing.cast("Any", list(announced(pack("tell", 1, encode(SAMPLE)).head))) == [SAMPLE.params.schema]
