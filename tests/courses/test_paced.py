import torch

from p2pfl.courses.paced import Letter, Mailbox, mutual
from p2pfl.topology.families import build
from p2pfl.topology.graph import Topology


def test_a_mailbox_is_restored_from_the_state_of_its_role():
    box = Mailbox({10: Letter(torch.ones(2), 3, 7), 2: Letter(torch.zeros(2), 1)})
    again = Mailbox.restored({"params": torch.zeros(2), "round": 4, **box.state()})
    assert {seat: (letter.params.tolist(), letter.round, letter.age) for seat, letter in again.items()} == {
        10: ([1.0, 1.0], 3, 7), 2: ([0.0, 0.0], 1, 0),
    }  # fmt: skip
    assert Mailbox.restored({"params": torch.zeros(2)}) == {}


def test_links_must_go_both_ways_and_to_everybody():
    assert mutual(build("exponential", 6)) == "links must go both ways, because anybody may pick anybody"
    assert mutual(Topology.from_edges(4, [(0, 1), (2, 3)])) == "the graph must be connected"
    assert mutual(build("full", 4)) is None
