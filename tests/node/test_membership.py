"""Who takes part: records and versions, seats, and what is no record."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import asdict, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pfl.errors import RemoteProtocolError
from p2pfl.node.membership import MOST_RECORDS, Member, Membership, Roster
from p2pfl.node.peer import Peer
from p2pfl.wire.codec import Incoming, decode, encode, pack, unpack


def table(own: str = "me", seat: int | None = None) -> Membership:
    return Membership(Member(own, own.upper(), (f"memory:{own}",), seat))


def test_newer_records_replace_older_ones() -> None:
    members = table()
    assert members.learn([Member("x", "old", version=5)])
    assert not members.learn([Member("x", "older", version=4), Member("x", "same", version=5)])
    assert members.learn([Member("x", "new", ("a",), 3, version=6)]) == [Member("x", "new", ("a",), 3, version=6)]
    known = members.get("x")
    assert known is not None
    assert known.name == "new"
    assert len(members) == 2
    assert {member.id for member in members} == {"me", "x"}


@given(st.permutations([Member("x", str(version), seat=version % 3, version=version) for version in range(6)]))
def test_the_order_of_records_does_not_matter(records: list[Member]) -> None:
    members = table()
    for record in records:
        members.learn([record])
    assert members.get("x") == Member("x", "5", seat=2, version=5)
    assert members.at(2) == members.get("x")
    assert members.at(0) is None
    assert members.at(1) is None


def test_a_taken_seat_stays_taken() -> None:
    members = table(seat=1)
    members.learn([Member("x", seat=1, version=1), Member("y", seat=2, version=1), Member("z", seat=2, version=9)])
    for seat, holder in ((1, "me"), (2, "y")):
        member = members.at(seat)
        assert member is not None
        assert member.id == holder
    members.learn([Member("y", seat=3, version=2)])
    assert members.at(2) is None
    members.learn([Member("z", seat=2, version=10)])
    member = members.at(2)
    assert member is not None
    assert member.id == "z"


async def test_an_announcement_is_newer_and_is_told() -> None:
    members, told, changes = table(), list[tuple[Collection[str], Peer | None]](), list[int]()
    members.bind(lambda: changes.append(1), lambda ids, source: told.append((ids, source)))
    before = members.own
    await members.announce(seat=4)
    assert members.own == replace(before, seat=4, version=before.version + 1)
    await members.announce(addresses=("a", "b"))
    assert members.own == replace(before, seat=4, addresses=("a", "b"), version=before.version + 2)
    assert told == [(("me",), None)] * 2
    assert len(changes) == 2


def test_a_restarted_node_outruns_its_former_record() -> None:
    before = table().own
    assert table().own.version > before.version


def test_a_false_record_of_ourselves_is_outrun() -> None:
    members = table(seat=1)
    lie = Member("me", "ME", ("elsewhere",), 9, members.own.version + 100)
    (truth,) = members.learn([lie])
    assert truth == members.own
    assert truth.version > lie.version
    assert (truth.addresses, truth.seat) == (("memory:me",), 1)
    assert not members.learn([truth, replace(lie, version=1)])


def test_the_table_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("p2pfl.node.membership._MOST_MEMBERS", 10)
    members = table()
    members.learn([Member(str(n), version=1) for n in range(100)])
    assert len(members) == 10
    assert members.learn([Member("0", version=2)])


def received(roster: Roster) -> Roster:
    return decode(Roster, unpack(pack("tell", 1, encode(roster)))[2])


def test_rosters_cross_the_wire() -> None:
    roster = Roster([Member("a", "Ä", ("x:1", "y:2"), 3, 4), Member("b")])
    assert received(roster) == roster


@pytest.mark.parametrize(
    "member",
    [
        Member("x" * 201),
        Member("x", "n" * 201),
        Member("x", "two\nlines"),
        Member("ä"),
        Member("x", addresses=("ä",)),
        Member("x", addresses=("a" * 201,)),
        Member("x", addresses=("a",) * 17),
        Member("x", version=-1),
        Member("x", version=1 << 62),
    ],
)
def test_what_cannot_be_passed_on_is_refused(member: Member) -> None:
    with pytest.raises(ValueError, match="member"):
        Roster([member])
    with pytest.raises(RemoteProtocolError, match="Roster"):
        decode(Roster, Incoming("Roster", {"members": [{**asdict(member), "addresses": list(member.addresses)}]}, ()))


def test_the_largest_roster_fits_a_head() -> None:
    worst = Member('"' * 200, "\U0001f600" * 200, ('"' * 200,) * 16, 1 << 63, (1 << 62) - 1)
    assert len(encode(Roster([worst] * MOST_RECORDS)).json) < 255 * 1024
    with pytest.raises(ValueError, match="over the limit"):
        Roster([worst] * (MOST_RECORDS + 1))


def test_nobody_fills_the_table_for_others() -> None:
    members = Membership(Member("own"))
    assert len(members.learn([Member(f"made up {n}", version=1) for n in range(4000)], "liar")) == 2500
    assert members.learn([Member("honest", version=1)], "neighbour")


def test_who_speaks_for_itself_has_room_and_takes_a_seat_from_hearsay() -> None:
    members = Membership(Member("own", seat=0))
    for liar in range(5):
        members.learn([Member(f"{liar}/{n}", seat=n, version=1) for n in range(2500)], f"liar {liar}")
    assert len(members) == 10_000
    honest = Member("honest", seat=7, version=1)
    assert not members.learn([honest], "neighbour"), "there is no room for what is only heard"
    assert members.learn([honest], "honest") == [honest]
    assert members.at(7) == honest
    assert len(members) == 10_000
    assert members.at(0) == members.own


def test_of_two_who_claim_a_seat_themselves_the_first_has_it() -> None:
    members = Membership(Member("own"))
    first, second = Member("first", seat=3, version=1), Member("second", seat=3, version=1)
    members.learn([second], "somebody")
    assert members.at(3) == second
    members.learn([first], "first")
    members.learn([second], "second")
    assert members.at(3) == first


def test_a_record_that_was_heard_before_counts_once_its_owner_tells_it() -> None:
    changes = []
    members = Membership(Member("own"))
    members.bind(lambda: changes.append(1), lambda ids, source: None)
    owner, squatter = Member("owner", seat=3, version=1), Member("squatter", seat=3, version=1)
    members.learn([squatter, owner], "somebody")
    assert members.at(3) == squatter
    changes.clear()
    assert members.learn([owner], "owner") == []
    assert members.at(3) == owner
    assert changes
