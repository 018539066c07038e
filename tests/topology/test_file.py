from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pfl.errors import ConfigError
from p2pfl.topology import Member, Topology, dumps, load, loads
from p2pfl.topology.fixed import exponential

MESH = """
about = "three sites"
[[member]]
name = "ann"
address = "ann.example:7700"
[[member]]
name = "bob"
role = "relay"
address = "bob.example:7700"
[[member]]
name = "eve"
[links]
ann = ["bob", "eve"]
eve = ["ann", "bob"]
"""


def test_a_family_with_parameters() -> None:
    file = loads('family = "torus"\nn = 12\nrows = 2\nabout = "flat"')
    assert repr(file.schedule) == "<Topology torus: 12 seats, 18 edges, degree 3>"
    assert (file.family, file.parameters, file.about, file.members) == ("torus", {"rows": 2}, "flat", ())


def test_named_members_and_links() -> None:
    file = loads(MESH)
    assert file.schedule.union.edges == ((0, 1), (0, 2), (1, 2))
    assert file.schedule.union.names == ("ann", "bob", "eve")
    assert file.schedule.union.roles == ("peer", "relay", "peer")
    assert file.member("eve") == Member("eve", 2)
    assert file.dial_only == (2,)


def test_every_link_is_dialled_from_one_end() -> None:
    file = loads(MESH)
    calls = [(member.name, other.name) for member in file.members for other in file.dials(member.name)]
    assert calls == [("bob", "ann"), ("eve", "ann"), ("eve", "bob")]
    with pytest.raises(ConfigError, match="member 'anne' is unknown: did you mean 'ann'"):
        file.dials("anne")


def test_one_way_links_are_dialled_too() -> None:
    members = "".join(f'[[member]]\nname = "m{i}"\naddress = "m{i}:1"\n' for i in range(5))
    file = loads('family = "one-peer-exponential"\n' + members)
    calls = {frozenset((m.seat, other.seat)) for m in file.members for other in file.dials(m.name)}
    assert calls == {frozenset(edge) for edge in exponential(5).edges}


def test_members_of_a_family_take_seats_and_roles() -> None:
    file = loads(
        'family = "star"\n[[member]]\nname = "c"\n[[member]]\nname = "hub"\nseat = 0\naddress = "h:1"\n'
        '[[member]]\nname = "d"\nrole = "observer"'
    )
    union = file.schedule.union
    assert union.names == ("hub", "c", "d")
    assert union.roles == ("server", "client", "observer")
    assert [member.seat for member in file.members] == [0, 1, 2]


TWO = '[[member]]\nname = "a"\n{}\n[[member]]\nname = "b"\n{}\n[links]\na = ["b"]'


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("family = ", "this is no TOML"),
        ('family = "rnig"\nn = 3', "family 'rnig' is unknown: did you mean 'ring'"),
        ('family = "ring"\nn = "3"', "n = '3' has the wrong type: give an integer"),
        ('family = "ring"', "n is missing: say how many seats"),
        ('family = "regular"\nn = 8\ndegre = 3', "key 'degre' is unknown: did you mean 'degree'"),
        ('fmaily = "ring"\nn = 8', "key 'fmaily' is unknown: did you mean 'family'"),
        ("n = 8", "family is missing: write one"),
        ("family = 3\nn = 8", "family = 3 has the wrong type: give a string"),
        ('family = "ring"\nn = 3\nabout = 3', "about = 3 has the wrong type"),
        ('family = "ring"\nn = 3\n[[member]]\nname = "a"', "n = 3 contradicts the 1 members"),
        ('family = "ring"\n[links]\na = ["b"]', "beside \\[links\\], the key 'family' is unknown"),
        ('[links]\na = ["b"]', "links join members, and there is none"),
        (MESH + 'bob = ["evee"]', "links: member 'evee' is unknown: did you mean 'eve'"),
        (MESH + "bob = 3", "links: bob = 3 has the wrong type: give a list, each entry a string"),
        (TWO.format("", ""), "'a' and 'b' are linked and both only dial out: give one of them an address"),
        (TWO.format('adress = "x"', ""), "member 'a': key 'adress' is unknown: did you mean 'address'"),
        (TWO.format("address = 7", ""), "member 'a': address = 7 has the wrong type: give a string"),
        (TWO.format('address = ""', ""), "neither name, address nor role may be empty"),
        (TWO.format("seat = 2", ""), "member 'a': seat = 2 must be from 0 to 1"),
        (TWO.format("seat = 1", "seat = 1"), "two members have the same seat"),
        ('family = "ring"\n[[member]]\nrole = "x"', "member 1: name must be there"),
        ('family = "ring"\n[[member]]\nname = "a"\n[[member]]\nname = "a"', "'a' stands at two seats"),
        (
            '[[member]]\nname = "a"\n[[member]]\nname = "b"\n[links]\na = []',
            "member 'b' cannot be reached from member 'a'",
        ),
        ('family = "edges"\nn = 3\nedges = [[0, 1]]', "seat 2 cannot be reached from seat 0: add a link"),
        (
            'family = "edges"\nn = 2\nedges = [[0, 1]]\ndirected = true',
            "seat 0 cannot be reached from seat 1: add a one-way link",
        ),
        ("member = 3", "member = 3 has the wrong type"),
    ],
)
def test_mistakes_are_one_sentence(text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        loads(text)
    assert "\n" not in str(caught.value)


def test_load_by_path_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('family = "ring"\nn = 5')
    assert load(path).schedule.n == load(str(path)).schedule.n == 5
    path.write_text('family = "ring"')
    with pytest.raises(ConfigError, match=r"^mine\.toml: n is missing"):
        load(path)
    path.write_bytes(b"about = '\xff'")
    with pytest.raises(ConfigError, match=r"mine\.toml cannot be read: it is not UTF-8 text"):
        load(path)
    with pytest.raises(ConfigError, match=r"none\.toml cannot be read: No such file"):
        load(tmp_path / "none.toml")


def test_load_by_name() -> None:
    assert load("torus-16") == load("torus-16.toml")
    with pytest.raises(ConfigError, match="topology 'torus-61' is unknown: did you mean 'torus-16'"):
        load("torus-61")


def test_notes_warn_of_slow_mixing_and_one_way_links() -> None:
    ring = loads('family = "ring"\nn = 16')
    assert ring.notes() == ring.notes(rounds=200) == []
    (note,) = ring.notes(rounds=50)
    assert "only after 133 rounds" in note and "50 are planned" in note
    assert loads('family = "exponential"\nn = 8').notes(100) == []  # everybody sends and hears as much
    (note,) = loads('family = "epidemic-local"\nn = 8').notes(100)
    assert "only push-sum corrects" in note
    assert loads('family = "base"\nn = 7').notes(100) == []


@pytest.mark.parametrize(
    "text",
    [
        MESH,
        'family = "matcha"\nn = 9\nbase = {family = "torus"}\nbudget = 0.25',
        'family = "star"\n[[member]]\nname = "\\"tab\\t\\u007f\\U0001F600"\naddress = "x:1"\n[[member]]\nname = "b"',
        'family = "latency"\nn = 2\nnearest = 1\nlatency_ms = [[0, 1.5], [2e3, 0]]',
    ],
)
def test_dumps_is_read_back(text: str) -> None:
    file = loads(text)
    again = loads(dumps(file))
    assert (again.members, again.about, again.family, again.parameters) == (
        file.members,
        file.about,
        file.family,
        file.parameters,
    )
    assert again.schedule.union == file.schedule.union
    assert dumps(again) == dumps(file)


@given(st.integers(2, 9), st.booleans(), st.data())
def test_bare_topologies_are_read_back(n: int, directed: bool, data: st.DataObject) -> None:
    extra = data.draw(st.sets(st.tuples(st.integers(0, n - 1), st.integers(0, n - 1))))
    circle = {(i, (i + 1) % n) for i in range(n)}
    topology = Topology.from_edges(n, circle | extra, directed=directed, family="edges")
    assert loads(dumps(topology)).schedule == topology
