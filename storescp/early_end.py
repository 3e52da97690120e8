"""Whether an encoded data set (PS3.5 §7) ends where its last element does. Blocking; no Twisted.

What belongs here: walking over the headers of all elements of a file. Values are stepped over, not read: of an image
that takes a page or two beside its head, and one at the end.
"""

from __future__ import annotations

import os

from storescp.element_runs import Encoding
from storescp.sop_classes import DEFLATED_TRANSFER_SYNTAXES

#: Bytes that are read at once; nearly every head fits.
_PIECE = 16 * 1024

_UNDEFINED = 0xFFFF_FFFF
_ITEM, _SEQUENCE_END = 0xFFFE_E000, 0xFFFE_E0DD

_EXPLICIT = Encoding.of(frozenset(), 0)
_IMPLICIT = Encoding.of(frozenset(), 0, explicit=False)
_BIG_ENDIAN = Encoding.of(frozenset(), 0, big_endian=True)


def early_end(descriptor: int, offset: int, transfer_syntax_uid: str) -> str:
    """What is not there of the data set that begins *offset* bytes into an open file, in a few words.

    Empty if nothing is missing, or if it is not understood to its end: deflated, or not in the order of tags.
    Raises OSError.
    """
    if transfer_syntax_uid in DEFLATED_TRANSFER_SYNTAXES:
        return ""
    encoding = _BIG_ENDIAN if transfer_syntax_uid == "1.2.840.10008.1.2.2" else None
    return _Walk(descriptor, offset, encoding).walk()


class _NotUnderstood(Exception):
    """What stands there is no data set as we know it."""


class _Walk:
    """Once through a data set. Positions are in bytes of the file."""

    def __init__(self, descriptor: int, offset: int, encoding: Encoding | None) -> None:
        self._descriptor = descriptor
        self._position = offset
        self._size = os.fstat(descriptor).st_size
        self._start, self._piece = offset, b""
        # The last element of the top level: its tag, and where it begins.
        self._last, self._outermost = 0, offset
        # Some are in implicit VR under the name of an explicit syntax, or the other way round.
        self._encoding = encoding or (_EXPLICIT if _is_vr(self._header()[4:6]) else _IMPLICIT)
        # 0: top level. Odd: between the items of a sequence of undefined length. Even: inside such an item.
        self._depth = 0
        self._implicit_depth = 0  # from which on the VR is implicit; 0: nowhere

    def walk(self) -> str:
        """See :func:`early_end`."""
        while self._position < self._size:
            if self._depth == 0 and self._step():
                continue
            header = self._header()
            if len(header) < 8:
                if self._depth == 0 and not any(header):  # some writers add zeros
                    return ""
                return f"of an element at byte {self._position} there is but a part of the header"
            is_top = self._depth == 0
            try:
                tag, value, length = self._element(header)
            except _NotUnderstood:
                return ""
            if is_top:
                if tag <= self._last:
                    return ""
                self._last, self._outermost = tag, self._position
            self._position += value + length
        what = f"({self._last >> 16:04X},{self._last & 0xFFFF:04X}) at byte {self._outermost}"
        if self._position > self._size:
            return f"{what} is {self._position - self._size} B longer than what is left"
        return f"{what} has no end" if self._depth else ""

    def _step(self) -> bool:
        """Step over what nearly all elements are, short ones of explicit VR; whether there were any.

        Whatever is strange about the next one is left to who looks at one at a time.
        """
        encoding = self._encoding
        if not encoding.explicit:
            return False
        self._header()
        data, start, last = self._piece, self._start, self._last
        position, end = self._position - start, len(data) - 12
        unpack, short = encoding.header.unpack_from, encoding.short
        while position <= end:
            group, element, vr, length = unpack(data, position)
            tag = group << 16 | element
            if vr not in short or tag <= last:
                break
            last, self._outermost = tag, position + start
            position += 8 + length
        is_on = last != self._last
        self._position, self._last = position + start, last
        return is_on

    def _header(self) -> bytes:
        """The next 12 bytes, or as many as there are."""
        start = self._position - self._start
        if not 0 <= start <= len(self._piece) - 12:
            self._start, start = self._position, 0
            self._piece = os.pread(self._descriptor, _PIECE, self._position)
        return self._piece[start : start + 12]

    def _element(self, header: bytes) -> tuple[int, int, int]:
        """The tag of the next element, where its value begins, and what of it can be stepped over, in bytes."""
        encoding = _IMPLICIT if self._implicit_depth else self._encoding
        group, element, length = encoding.item.unpack_from(header)
        tag, value, vr = group << 16 | element, 8, 0
        if group == 0xFFFE:
            return tag, value, self._delimiter(tag, length)
        if self._depth & 1:
            raise _NotUnderstood
        if encoding.explicit:
            if _is_vr(header[4:6]):
                vr = encoding.header.unpack_from(header)[2]
                _, value, length = encoding.element(header.ljust(12, b"\0"), 0)
            elif self._depth == 0:  # some writers fall back to implicit VR in sequences
                raise _NotUnderstood
        if length == _UNDEFINED:
            self._depth += 1
            if encoding.explicit and vr == encoding.un:  # PS3.5 §6.2.2
                self._implicit_depth = self._depth
            length = 0
        return tag, value, length

    def _delimiter(self, tag: int, length: int) -> int:
        """What can be stepped over behind the header of an item, or of the end of one or of a sequence."""
        depth = self._depth
        if depth == 0 or (tag == _ITEM and not depth & 1):
            raise _NotUnderstood
        if tag == _ITEM:
            if length != _UNDEFINED:
                return length
            self._depth += 1
        else:  # lenient: an item's end may stand behind an item of defined length, or be forgotten
            self._depth -= (1 if depth & 1 else 2) if tag == _SEQUENCE_END else not depth & 1
            if self._depth < self._implicit_depth:
                self._implicit_depth = 0
        return 0


def _is_vr(code: bytes) -> bool:
    """Whether it is two capital letters."""
    return len(code) == 2 and code.isalpha() and code.isupper()
