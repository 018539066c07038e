from collections import Counter

import pytest

from p2pfl.errors import AggregationAborted
from p2pfl.privacy.secagg import Roster
from p2pfl.privacy.secagg_client import Client
from tests.privacy.session import play, signer


def roster(n: int, **of_terms: object) -> Roster:
    session = play(n, **of_terms)
    session.advertise()
    return session.server.roster


@pytest.mark.parametrize("n", [3, 19, 30, 61])
def test_neighbours_are_neighbours_of_each_other(n: int) -> None:
    found = roster(n, adversaries=0.05, dropouts=0.1)
    degrees = Counter(len(found.neighbours(peer)) for peer in found.peers)
    assert degrees == {found.plan.degree: n}
    for peer in found.peers:
        assert peer not in found.neighbours(peer)
        assert all(peer in found.neighbours(other) for other in found.neighbours(peer))
        assert found.holders(peer) == tuple(sorted((*found.neighbours(peer), peer)))


def test_who_is_whose_neighbour_depends_on_every_nonce() -> None:
    """So nobody can choose a neighbour before the list is complete."""
    one = roster(40, dropouts=0.1)
    session = play(40, dropouts=0.1)
    late = signer(7)
    late.draw(1)  # so that what it draws then is something else
    session.clients[late.peer_id] = Client(session.session, late, session.floors)
    session.advertise()
    other = session.server.roster
    assert one.peers == other.peers and one.sid != other.sid
    changed = sum(one.neighbours(peer) != other.neighbours(peer) for peer in one.peers)
    assert changed > 30


def test_sets_as_numbers_and_back() -> None:
    found = roster(5)
    assert found.chosen(found.indices(found.peers[1:3])) == frozenset(found.peers[1:3])
    assert found.indices([found.peers[3], found.peers[0]]) == [0, 3]
    for wrong in ([1, 0], [0, 0], [-1], [5]):
        with pytest.raises(AggregationAborted, match="not one of the list"):
            found.chosen(wrong)
    assert len({found.confirmation(found.peers), found.confirmation(found.peers[1:])}) == 2
    assert repr(found) == "<Roster of 5 clients, 4 of 5 shares>"


def test_more_than_the_course_has_are_too_many() -> None:
    session = play(6, most=5)
    with pytest.raises(AggregationAborted, match="the list has 6 clients, and the course fewer"):
        session.advertise()


def test_terms_are_the_same_for_the_same_only() -> None:
    digests = [
        play(5, **each).session.terms.digest
        for each in ({}, {"bits": 17}, {"active": False}, {"dropouts": 0.1}, {"most": 6})
    ]
    assert len(set(digests)) == 5 and play(5).session.terms.digest == digests[0]
