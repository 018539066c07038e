"""Who a command is, and whom it trusts, from its options."""

from __future__ import annotations

from pathlib import Path

import pytest

from p2pfl.app.identity_options import IdentityOptions, make_transport, own_identity
from p2pfl.crypto.identity import Identity, NetworkKey
from p2pfl.errors import ConfigError, IdentityError
from p2pfl.link.tls import TlsSettings


def test_nodes_of_one_folder_have_identities_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (first, held), (second, also_held) = own_identity(None), own_identity(None)
    with also_held:
        assert first.peer_id != second.peer_id
        held.close()
        again, held = own_identity(None)
        assert again == first  # who comes back finds the identity that is free
    held.close()
    assert sorted(file.name for file in Path(".p2pfl").glob("*.key")) == ["identity-2.key", "identity.key"]


def test_one_identity_is_one_node(tmp_path: Path) -> None:
    file = tmp_path / "identity.key"
    first, held = own_identity(file)
    with held, pytest.raises(IdentityError, match=r"identity\.key is that of a node which runs; give this one another"):
        own_identity(file)
    again, held = own_identity(file)
    with held:
        assert again == first


@pytest.mark.parametrize(
    ("options", "policies"),
    [
        (IdentityOptions(), ("open",)),
        (IdentityOptions(allow=("a",)), ("allow_list",)),
        (IdentityOptions(allow_file=Path("a"), network_key=Path("k")), ("allow_list", "network_key")),
        (IdentityOptions(network_key=Path("k")), ("network_key",)),
        (IdentityOptions(trust=("tofu",), network_key=Path("k")), ("tofu",)),
    ],
)
def test_trust_follows_from_what_is_given(options: IdentityOptions, policies: tuple[str, ...]) -> None:
    assert options.policies == policies


def test_tls_is_used_where_a_file_of_it_is_named() -> None:
    assert IdentityOptions().tls is None
    assert IdentityOptions(tls_ca=Path("ca")).tls == TlsSettings(ca=Path("ca"))
    assert IdentityOptions(tls_cert=Path("c"), tls_key=Path("k")).tls == TlsSettings(Path("c"), Path("k"))


def test_a_transport_has_the_identity_of_the_file(tmp_path: Path) -> None:
    key = tmp_path / "network.key"
    NetworkKey.generate().save(key)
    transport, held = make_transport(IdentityOptions(identity=tmp_path / "identity.key", network_key=key))
    with held:
        assert transport.peer_id == Identity.load(tmp_path / "identity.key").peer_id


def test_what_cannot_work_makes_no_identity(tmp_path: Path) -> None:
    identity = tmp_path / "identity.key"
    with pytest.raises(ConfigError, match="'friends' is none of"):
        make_transport(IdentityOptions(identity=identity, trust=("friends",)))
    with pytest.raises(IdentityError, match=r"nowhere\.key"):
        make_transport(IdentityOptions(identity=identity, network_key=tmp_path / "nowhere.key"))
    with pytest.raises(ConfigError, match="PEM files cannot be loaded"):
        make_transport(IdentityOptions(identity=identity, tls_ca=tmp_path / "none.pem"))
    assert not identity.exists()
