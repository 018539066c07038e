"""The record layer of an established channel: plaintexts to sealed records and back, in order, without a gap.

A record on the wire is `u16be length || ciphertext`; a WebSocket message holds one to sixteen of them. The nonce is
the count of records, so a record that was repeated, dropped, moved or changed does not decrypt, and nothing after it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from struct import Struct

from p2pfl.crypto.aead import TAG_BYTES, Buffer
from p2pfl.crypto.identity import short_id
from p2pfl.crypto.noise import CipherState
from p2pfl.errors import MessageError, RemoteProtocolError
from p2pfl.wire.frame import MAX_RECORD

__all__ = ["MAX_MESSAGE", "MAX_RECORD", "MAX_RECORDS", "RECORD_OVERHEAD", "REKEY_RECORDS", "SecureChannel"]

RECORD_OVERHEAD = 2 + TAG_BYTES  # a record on the wire is this much longer than its plaintext
MAX_RECORDS = 16  # in one WebSocket message
MAX_MESSAGE = MAX_RECORDS * (MAX_RECORD + RECORD_OVERHEAD)  # bytes of one WebSocket message
REKEY_RECORDS = 4096  # each direction takes a new key after so many records (256 MiB)

_LENGTH = Struct(">H")


class SecureChannel:
    """An open channel to a proven peer. After `open` raised, it opens nothing any more."""

    __slots__ = (
        "_alive",
        "_receiving",
        "_scratch",
        "_sending",
        "channel_id",
        "initiator",
        "local",
        "remote",
        "remote_caps",
        "suite",
    )

    def __init__(
        self,
        ciphers: tuple[CipherState, CipherState],
        *,
        local: str,
        remote: str,
        initiator: bool,
        remote_caps: dict[str, object],
        channel_id: bytes,
        suite: str,
    ) -> None:
        """Made by `Handshake`. `ciphers` are for sending and for receiving."""
        self._sending, self._receiving = ciphers
        self._scratch = memoryview(bytearray(MAX_RECORD))
        self._alive = True
        self.local = local  # our peer id
        self.remote = remote  # the peer id that the other end has proven
        self.initiator = initiator  # whether we dialled
        self.remote_caps = remote_caps  # what the other end said about itself
        self.channel_id = channel_id  # 32 bytes, equal at both ends and on no other channel
        self.suite = suite  # such as "Noise_XX_25519_AESGCM_SHA256"

    @property
    def records_sent(self) -> int:
        """Records sealed so far."""
        return self._sending.n

    @property
    def records_received(self) -> int:
        """Records opened so far."""
        return self._receiving.n

    def seal(self, *parts: Buffer) -> bytearray:
        """One record whose plaintext is the parts, end to end: 1 to MAX_RECORD bytes. Raises MessageError.

        The buffer is fresh, RECORD_OVERHEAD longer than the plaintext: a transport may keep it.
        """
        out = bytearray(sum(map(len, parts)) + RECORD_OVERHEAD)
        self.seal_into(out, *parts)
        return out

    def seal_into(self, out: bytearray | memoryview, *parts: Buffer) -> int:
        """`seal` into the start of `out`; gives the size of the record. The parts (of bytes) are copied once."""
        size = sum(map(len, parts))
        if not 1 <= size <= MAX_RECORD:
            raise MessageError(f"a record has 1 to {MAX_RECORD} bytes, not {size}")
        view = memoryview(out)
        if len(view) < size + RECORD_OVERHEAD:
            raise ValueError(f"a record of {size} bytes needs {size + RECORD_OVERHEAD}, not {len(view)}")
        _LENGTH.pack_into(view, 0, size + TAG_BYTES)
        position = _LENGTH.size
        for part in parts:
            view[position : (position := position + len(part))] = part
        _rekey_if_due(self._sending)
        self._sending.seal_into(view[_LENGTH.size : position], view[_LENGTH.size : position + TAG_BYTES])
        return position + TAG_BYTES

    def seal_message(self, records: Iterable[Sequence[Buffer]]) -> bytearray:
        """One WebSocket message of 1 to MAX_RECORDS records, each given as its parts, in a fresh exact buffer."""
        records = list(records)
        if not 1 <= len(records) <= MAX_RECORDS:
            raise MessageError(f"a message has 1 to {MAX_RECORDS} records, not {len(records)}")
        out = bytearray(sum(len(part) for parts in records for part in parts) + RECORD_OVERHEAD * len(records))
        view = memoryview(out)
        for parts in records:
            view = view[self.seal_into(view, *parts) :]
        return out

    def open(self, record: Buffer) -> memoryview:
        """The plaintext of a single record. Raises RemoteProtocolError.

        The view is into a buffer of the channel and holds until the next `open`: copy out of it what must stay.
        """
        return next(self._open_all(_split(record, most=1)))

    def open_message(self, message: Buffer) -> Iterator[memoryview]:
        """The plaintexts of a WebSocket message, in order; each view holds until the next step.

        Raises RemoteProtocolError: for wrong lengths at once, before any record is opened; else at the record.
        """
        return self._open_all(_split(message, most=MAX_RECORDS))

    def _open_all(self, ciphertexts: list[memoryview]) -> Iterator[memoryview]:
        for sealed in ciphertexts:
            if not self._alive:
                raise RemoteProtocolError("a record after one that did not decrypt")
            self._alive = False  # until it went well: a gap is never skipped
            _rekey_if_due(self._receiving)
            plain = self._scratch[: len(sealed) - TAG_BYTES]
            self._receiving.open_into(sealed, plain)
            self._alive = True
            yield plain

    def __repr__(self) -> str:
        arrow = "->" if self.initiator else "<-"
        return f"<SecureChannel {short_id(self.local)} {arrow} {short_id(self.remote)}, {self.suite}>"


def _split(message: Buffer, most: int) -> list[memoryview]:
    """The ciphertexts in a message, as views of it."""
    view = memoryview(message)
    ciphertexts: list[memoryview] = []
    while view and len(ciphertexts) < most:
        size = _LENGTH.unpack_from(view)[0] if len(view) >= _LENGTH.size else 0
        if size <= TAG_BYTES or len(view) < _LENGTH.size + size:
            raise RemoteProtocolError("a record with a wrong length")
        ciphertexts.append(view[_LENGTH.size : _LENGTH.size + size])
        view = view[_LENGTH.size + size :]
    if view or not ciphertexts:
        raise RemoteProtocolError(f"a message that is not 1 to {most} whole records")
    return ciphertexts


def _rekey_if_due(cipher: CipherState) -> None:
    if cipher.n and cipher.n % REKEY_RECORDS == 0:
        cipher.rekey()
