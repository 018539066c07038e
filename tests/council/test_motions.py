import pytest

from p2pfl.council.consensus import Refusal
from p2pfl.council.motions import Consult, Endorse, Endorsed, Follow, LeaderElected, Promised, Stand, Standing
from p2pfl.errors import RemoteProtocolError
from p2pfl.wire.codec import Incoming, decode, encode, pack, unpack
from tests.council.test_consensus import certificate, committed


def sent(message):
    return decode(type(message), unpack(pack("ask", 1, encode(message)))[2])


@pytest.mark.parametrize(
    "message",
    [
        Standing(3, 7),
        Consult(3, 7),
        Follow(3, None),
        Follow(3, committed(round=6)),
        Stand(3, 7),
        Promised(certificate(4, term=2)),
        Promised(refusal=Refusal("no", 3, 7, committed(round=6))),
        Endorse(certificate(7, term=3)),
        Endorsed("a signature"),
        Endorsed(refusal=Refusal("no", 3, 7)),
    ],
    ids=repr,
)
def test_what_is_sent_is_what_arrives(message):
    assert sent(message) == message


def test_a_statement_that_was_signed_is_the_same_at_the_other_end():
    assert sent(Endorse(committed())).certificate.statement == committed().statement


@pytest.mark.parametrize("kind", [Standing, Consult, Stand])
@pytest.mark.parametrize(("term", "rounds"), [(0, 0), (-1, 0), (1, -1), (1 << 54, 0), (1, 1 << 54)])
def test_terms_and_rounds_are_within_reason(kind, term, rounds):
    with pytest.raises(RemoteProtocolError, match=f"{kind.tag}: there is no term"):
        decode(kind, Incoming(kind.tag, {"term": term, "rounds": rounds}, ()))


def test_certificates_too():
    with pytest.raises(ValueError, match="there is no term 0"):
        Endorse(certificate(term=0))
    with pytest.raises(ValueError, match="there is no term 0"):
        Follow(0, None)


def test_a_certificate_of_four_hundred_voters_fits_a_head():
    """256 KiB: a promise with 400 contributions, a refusal with 400 and a quorum of signatures."""
    from dataclasses import replace

    from p2pfl.journal.certificate import Contribution

    many = tuple(Contribution(seat, "p" * 52, "h" * 64, 12.5) for seat in range(400))
    large = replace(certificate(), contributions=many, signatures={f"{seat:052}": "s" * 128 for seat in range(201)})
    assert len(encode(Follow(1, large)).json) < 256 * 1024 - 100


def test_one_line_for_people():
    assert str(LeaderElected(3, 2)) == "seat 2 coordinates in term 3"
