import pytest

from p2pfl.crypto.identity import Identity
from p2pfl.crypto.signing import IdentitySigner
from p2pfl.sim.register import Register
from p2pfl.sim.signer import SimulatedSigner


def id_of(seat):
    return Register(20_000_000).member(seat).id


@pytest.mark.parametrize("seat", [0, 7, 9_999_999, 12_345_678])
def test_it_signs_for_the_ids_that_a_register_gives(seat):
    signer = SimulatedSigner(id_of(seat))
    signature = signer.sign(b"round 7")
    assert SimulatedSigner(id_of(1)).verifies(id_of(seat), b"round 7", signature)
    assert signature == SimulatedSigner(id_of(seat)).sign(b"round 7")
    assert not signer.verifies(id_of(seat), b"round 8", signature)
    assert not signer.verifies(id_of(seat + 1), b"round 7", signature)
    assert not signer.verifies(id_of(seat), b"round 7", "é")


def test_it_never_stands_in_for_a_key():
    real = IdentitySigner(Identity.from_seed(bytes(32)))
    with pytest.raises(ValueError, match="is not the id of a simulated node"):
        SimulatedSigner(real.peer_id)
    simulated = SimulatedSigner(id_of(3))
    assert not simulated.verifies(real.peer_id, b"x", real.sign(b"x"))
    assert not real.verifies(simulated.peer_id, b"x", simulated.sign(b"x"))
    for odd in ("seat", "seat1", "seat0000007\n", "seat٠٠٠٠٠٠٠"):
        assert not simulated.verifies(odd, b"x", simulated.sign(b"x"))


def test_secrets_are_the_same_in_every_run_and_never_come_again_in_one():
    one, again = (SimulatedSigner(id_of(1), "7/0") for _ in range(2))
    drawn = [one.draw(32) for _ in range(3)]
    assert drawn == [again.draw(32) for _ in range(3)] and len(set(drawn)) == 3
    for other in (SimulatedSigner(id_of(2), "7/0"), SimulatedSigner(id_of(1), "7/1"), SimulatedSigner(id_of(1), "8/0")):
        assert other.draw(32) not in drawn
    assert len(one.draw(5)) == 5
