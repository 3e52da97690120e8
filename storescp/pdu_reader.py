"""Cutting a byte stream into protocol data units, PS3.8 §9.3, as the bytes arrive.

What belongs here: how much of a PDU is there. What it says is the business of :mod:`storescp.pdu`. P-DATA-TF is never
held as a whole: its fragments leave :class:`PDUReader` as they come.
"""

from __future__ import annotations

import struct

from storescp.pdu import (
    MAXIMUM_ASSOCIATE_LENGTH,
    P_DATA_ONE_PDV,
    PDU,
    PDU_HEADER,
    Fragment,
    InvalidPDU,
    UnrecognizedPDU,
    decode,
)

_PDV = struct.Struct(">IBB")

# First bytes of what is often sent to a port for DICOM by mistake.
_OTHER_PROTOCOLS = {
    0x0D: ": does it speak the PROXY protocol?",
    0x16: ": does it speak TLS?",
    0x47: ": does it speak HTTP?",
    0x50: ": does it speak the PROXY protocol?",
}


class PDUReader:
    """Cuts a byte stream into PDUs and P-DATA-TF fragments.

    ``maximum_length`` is what we announced for P-DATA-TF (0: no limit). A length is judged as soon as the
    header is there, so that a peer's claim never costs memory.
    """

    def __init__(self, maximum_length: int) -> None:
        self.maximum_length = maximum_length
        self._data = b""
        self._view = memoryview(b"")
        self._position = 0
        self._pdu_left = 0  # of the current P-DATA-TF, beyond the current PDV
        self._pdv_left = 0
        self._context_id = 0
        self._control = 0
        self._begun = bytearray()  # of a PDU other than P-DATA-TF
        self._missing = 0  # bytes of that

    @property
    def is_inside(self) -> bool:
        """Whether a PDU has begun of which some is still to come; to be asked when :meth:`next` has no more."""
        return bool(self._position < len(self._data) or self._pdu_left or self._pdv_left or self._missing > 0)

    def feed(self, data: bytes) -> None:
        """Add what was received. Call :meth:`next` until it has no more, before feeding again."""
        if self._missing > 0:
            # Put together once: joined to each piece that comes, a peer's crumbs would cost the square of them.
            self._begun += data
            self._missing -= len(data)
            if self._missing > 0:
                return
            data, self._begun = bytes(self._begun), bytearray()
        elif self._position < len(self._data):
            # At most a header is ever carried over.
            data = self._data[self._position :] + data
        self._data = data
        self._view = memoryview(data)
        self._position = 0

    def next(self) -> PDU | Fragment | None:
        """The next PDU or fragment; None when more bytes are needed.

        Raises UnrecognizedPDU and InvalidPDU; the stream cannot be read on after that.
        """
        data, position = self._data, self._position
        left = len(data) - position
        if left >= 12 and not self._pdu_left and not self._pdv_left:
            # A P-DATA-TF of one PDV that is all there, as commands and small data sets are: what follows, in short.
            kind, length, size, context_id, control = P_DATA_ONE_PDV.unpack_from(data, position)
            if (
                kind == 0x04
                and 2 <= size == length - 4 <= left - 10
                and (length <= self.maximum_length or not self.maximum_length)
            ):
                self._position = end = position + 6 + length
                return Fragment(
                    context_id, control & 1 == 1, control & 2 == 2, self._view[position + 12 : end]
                )
        while True:
            if self._pdv_left:
                if not left:
                    return None
                size = self._pdv_left if self._pdv_left <= left else left
                self._pdv_left -= size
                self._position = position + size
                return self._fragment(position, position + size)
            if 0 < self._pdu_left < 6:
                raise InvalidPDU(f"{self._pdu_left} bytes after the last PDV of a P-DATA-TF")
            if left < 6:
                return None
            if self._pdu_left:
                size, self._context_id, self._control = _PDV.unpack_from(data, position)
                if not 2 <= size <= self._pdu_left - 4:
                    raise InvalidPDU(f"a PDV of {size} bytes where {self._pdu_left - 4} are left in its PDU")
                self._pdu_left -= size + 4
                self._pdv_left = size - 2
                position += 6
                left -= 6
                self._position = position
                if not self._pdv_left:
                    return self._fragment(position, position)
                continue
            kind, length = PDU_HEADER.unpack_from(data, position)
            if kind != 0x04:
                return self._whole_pdu(kind, length, left)
            if length < 6:
                raise InvalidPDU(f"P-DATA-TF of {length} bytes")
            if length > self.maximum_length and self.maximum_length:
                raise InvalidPDU(f"P-DATA-TF of {length} bytes, {self.maximum_length} were announced")
            self._pdu_left = length
            position += 6
            left -= 6
            self._position = position

    def _fragment(self, start: int, end: int) -> Fragment:
        control = self._control
        return Fragment(
            self._context_id, control & 1 == 1, control & 2 == 2 and not self._pdv_left, self._view[start:end]
        )

    def _whole_pdu(self, kind: int, length: int, left: int) -> PDU | None:
        if kind not in (0x01, 0x02, 0x03, 0x05, 0x06, 0x07):
            raise UnrecognizedPDU(f"PDU type {kind:02X}H{_OTHER_PROTOCOLS.get(kind, '')}")
        if length > (MAXIMUM_ASSOCIATE_LENGTH if kind in (0x01, 0x02) else 4):
            raise InvalidPDU(f"PDU type {kind:02X}H of {length} bytes")
        if left < 6 + length:
            self._missing = 6 + length - left
            self._begun += self._view[self._position :]
            self._data, self._view, self._position = b"", memoryview(b""), 0
            return None
        start = self._position
        self._position = start + 6 + length
        return decode(self._data[start : self._position])
