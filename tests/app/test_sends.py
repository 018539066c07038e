import pytest

from p2pfl import Message, Node, Peer, Request
from p2pfl.app.sends import sends_of, signature_of
from p2pfl.errors import ConfigError


class Answer(Message):
    value: int


class Question(Request[Answer]):
    value: int


class Note(Message):
    pass


class Other(Message):
    pass


def broadcast() -> Note:
    return Note()


class Desk:
    """Sends what it is given."""

    async def forward(self, node: Node, message: Message) -> None:
        await node.tell_all(node.peers, message)

    async def greet(self, node: Node) -> None:
        await node.tell_all(node.peers, Other())


class Asker:
    async def run(self, node: Node) -> None:
        question = Question(1)
        await node.peers[0].ask(question)


class Answerer:
    @Question.handler
    async def question(self, ask: Question, peer: Peer) -> Answer:
        """Text
        at the margin does not confuse it."""
        return Answer(ask.value)


class Teller(Answerer):
    async def run(self, node: Node) -> None:
        await node.tell_all(node.peers, Answer(3))


class PassesOn:
    def __init__(self, desk: Desk) -> None:
        self.desk = desk
        self.node: Node

    @Note.handler
    async def note(self, message: Note, peer: Peer) -> None:
        await self.desk.forward(self.node, message)

    @Other.handler
    async def other(self, message: Other, peer: Peer) -> None:
        await self.keep(message)

    async def keep(self, message: Other) -> None: ...


class Indirect:
    async def run(self, node: Node) -> None:
        await node.tell_all(node.peers, broadcast())


class Employs:
    def __init__(self) -> None:
        self.desk = Desk()


class Lazy:
    @property
    def message(self) -> Note:
        return Note()

    @staticmethod
    def question() -> Question:
        return Question(1)


@pytest.mark.parametrize(
    ("role", "built", "told"),
    [
        (Asker, {Question}, {Question}),
        (Answerer, {Answer}, set()),
        (Teller, {Answer}, {Answer}),
        (PassesOn, set(), {Note}),
        (Indirect, {Note}, set()),
        (Employs, {Other}, {Other}),
        (Lazy, {Note, Question}, set()),
    ],
)
def test_what_a_role_builds_and_tells(role, built, told) -> None:
    sends = sends_of(role)
    assert (sends.built, sends.told) == (built, told)


def test_names_of_an_enclosing_function() -> None:
    class Local(Message):
        pass

    class Role:
        async def run(self, node: Node) -> None:
            await node.tell_all([], Local())

    assert sends_of(Role).built == {Local}


def test_signature() -> None:
    signature = signature_of(Answerer, "question")
    assert (signature.message, signature.reply, signature.is_async) == (Question, Answer, True)


def test_signature_in_strings_without_annotations_and_without_async() -> None:
    class Quoted:
        async def one(self, ask: "Question", peer: "Peer") -> "None": ...

        def two(self, ask, peer): ...

        three = lambda self, ask, peer: None  # noqa: E731 - a method of an odd kind

    one, two, three = (signature_of(Quoted, name) for name in ("one", "two", "three"))
    assert (one.message, one.reply, one.is_async) == (Question, type(None), True)
    assert (two.message, two.reply, two.is_async) == (None, None, False)
    assert not three.is_async


def test_no_source() -> None:
    namespace: dict[str, type] = {}
    exec("class Role:\n    async def run(self, node): ...", {"__name__": "nowhere"}, namespace)
    with pytest.raises(ConfigError, match="the source of Role cannot be read; put the role into a file"):
        sends_of(namespace["Role"])
