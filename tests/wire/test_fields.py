import enum
from dataclasses import dataclass
from typing import Any, Literal

import pytest

from p2pfl.errors import MessageError
from p2pfl.wire.fields import check_fields, fields_of
from p2pfl.wire.message import Message
from p2pfl.wire.tensor import Tensors


class Color(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Odd(enum.Enum):
    HALF = 0.5


@dataclass(frozen=True)
class Tree:
    label: str
    branches: "tuple[Tree, ...]" = ()


class Everything(Message):
    flag: bool
    number: int | None
    real: float
    word: str | list[str]
    octets: bytes
    color: Color
    order: Literal["up", "down"]
    pair: tuple[int, str]
    by_name: dict[str, list[Tensors]]
    tree: Tree
    nothing: None = None


def test_fields_in_their_order_without_class_variables() -> None:
    assert list(fields_of(Everything)) == [
        "flag", "number", "real", "word", "octets", "color", "order", "pair", "by_name", "tree", "nothing",
    ]  # fmt: skip
    assert fields_of(Everything)["number"] == int | None


def test_all_wire_types_pass() -> None:
    check_fields(Everything)


@pytest.mark.parametrize(
    ("wanted", "sentence"),
    [
        (set[int], r"Odd\.field is set\[int\], which is not a wire type: use bool, int"),
        (dict[int, str], r"Odd\.field is dict\[int, str\]"),
        (dict, r"Odd\.field is <class 'dict'>"),
        (list, r"Odd\.field is <class 'list'>"),
        (object, r"Odd\.field is <class 'object'>"),
        (Any, r"Odd\.field is typing\.Any"),
        (complex, r"Odd\.field is <class 'complex'>"),
        (list[complex], r"Odd\.field is <class 'complex'>"),
        (Odd, "Enums must contain either all str or all int values"),
        (Literal[b"x"], "Literal may only contain"),
        (Tree | Everything, "unions may not contain more than one dataclass"),
        (str | bytes, "unions may not contain more than one str-like type"),
    ],
)
def test_refuses_other_types_by_name(wanted, sentence) -> None:
    kind = type("Odd", (), {"__annotations__": {"field": wanted}})
    with pytest.raises(MessageError, match=sentence):
        check_fields(dataclass(kind))


def test_names_a_nested_field() -> None:
    with pytest.raises(MessageError, match=r"Outer\.inner\.when is <class 'complex'>"):
        check_fields(Outer)


@dataclass
class Inner:
    when: complex


class Outer(Message):
    inner: list[Inner]


def test_types_must_be_found_by_name() -> None:
    @dataclass
    class Hidden:
        pass

    class Local(Message):
        value: "Hidden"

    with pytest.raises(MessageError, match=r"Local: .*Hidden.* define message types at the top level"):
        check_fields(Local)
