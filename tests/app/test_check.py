"""Each way in which the messages of a course can fail to fit has a small broken course here."""

import sys
from typing import Any

import pytest

from p2pfl import Message, Node, Peer, Request
from p2pfl.app.check import check_course, check_module, check_roles
from p2pfl.app.config import COURSES
from p2pfl.app.flow import Edge
from p2pfl.courses.fedavg import FedAvgSettings
from p2pfl.errors import ConfigError
from p2pfl.node.membership import Roster


class Update(Message):
    value: int


class Train(Request[Update]):
    round: int


class Finish(Message):
    pass


class Server:
    async def run(self, node: Node) -> None:
        async with node.ask_all(node.peers, Train(1)) as replies:
            async for _ in replies:
                pass
        await node.tell_all(node.peers, Finish())


class Trainer:
    async def run(self, node: Node) -> None: ...

    @Train.handler
    async def train(self, ask: Train, peer: Peer) -> Update:
        return Update(ask.round)

    @Finish.handler
    async def finish(self, message: Finish, peer: Peer) -> None: ...


def problem(*roles: type) -> str:
    """The one problem that there is with some roles."""
    (found,) = check_roles("test", roles).problems
    return found


# -- sound courses -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", COURSES)
def test_shipped_courses_are_sound(name) -> None:
    flow = check_course(COURSES[name])
    assert flow.problems == ()
    assert flow.roles == tuple(role.__name__ for role in COURSES[name].roles)
    assert flow.edges


def test_flow_of_federated_averaging() -> None:
    flow = check_course(COURSES["fedavg"])
    assert flow.edges == (
        Edge("Server", "Train", "Trainer", "Update"),
        Edge("Server", "Evaluate", "Trainer", "Score"),
        Edge("Server", "Finish", "Trainer", "Finished"),
    )
    assert flow.senders == {"Train": ("Server",), "Evaluate": ("Server",), "Finish": ("Server",)}
    assert flow.handlers == {"Train": ("Trainer",), "Evaluate": ("Trainer",), "Finish": ("Trainer",)}


def test_a_course_with_an_elected_coordinator_is_sound() -> None:
    flow = check_course(COURSES["fedavg"], FedAvgSettings(coordinator="elect"))
    assert flow.problems == ()
    edges = {(edge.sender, edge.message, edge.receiver, edge.reply) for edge in flow.edges}
    assert ("Council", "Endorse", "Council", "Endorsed") in edges
    assert ("Candidate", "Train", "Candidate", "Update") in edges


def test_what_is_passed_on_is_sent() -> None:
    edges = check_course(COURSES["hierarchical"]).edges
    assert Edge("Edge", "Finish", "Trainer", "Finished") in edges
    assert Edge("Edge", "Evaluate", "Trainer", "Score") in edges
    assert Edge("Trainer", "Train", "Trainer", "Update") not in edges


def test_two_roles() -> None:
    assert check_roles("test", (Server, Trainer)).problems == ()


# -- broken ones -------------------------------------------------------------------------------------------------------


def test_sent_and_not_handled() -> None:
    class Deaf:
        async def run(self, node: Node) -> None: ...

        @Train.handler
        async def train(self, ask: Train, peer: Peer) -> Update:
            return Update(1)

    assert problem(Server, Deaf) == (
        "Finish is sent by Server and handled by no role: give one a method with @Finish.handler"
    )


def test_handled_and_not_sent() -> None:
    class Mute:
        async def run(self, node: Node) -> None:
            await node.peers[0].ask(Train(1))

    assert problem(Mute, Trainer) == (
        "Finish is handled by Trainer and sent by no role: send Finish(...) somewhere, or drop the handler"
    )


def test_what_is_only_passed_on_is_sent_by_nobody() -> None:
    class Relay:
        node: Node

        async def run(self, node: Node) -> None: ...

        @Finish.handler
        async def finish(self, message: Finish, peer: Peer) -> None:
            await self.node.tell_all([], message)

    assert problem(Relay).startswith("Finish is handled by Relay and sent by no role")


def test_answers_alone_send_nothing() -> None:
    class Collector(Server):
        @Update.handler
        async def update(self, message: Update, peer: Peer) -> None: ...

    assert problem(Collector, Trainer).startswith("Update is handled by Collector and sent by no role")


def test_answers_that_are_told_as_well_are_sent() -> None:
    class Pushes(Trainer):
        async def run(self, node: Node) -> None:
            await node.peers[0].tell(Update(1))

    class Collector(Server):
        @Update.handler
        async def update(self, message: Update, peer: Peer) -> None: ...

    assert check_roles("test", (Collector, Pushes)).problems == ()


def test_wrong_answer() -> None:
    class Wrong(Trainer):
        @Train.handler
        async def train(self, ask: Train, peer: Peer) -> Finish:
            return Finish()

    assert problem(Server, Wrong) == "Wrong.train returns Finish, but Train is answered by Update: return Update"


def test_no_answer() -> None:
    class Silent(Trainer):
        @Train.handler
        async def train(self, ask: Train, peer: Peer) -> None: ...

    assert problem(Server, Silent) == "Silent.train returns None, but Train is answered by Update: return Update"


def test_answer_to_a_statement() -> None:
    class Chatty(Trainer):
        @Finish.handler
        async def finish(self, message: Finish, peer: Peer) -> Update:
            return Update(1)

    assert problem(Server, Chatty) == "Chatty.finish returns Update, but Finish has no answer: return None"


def test_wrong_parameter() -> None:
    class Wrong(Trainer):
        @Finish.handler
        async def finish(self, message: Update, peer: Peer) -> None: ...

    assert problem(Server, Wrong) == (
        "Wrong.finish handles Finish, but its parameter is annotated Update: "
        "annotate Finish, or decorate with @Update.handler"
    )


def test_no_coroutine() -> None:
    class Hasty(Trainer):
        @Train.handler  # type: ignore[arg-type]  # the mistake that is tested
        def train(self, ask: Train, peer: Peer) -> Update: ...

    assert problem(Server, Hasty) == "Hasty.train answers Train and is no coroutine function: write async def"


def test_a_statement_can_be_taken_by_an_ordinary_method() -> None:
    class Prompt(Trainer):
        @Finish.handler
        def finish(self, message: Finish, peer: Peer) -> None: ...

    assert not check_roles("test", (Server, Prompt)).problems


def test_no_run() -> None:
    class Endless:
        @Train.handler
        async def train(self, ask: Train, peer: Peer) -> Update:
            return Update(1)

        @Finish.handler
        async def finish(self, message: Finish, peer: Peer) -> None: ...

    assert problem(Server, Endless) == (
        "Endless has no run, so its node would serve for ever and the course cannot end: "
        "write async def run(self, node: Node) that returns when the course is over"
    )


def test_two_handlers_for_one_message() -> None:
    class Twice(Trainer):
        @Finish.handler
        async def ended(self, message: Finish, peer: Peer) -> None: ...

    assert problem(Server, Twice) == "Twice has two handlers for Finish, finish and ended: drop one of them"


def test_a_message_that_nodes_handle_themselves() -> None:
    class Nosy(Trainer):
        @Roster.handler
        async def roster(self, message: Roster, peer: Peer) -> None: ...

    assert problem(Server, Nosy) == (
        "Nosy.roster handles Roster, which every node handles itself: define a message of your own"
    )


def test_two_types_with_one_tag() -> None:
    class Impostor(Message, tag="Finish"):
        pass

    class Confused(Server):
        async def run(self, node: Node) -> None:
            await node.tell_all([], Impostor())

        @Impostor.handler
        async def impostor(self, message: Impostor, peer: Peer) -> None: ...

    found = problem(Confused, Trainer, Server)
    assert found.endswith("""have one tag, 'Finish': give one of them another, class Finish(..., tag="...")""")
    assert ".Impostor and " in found


class Bag(Message):
    things: set[int]


def test_a_field_that_cannot_be_carried() -> None:
    class Packs:
        async def run(self, node: Node) -> None:
            await node.tell_all([], Bag({1}))

        @Bag.handler
        async def bag(self, message: Bag, peer: Peer) -> None: ...

    assert problem(Packs).startswith("Bag.things is set[int], which is not a wire type")


def test_a_request_without_an_answer() -> None:
    class Query(Request):  # type: ignore[type-arg]  # the mistake that is tested
        pass

    class Asks:
        async def run(self, node: Node) -> None:
            await node.peers[0].ask(Query())

        @Query.handler
        async def query(self, ask: Query, peer: Peer) -> Any: ...

    assert problem(Asks) == "Query does not say its reply: write class Query(Request[Reply])"


def test_every_problem_is_told() -> None:
    class Broken:
        @Train.handler
        def train(self, ask: Finish, peer: Peer) -> None: ...

    problems = check_roles("test", (Broken,)).problems
    assert len(problems) == 5
    assert all("\n" not in sentence for sentence in problems)


# -- modules -----------------------------------------------------------------------------------------------------------

COURSE = '''
from __future__ import annotations
from typing import TYPE_CHECKING
from p2pfl import Message, Request
if TYPE_CHECKING:
    from p2pfl import Node, Peer

class Pong(Message):
    count: int

class Ping(Request[Pong]):
    count: int

class Player:
    async def run(self, node: Node) -> None:
        await node.peers[0].ask(Ping(1))

    @Ping.handler
    async def ping(self, ask: Ping, peer: Peer) -> Pong:
        return Pong(ask.count)

class Spectator:
    """No role."""
    async def run(self) -> None: ...
'''


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Write a module, which is forgotten after the test."""

    def write(name: str, text: str) -> str:
        monkeypatch.setitem(sys.modules, f"checked.{name}", sys)
        path = tmp_path / f"{name}.py"
        path.write_text(text)
        return str(path)

    return write


def test_a_module_by_path(write) -> None:
    flow = check_module(write("table_tennis", COURSE))
    assert (flow.name, flow.roles, flow.problems) == ("table_tennis", ("Player",), ())
    assert flow.edges == (Edge("Player", "Ping", "Player", "Pong"),)


def test_a_file_may_be_called_as_a_module_in_use_and_change(write) -> None:
    assert check_module(write("random", COURSE)).problems == ()
    assert check_module(write("random", COURSE + "\n    @Pong.handler\n    def pong(self, a, b): ...\n")).problems != ()
    assert not hasattr(sys.modules["random"], "Player")


def test_a_module_by_name() -> None:
    flow = check_module("p2pfl.courses.hierarchical")
    assert (flow.roles, flow.problems) == (("Server", "Edge", "Trainer"), ())


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("nowhere/to/be/found.py", "is not a file; give the path of a Python module"),
        ("no.such.module", "there is no module 'no.such.module'; give a path that ends in .py, or install it"),
        ("p2pfl.errors", "p2pfl.errors has no role: give a class a handler, or async def run"),
    ],
)
def test_no_module_or_no_role(name, sentence) -> None:
    with pytest.raises(ConfigError, match=sentence):
        check_module(name)


def test_a_module_that_misses_another_says_which(write) -> None:
    with pytest.raises(ModuleNotFoundError, match="numpie"):
        check_module(write("misses_another", "import numpie"))
