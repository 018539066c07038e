import dataclasses

import pytest

from p2pfl.errors import MessageError
from p2pfl.wire.message import Message, Request, Vocabulary, handlers_of, reply_type


class Reading(Message):
    sensor: str
    value: float = 0.0


class Warmth(Message, tag="warmth/2"):
    degrees: float


class Measure(Request[Warmth]):
    sensor: str


class Station:
    def __init__(self) -> None:
        self.seen: list[object] = []

    @Measure.handler
    async def measure(self, ask: Measure, peer: object) -> Warmth:
        self.seen.append((ask, peer))
        return Warmth(21.5)

    @Reading.handler
    async def reading(self, message: Reading, peer: object) -> None:
        self.seen.append((message, peer))


class Other:
    @Reading.handler
    async def hear(self, message: Reading, peer: object) -> None: ...


def test_messages_are_frozen_dataclasses() -> None:
    reading = Reading("attic", 3.5)
    assert (reading.sensor, reading.value, Reading("attic").value) == ("attic", 3.5, 0.0)
    assert reading == Reading("attic", 3.5) != Reading("cellar", 3.5)
    assert repr(reading) == "Reading(sensor='attic', value=3.5)"
    assert len({reading, Reading("attic", 3.5)}) == 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        reading.value = 4.0  # type: ignore[misc]  # that it is refused is the point


def test_tags() -> None:
    assert (Reading.tag, Warmth.tag, Measure.tag) == ("Reading", "warmth/2", "Measure")
    assert "tag" not in {field.name for field in dataclasses.fields(Warmth)}


def test_a_field_cannot_be_named_tag() -> None:
    with pytest.raises(MessageError, match="Label has a field named tag"):

        class Label(Message):
            tag: str  # type: ignore[misc]  # the mistake that is tested


def test_fields_are_inherited() -> None:
    class Detailed(Reading):
        unit: str = "K"

    assert [field.name for field in dataclasses.fields(Detailed)] == ["sensor", "value", "unit"]
    assert Detailed.tag == "Detailed"


def test_reply_type() -> None:
    class Again(Measure):
        times: int

    assert reply_type(Measure) is Warmth
    assert reply_type(Again) is Warmth


def test_a_request_must_say_its_reply() -> None:
    class Mute(Request):  # type: ignore[type-arg]  # the mistake that is tested
        pass

    with pytest.raises(MessageError, match=r"write class Mute\(Request\[Reply\]\)"):
        reply_type(Mute)


async def test_handlers_are_bound_methods_by_type() -> None:
    station = Station()
    handlers = handlers_of([station])
    assert set(handlers) == {Measure, Reading}
    assert await handlers[Measure](Measure("attic"), "peer") == Warmth(21.5)
    assert station.seen == [(Measure("attic"), "peer")]


def test_decorated_methods_stay_what_they_are() -> None:
    assert Station.measure.__name__ == "measure"
    assert not handlers_of([object()])


def test_handlers_of_several_roles() -> None:
    class Quiet:
        @Measure.handler
        async def measure(self, ask: Measure, peer: object) -> Warmth:
            return Warmth(0)

    assert set(handlers_of([Quiet(), Other()])) == {Measure, Reading}


def test_two_handlers_for_one_type() -> None:
    with pytest.raises(MessageError, match=r"Reading has two handlers: Station\.reading and Other\.hear"):
        handlers_of([Station(), Other()])

    class Twice(Other):
        @Reading.handler
        async def listen(self, message: Reading, peer: object) -> None: ...

    with pytest.raises(MessageError, match="Reading has two handlers"):
        handlers_of([Twice()])


def test_one_method_for_two_messages() -> None:
    with pytest.raises(MessageError, match=r"hear handles warmth/2 already: write one method for each message"):

        class Both:
            @Reading.handler  # type: ignore[arg-type]  # the mistake that is tested
            @Warmth.handler
            async def hear(self, message: Warmth, peer: object) -> None: ...


async def test_a_subclass_overrides_a_handler() -> None:
    class Warm(Station):
        @Measure.handler
        async def measure(self, ask: Measure, peer: object) -> Warmth:
            return Warmth(30)

    assert await handlers_of([Warm()])[Measure](Measure("attic"), None) == Warmth(30)


def test_a_subclass_can_drop_a_handler() -> None:
    class Deaf(Other):
        hear = None  # type: ignore[assignment]  # an override that handles nothing

    assert not handlers_of([Deaf()])


def test_who_answers_must_be_async() -> None:
    class Hasty:
        @Measure.handler  # type: ignore[arg-type]  # the mistake that is tested
        def measure(self, ask: Measure, peer: object) -> Warmth: ...

    with pytest.raises(MessageError, match=r"Hasty\.measure answers Measure, so it must be `async def`"):
        handlers_of([Hasty()])


def test_a_statement_can_be_taken_by_an_ordinary_method() -> None:
    class Prompt:
        @Reading.handler
        def hear(self, message: Reading, peer: object) -> None: ...

    role = Prompt()
    assert handlers_of([role]) == {Reading: role.hear}


def test_finding_handlers_runs_no_property() -> None:
    class Lazy(Other):
        @property
        def costly(self) -> None:
            raise AssertionError("was evaluated")

    assert set(handlers_of([Lazy()])) == {Reading}


def test_vocabulary() -> None:
    words = Vocabulary([Reading, Warmth])
    assert words["Reading"] is Reading
    assert words["warmth/2"] is Warmth
    assert "Warmth" not in words
    assert 7 not in words
    assert set(words) == {Reading, Warmth}
    assert len(words) == 2
    assert repr(words) == "<Vocabulary Reading warmth/2>"
    words.add([Reading, Measure])
    assert len(words) == 3


def test_two_types_with_one_tag() -> None:
    class Impostor(Message, tag="Reading"):
        pass

    with pytest.raises(
        MessageError, match=r"Reading and .*Impostor have one tag, 'Reading': .* Impostor\(Message, tag="
    ):
        Vocabulary([Reading, Impostor])


def test_vocabulary_refuses_fields_that_cannot_be_carried() -> None:
    with pytest.raises(MessageError, match=r"Crowd\.members is set\[int\], which is not a wire type"):
        Vocabulary([Crowd])


class Crowd(Message):
    members: set[int]
