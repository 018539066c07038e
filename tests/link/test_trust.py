import os
from pathlib import Path

import orjson
import pytest

from p2pfl.crypto.identity import Identity, Succession
from p2pfl.errors import ConfigError, UntrustedPeer
from p2pfl.link.trust import AllOf, AllowList, NetworkKeyTrust, Open, Tofu, TrustPolicy, parse_trust

ALICE, BOB, CAROL = (Identity.from_seed(letter * 32) for letter in (b"a", b"b", b"c"))


def refuses(policy: TrustPolicy, peer: Identity, label: str | None = None) -> str:
    with pytest.raises(UntrustedPeer) as caught:
        policy.admit(peer.peer_id, label)
    return str(caught.value)


def test_allow_list_of_ids() -> None:
    policy = AllowList([ALICE.peer_id, BOB.peer_id])
    policy.admit(ALICE.peer_id, None)
    policy.admit(BOB.peer_id, "anywhere")
    message = refuses(policy, CAROL)
    assert message.startswith(CAROL.peer_id[:10])
    assert f"add {CAROL.peer_id}" in message
    assert repr(policy) == "<AllowList of 2 peers>"


def test_allow_list_refuses_what_is_no_id() -> None:
    with pytest.raises(ConfigError, match=r"^trust.allow: 'alice' is no peer id"):
        AllowList(["alice"])
    with pytest.raises(ConfigError, match="has no peers"):
        AllowList([])


def change(path: Path, text: str) -> None:
    """Write, and make sure that the change shows whatever the file system's clock ticks in."""
    before = path.stat().st_mtime_ns if path.exists() else 0
    path.write_text(text)
    os.utime(path, ns=(before + 1_000_000_000, before + 1_000_000_000))


def test_allow_list_follows_its_file(tmp_path: Path) -> None:
    path = tmp_path / "peers"
    change(path, f"# the consortium\n{ALICE.peer_id}  # Alice's ward\n\n")
    policy = AllowList(file=path)
    policy.admit(ALICE.peer_id, None)
    refuses(policy, BOB)
    change(path, f"{BOB.peer_id}\n")
    policy.admit(BOB.peer_id, None)
    refuses(policy, ALICE)


@pytest.mark.parametrize("damage", ["not an id", None])
def test_a_file_gone_bad_admits_nobody_of_it_until_mended(
    tmp_path: Path, damage: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "peers"
    change(path, BOB.peer_id)
    policy = AllowList([ALICE.peer_id], file=path)
    if damage is None:
        path.unlink()
    else:
        change(path, f"{BOB.peer_id}\n{damage}")
    refuses(policy, BOB)
    refuses(policy, BOB)
    policy.admit(ALICE.peer_id, None)
    assert "trust.allow_file" in caplog.text
    with pytest.raises(ConfigError):
        policy.reload()
    change(path, BOB.peer_id)
    policy.admit(BOB.peer_id, None)


def test_an_allow_file_must_be_good_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        AllowList(file=tmp_path / "absent")
    (tmp_path / "peers").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="cannot be read"):
        AllowList(file=tmp_path / "peers")


def test_tofu_pins_what_it_dialled(tmp_path: Path) -> None:
    path = tmp_path / "state" / "known_peers.json"
    policy = Tofu(path)
    policy.admit(ALICE.peer_id, "ward:9000")
    policy.admit(ALICE.peer_id, "ward:9000")
    policy.admit(ALICE.peer_id, "ward.example:9000")  # one peer, two addresses
    policy.admit(CAROL.peer_id, None)  # whoever dials in has no address to pin
    message = refuses(policy, BOB, "ward:9000")
    assert ALICE.peer_id in message
    assert BOB.peer_id in message
    assert str(path) in message
    again = Tofu(path)  # a restart forgets nothing
    refuses(again, BOB, "ward:9000")
    assert again.pins == {"ward:9000": ALICE.peer_id, "ward.example:9000": ALICE.peer_id}
    assert [file.name for file in path.parent.iterdir()] == ["known_peers.json"]


def test_tofu_admits_nobody_whom_it_cannot_pin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = Tofu(tmp_path / "known_peers.json")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("p2pfl.link.trust.os.fsync", full)
    assert "No space left on device" in refuses(policy, ALICE, "ward:9000")
    assert policy.pins == {}
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("damage", [b"", b"[]", b'{"ward": 5}', b'{"ward": "alice"}', b"\xff"])
def test_tofu_refuses_a_damaged_file(tmp_path: Path, damage: bytes) -> None:
    (tmp_path / "known_peers.json").write_bytes(damage)
    with pytest.raises(ConfigError, match=r"^trust.known_peers: "):
        Tofu(tmp_path / "known_peers.json")


def test_tofu_follows_a_signed_succession(tmp_path: Path) -> None:
    policy = Tofu(tmp_path / "known_peers.json")
    policy.admit(ALICE.peer_id, "ward:9000")
    policy.admit(CAROL.peer_id, "clinic:9000")
    forged = Succession(ALICE.public_key, BOB.public_key, BOB.sign(b"p2pfl successor v1" + BOB.public_key))
    with pytest.raises(UntrustedPeer, match="did not sign"):
        policy.succeed(forged)
    policy.admit(ALICE.peer_id, "ward:9000")
    policy.succeed(ALICE.succeeded_by(BOB))
    policy.admit(BOB.peer_id, "ward:9000")
    refuses(policy, ALICE, "ward:9000")
    assert orjson.loads((tmp_path / "known_peers.json").read_bytes()) == policy.pins
    assert policy.pins["clinic:9000"] == CAROL.peer_id
    assert repr(policy) == f"<Tofu {tmp_path / 'known_peers.json'}, 2 pins>"


@pytest.mark.parametrize(
    "label",
    [None, "localhost", "localhost:9000", "127.0.0.1:9000", "127.9.9.9", "[::1]:9000", "::1", "ws://127.0.0.1:1/x"],
)
def test_open_admits_this_host(label: str | None) -> None:
    Open().admit(ALICE.peer_id, label)


@pytest.mark.parametrize(
    "label", ["10.0.0.1:9000", "[2001:db8::1]:9000", "example.org:80", "ws://127.0.0.1@example.org/"]
)
def test_open_refuses_other_hosts_unless_told(label: str) -> None:
    assert "insecure_open" in refuses(Open(), ALICE, label)
    Open(insecure_open=True).admit(ALICE.peer_id, label)


def test_open_listens_on_loopback_only() -> None:
    Open().check_listen("127.0.0.1")
    Open().check_listen("::1")
    for host in ("0.0.0.0", "::", "", "10.0.0.1"):
        with pytest.raises(ConfigError, match="loopback only"):
            Open().check_listen(host)
        Open(insecure_open=True).check_listen(host)
        AllowList([ALICE.peer_id]).check_listen(host)


def test_policies_combine_by_and(tmp_path: Path) -> None:
    policy = AllowList([ALICE.peer_id, BOB.peer_id]) & Tofu(tmp_path / "known_peers.json") & NetworkKeyTrust()
    policy.admit(ALICE.peer_id, "ward:9000")
    assert "allow list" in refuses(policy, CAROL, "ward:9000")
    assert "now answers as" in refuses(policy, BOB, "ward:9000")
    assert policy.needs_network_key
    with pytest.raises(ConfigError, match="loopback only"):
        (NetworkKeyTrust() & Open()).check_listen("0.0.0.0")


def test_only_the_network_key_policy_needs_the_key(tmp_path: Path) -> None:
    policies = (AllowList([ALICE.peer_id]), Tofu(tmp_path / "pins"), Open(), AllOf((Open(), Open())))
    assert not any(policy.needs_network_key for policy in policies)
    assert AllOf((Open(), NetworkKeyTrust())).needs_network_key


def test_a_policy_of_ones_own() -> None:
    class OnlyCarol(TrustPolicy):
        def admit(self, peer_id: str, label: str | None) -> None:
            if peer_id != CAROL.peer_id:
                raise UntrustedPeer("not Carol")

    (OnlyCarol() & Open()).admit(CAROL.peer_id, None)
    assert refuses(OnlyCarol() & Open(), ALICE) == "not Carol"
    with pytest.raises(TypeError, match="abstract"):
        type("Forgetful", (TrustPolicy,), {})()


def test_parse_trust(tmp_path: Path) -> None:
    policy = parse_trust(["allow_list", "tofu"], allow=[ALICE.peer_id], known_peers=tmp_path / "pins")
    policy.admit(ALICE.peer_id, "ward:9000")
    assert (tmp_path / "pins").exists()
    assert isinstance(parse_trust(["network_key"]), NetworkKeyTrust)
    assert parse_trust(["open"], insecure_open=True) == Open(insecure_open=True)
    with pytest.raises(ConfigError, match=r"^trust: 'tofy' is none of allow_list, tofu, network_key, open"):
        parse_trust(["tofy"])
    with pytest.raises(ConfigError, match="no policy is named"):
        parse_trust([])
    with pytest.raises(ConfigError, match="has no peers"):
        parse_trust(["allow_list"])
