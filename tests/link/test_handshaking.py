"""Handshakes over sockets of messages: who may be at the other end, what garbage does, and how long it may take."""

from __future__ import annotations

import asyncio

import pytest

from p2pfl.crypto.identity import Identity, NetworkKey
from p2pfl.errors import HandshakeFailed, LinkTruncated, UntrustedPeer
from p2pfl.link.base import CloseCode
from p2pfl.link.channel import SecureChannel
from p2pfl.link.handshaking import MAX_GREETING, greet, return_greeting, shake
from p2pfl.link.secure import Handshake, offered_subprotocols
from p2pfl.link.trust import AllowList
from tests.link.carrying import ALICE, BOB, LIMITS, security, tunnel

MALLORY = Identity.from_seed(bytes([3]) * 32)


async def both(calling, called) -> list[SecureChannel | BaseException]:
    """What comes of both ends."""
    tasks = [asyncio.create_task(end) for end in (calling, called)]
    await asyncio.wait(tasks)
    return [task.exception() or task.result() for task in tasks]


async def test_two_ends_agree() -> None:
    near, far, out, _ = tunnel()
    key = NetworkKey(bytes(range(32)))
    a, b = await both(
        greet(near, security(ALICE, network_key=key), LIMITS, BOB.peer_id),
        return_greeting(far, security(BOB, network_key=key), LIMITS, ALICE.peer_id),
    )
    assert a.channel_id == b.channel_id
    assert a.suite == b.suite
    assert a.suite.startswith("Noise_XXpsk0+psk3_25519_")
    assert (a.remote, b.remote) == (BOB.peer_id, ALICE.peer_id)
    assert (a.initiator, b.initiator) == (True, False)
    assert bytes(b.open(a.seal(b"hello"))) == b"hello"
    assert out.carried[0].decode().split(", ") == list(offered_subprotocols())


async def test_somebody_else_is_not_taken_at_either_end() -> None:
    near, far, out, _ = tunnel()
    a, b = await both(
        greet(near, security(ALICE), LIMITS, BOB.peer_id),
        return_greeting(far, security(MALLORY), LIMITS, ALICE.peer_id),
    )
    assert isinstance(a, HandshakeFailed)
    assert "where" in str(a)
    assert isinstance(b, HandshakeFailed)
    assert out.codes == [CloseCode.HANDSHAKE]
    near, far, _, _ = tunnel()
    _, b = await both(
        greet(near, security(MALLORY), LIMITS, BOB.peer_id),
        return_greeting(far, security(BOB), LIMITS, ALICE.peer_id),
    )
    assert isinstance(b, HandshakeFailed)


async def test_trust_decides_in_a_tunnel_as_anywhere() -> None:
    near, far, _, _ = tunnel()
    settings = security(BOB)
    object.__setattr__(settings, "trust", AllowList([MALLORY.peer_id]))
    _, b = await both(
        greet(near, security(ALICE), LIMITS, BOB.peer_id), return_greeting(far, settings, LIMITS, ALICE.peer_id)
    )
    assert isinstance(b, UntrustedPeer)


@pytest.mark.parametrize("greeting", [b"", b"hello", b"\xff\xfe", b"p2pfl.v1.aesgcm" * 100, b"p2pfl.v1.rot13"])
async def test_garbage_for_a_greeting(greeting: bytes) -> None:
    near, far, _, back = tunnel()
    await near.send(greeting)
    with pytest.raises(HandshakeFailed):
        await return_greeting(far, security(BOB), LIMITS, ALICE.peer_id)
    assert back.codes == [CloseCode.HANDSHAKE]


@pytest.mark.parametrize("choice", [b"", b"p2pfl.v1.rot13", b"p2pfl.v2.aesgcm", bytes(MAX_GREETING + 1)])
async def test_garbage_for_a_choice(choice: bytes) -> None:
    near, far, out, _ = tunnel()
    await far.send(choice)
    with pytest.raises(HandshakeFailed):
        await greet(near, security(ALICE), LIMITS, BOB.peer_id)
    assert out.codes == [CloseCode.HANDSHAKE]


async def test_who_carries_cannot_talk_the_ends_into_a_weaker_cipher() -> None:
    near, far, out, _ = tunnel()
    out.change = lambda message: b"p2pfl.v1.chachapoly" if message.startswith(b"p2pfl") else message
    results = await both(
        greet(near, security(ALICE), LIMITS, BOB.peer_id),
        return_greeting(far, security(BOB), LIMITS, ALICE.peer_id),
    )
    if len(offered_subprotocols()) > 1:  # the processor has AES, so that there is something to take away
        assert all(isinstance(result, HandshakeFailed) for result in results)


async def test_silence_ends_after_the_time_for_a_handshake() -> None:
    near, _, out, _ = tunnel()
    loop = asyncio.get_running_loop()
    before = loop.time()
    with pytest.raises(HandshakeFailed, match="no handshake within 5 s"):
        await greet(near, security(ALICE), LIMITS, BOB.peer_id)
    assert loop.time() - before == pytest.approx(5)
    assert out.codes == [CloseCode.HANDSHAKE]


async def test_an_end_that_is_lost_breaks_it_off() -> None:
    near, far, _, _ = tunnel()
    calling = asyncio.create_task(greet(near, security(ALICE), LIMITS, BOB.peer_id))
    await far.receive()
    near.ended(LinkTruncated("gone"))
    with pytest.raises(HandshakeFailed, match="broke off: gone"):
        await calling


async def test_to_cancel_cuts_and_closes() -> None:
    near, _, out, _ = tunnel()
    cuts = []
    near.cut = lambda: cuts.append(1)
    offered = offered_subprotocols()
    handshake = Handshake(security(ALICE), initiator=True, offered=offered, chosen=offered[0])
    shaking = asyncio.create_task(shake(near, handshake, LIMITS, handshake.begin()))
    await asyncio.sleep(1)
    shaking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await shaking
    assert cuts == [1]
    assert out.codes == [CloseCode.HANDSHAKE]
