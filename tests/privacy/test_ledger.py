"""T-D5: whatever happens to the process or the disk, no more was released than the ledger says."""

import os
import stat
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pfl.errors import JournalError, PrivacySpent
from p2pfl.privacy import rdp
from p2pfl.privacy.ledger import PrivacyLedger
from p2pfl.privacy.spent import Spent

ROUND = Spent(0.25)


def _filled(path: Path, rounds: int, cost: Spent = ROUND) -> bytes:
    with PrivacyLedger("data", path) as ledger:
        for round in range(rounds):
            ledger.charge("run", round, cost, 0.0, 1e-5)
    return path.read_bytes()


def test_goes_on_where_it_was(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "ledger"
    _filled(path, 3, Spent(0.1, (0.5,) * len(rdp.ORDERS)))
    with PrivacyLedger("data", path) as again:
        assert again.spent.mu_squared == pytest.approx(0.3)
        assert again.spent.curve == (1.5,) * len(rdp.ORDERS)
        again.charge("other run", 0, ROUND, 0.0, 1e-5)
        assert [len(again.of(run)) for run in ("run", "other run", "no run")] == [3, 1, 0]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_a_crash_at_any_byte_loses_nothing_that_was_confirmed(tmp_path: Path) -> None:
    path = tmp_path / "ledger"
    before, after = len(_filled(path, 2)), len(_filled(tmp_path / "other", 3))
    whole = (tmp_path / "other").read_bytes()
    assert whole[:before] == path.read_bytes()
    for crash in range(before, after + 1):
        path.write_bytes(whole[:crash])
        with PrivacyLedger("data", path) as ledger:
            assert len(ledger.charges) == (3 if crash == after else 2)
            ledger.charge("run", 2, ROUND, 0.0, 1e-5)
        with PrivacyLedger("data", path) as ledger:
            assert len(ledger.charges) == (4 if crash == after else 3)


def test_is_on_the_disk_before_the_charge_returns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, synced = tmp_path / "ledger", []
    with PrivacyLedger("data", path) as ledger:
        real = os.fsync
        monkeypatch.setattr(os, "fsync", lambda file: (real(file), synced.append(path.read_bytes().count(b"\n"))))
        for round in range(3):
            ledger.charge("run", round, ROUND, 0.0, 1e-5)
            assert synced[-1] == round + 1


@given(st.data())
@settings(max_examples=60)
def test_a_changed_line_is_noticed(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    path = tmp_path_factory.mktemp("ledger") / "ledger"
    content = bytearray(_filled(path, 3))
    last = content.rfind(b"\n", 0, -1) + 1
    at = data.draw(st.integers(0, last - 2))  # any byte of the first two lines
    content[at] ^= data.draw(st.integers(1, 255))
    path.write_bytes(content)
    with pytest.raises(JournalError, match="damaged"):
        PrivacyLedger("data", path)


@pytest.mark.parametrize("missing", [0, 1])
def test_a_line_that_is_missing_is_noticed(tmp_path: Path, missing: int) -> None:
    path = tmp_path / "ledger"
    lines = _filled(path, 3).splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:missing] + lines[missing + 1 :]))
    with pytest.raises(JournalError, match=f"line {missing + 1}"):
        PrivacyLedger("data", path)


def test_the_ledger_of_other_data_is_refused(tmp_path: Path) -> None:
    _filled(tmp_path / "ledger", 1)
    with pytest.raises(JournalError, match="line 1"):
        PrivacyLedger("other data", tmp_path / "ledger")


def test_a_negative_cost_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "ledger"
    path.write_bytes(_filled(path, 1).replace(b"0.25", b"-0.2"))
    with pytest.raises(JournalError, match="not negative"):
        PrivacyLedger("data", path)


def test_one_process_at_a_time(tmp_path: Path) -> None:
    """Two would each spend the whole budget."""
    with PrivacyLedger("data", tmp_path / "ledger"), pytest.raises(JournalError, match="is held by another process"):
        PrivacyLedger("data", tmp_path / "ledger")
    PrivacyLedger("data", tmp_path / "ledger").close()


def test_after_a_write_that_failed_nothing_is_released(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "ledger"
    with PrivacyLedger("data", path) as ledger:
        ledger.charge("run", 0, ROUND, 0.0, 1e-5)

        def full(_: int) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(JournalError, match="No space left"):
            ledger.charge("run", 1, ROUND, 0.0, 1e-5)
        monkeypatch.undo()
        with pytest.raises(JournalError, match="is closed"):
            ledger.charge("run", 1, ROUND, 0.0, 1e-5)
        assert len(ledger.charges) == 1
    with PrivacyLedger("data", path) as again:
        assert len(again.charges) == 1


@pytest.mark.parametrize("kept", [True, False])
def test_refuses_when_the_budget_is_spent(tmp_path: Path, kept: bool) -> None:
    """T-D8: and says why; what was refused is not charged."""
    with PrivacyLedger("data", tmp_path / "ledger" if kept else None) as ledger:
        most = (ROUND * 4).epsilon(1e-5)
        for round in range(4):
            ledger.charge("run", round, ROUND, most, 1e-5)
        for _ in range(2):
            with pytest.raises(
                PrivacySpent, match=r"the privacy budget is spent: round 5 would make epsilon 4\.983 of"
            ):
                ledger.charge("run", 4, ROUND, most, 1e-5)
        assert ledger.spent.mu_squared == 1.0
        assert len(ledger.charges) == 4
        ledger.charge("run", 4, Spent(), most, 1e-5)
