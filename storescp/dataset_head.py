"""The head of an encoded data set (PS3.5 §7): its attributes for naming and index, without decoding the rest.

What belongs here: walking over element headers in whatever pieces they arrive, and decoding the few values
that are wanted. Nothing is kept but those. Elements stand in ascending order of tags (PS3.5 §7.1), so the
reader stops at the last wanted one, long before the pixels.

Every instance passes through here: hence whole headers unpacked at once, tags and VRs as integers, and one
short loop for what nearly all elements are. The headers of one series hardly differ: runs of elements that were
walked over before are recognised by one comparison of all their headers (:mod:`storescp.element_runs`).
"""

from __future__ import annotations

import struct
import zlib
from typing import NoReturn

from storescp import tags
from storescp.character_sets import decode_extended, python_encodings
from storescp.element_runs import Encoding
from storescp.sop_classes import DEFLATED_TRANSFER_SYNTAXES
from storescp.tags import WANTED

#: Bytes of a wanted value; the longest by the standard is a person name, three groups of 64 characters.
MAX_VALUE = 1024

#: Bytes looked at in one step; nearly every head fits.
PIECE = 16 * 1024

#: Bytes that a deflated data set may inflate to before its head must have ended. Deflate packs up to 1000:1.
MAX_INFLATED = 64 * 1024 * 1024

_LAST = tags.COLUMNS
_UIDS = frozenset(
    {tags.SOP_CLASS_UID, tags.SOP_INSTANCE_UID, tags.STUDY_INSTANCE_UID, tags.SERIES_INSTANCE_UID}
)
_BINARY = frozenset({tags.ROWS, tags.COLUMNS})
_UNDEFINED = 0xFFFF_FFFF
_DELIMITERS, _ITEM, _ITEM_END, _SEQUENCE_END = 0xFFFE, 0xE000, 0xE00D, 0xE0DD

_EXPLICIT = Encoding.of(WANTED, MAX_VALUE)
_IMPLICIT = Encoding.of(WANTED, MAX_VALUE, explicit=False)
_ENCODINGS = {
    "1.2.840.10008.1.2": _IMPLICIT,
    "1.2.840.10008.1.20": _IMPLICIT,  # Papyrus 3, retired
    "1.2.840.10008.1.2.2": Encoding.of(WANTED, MAX_VALUE, big_endian=True),
}


class HeadError(ValueError):
    """The data set cannot be parsed. The message says what is wrong, and at which byte."""


class Head:
    """The wanted attributes of one data set. ``raw`` has them by tag, 0xGGGGEEEE, as encoded, padding kept."""

    __slots__ = ("_big_endian", "raw")

    def __init__(self, raw: dict[int, bytes], *, big_endian: bool = False) -> None:
        self.raw = raw
        self._big_endian = big_endian

    def uid(self, tag: int) -> str | None:
        """A UI value without its padding; None when absent or empty. Raises HeadError unless it is ASCII."""
        value = self.raw.get(tag)
        if value is None:
            return None
        try:
            return value.rstrip(b"\0 ").decode("ascii") or None
        except UnicodeDecodeError:
            raise HeadError(f"{_name(tag)} is not a UID: it has bytes beyond ASCII") from None

    def text(self, tag: int) -> str | None:
        """A text value by the Specific Character Set (PS3.3 §C.12.1.1.2), without padding; None when absent or empty.

        Several values stay joined by backslashes. What cannot be decoded becomes U+FFFD; never raises.
        """
        value = self.raw.get(tag)
        if value is None:
            return None
        if value.isascii() and b"\x1b" not in value:
            return value.decode("ascii").strip("\0 ") or None
        encodings = python_encodings(self.raw.get(tags.SPECIFIC_CHARACTER_SET, b""))
        if b"\x1b" not in value:
            return value.decode(encodings[0], "replace").strip("\0 ") or None
        return decode_extended(value, encodings).strip("\0 ") or None

    def integer(self, tag: int) -> int | None:
        """A number, from US for Rows and Columns, else from IS; None when absent or no number."""
        value = self.raw.get(tag)
        if not value:
            return None
        if tag in _BINARY:
            if len(value) != 2:
                return None
            return int.from_bytes(value, "big" if self._big_endian else "little")
        if len(value) > 12 or b"_" in value:  # IS has at most 12 characters; int() knows more than IS does
            return None
        try:
            return int(value.strip(b"\0 "))
        except ValueError:
            return None


class HeadReader:
    """Reads the head of one data set in *transfer_syntax_uid*, fed in pieces of any size.

    Nested sequences of undefined length are counted, never recursed into, and values that are not wanted are
    not kept, so memory stays below some 50 KiB whatever the data set claims. Unknown transfer syntaxes are taken
    for encapsulated ones, which are explicit VR little endian (PS3.5 §A.4).
    """

    __slots__ = (
        "_complete",
        "_depth",
        "_encoding",
        "_implicit_depth",
        "_inflated",
        "_inflater",
        "_offset",
        "_raw",
        "_rest",
        "_skip",
    )

    def __init__(self, transfer_syntax_uid: str) -> None:
        self._encoding = _ENCODINGS.get(transfer_syntax_uid, _EXPLICIT)
        deflated = transfer_syntax_uid in DEFLATED_TRANSFER_SYNTAXES
        self._inflater = zlib.decompressobj(-zlib.MAX_WBITS) if deflated else None
        self._inflated = 0
        self._raw: dict[int, bytes] = {}
        self._complete = False
        self._offset = 0  # of the first byte in _rest, or to be skipped
        self._rest = b""  # the beginning of an element that is still to be read
        self._skip = 0  # bytes to come that are of no interest
        # 0: top level. Odd: between the items of a sequence of undefined length. Even: inside such an item.
        self._depth = 0
        self._implicit_depth = 0  # the depth from which on the VR is implicit; 0: as the transfer syntax says

    def feed(self, data: bytes | memoryview) -> bool:
        """Take the next piece of the data set; true once the head is complete. Raises HeadError."""
        if self._inflater is None or self._complete:
            return self._complete or self._feed(data)
        try:
            for start in range(0, len(data), PIECE):
                piece: bytes | memoryview = data[start : start + PIECE]
                step = limit = PIECE
                while not self._inflater.eof:
                    # Where it is damaged zlib gives nothing of what stands before that in the same piece, by which the
                    # cuts would decide. So there it gets on in ever shorter steps, up to the byte: into it and out.
                    before = self._inflater.copy()
                    try:
                        inflated = self._inflater.decompress(
                            piece[:step], min(limit, MAX_INFLATED - self._inflated)
                        )
                    except zlib.error:
                        if step > 1:
                            step //= 2
                        elif limit > 1:
                            limit //= 2
                        else:
                            raise
                        self._inflater = before
                        continue
                    self._inflated += len(inflated)
                    if self._feed(inflated):
                        return True
                    if self._inflated >= MAX_INFLATED:
                        raise HeadError(
                            f"the deflated data set has no end of its head in {MAX_INFLATED} bytes"
                        )
                    piece = self._inflater.unconsumed_tail + bytes(piece[step:])
                    if not piece and len(inflated) < limit:
                        break
        except zlib.error as error:
            raise HeadError(f"the data set cannot be inflated after byte {self._inflated}: {error}") from None
        return False

    def finish(self) -> Head:
        """The head, once feed() said so or the data set has ended. Raises HeadError when that was inside an element."""
        if not self._complete:
            if self._rest or self._skip or self._depth:
                raise HeadError(f"the data set ends inside the element at byte {self._offset}")
            if self._inflater is not None and not self._inflater.eof:
                raise HeadError(f"the deflated data set ends early, after byte {self._inflated}")
        return Head(self._raw, big_endian=self._encoding.big_endian)

    def _feed(self, data: bytes | memoryview) -> bool:
        start, size = 0, len(data)
        while True:
            if self._skip:
                skipped = min(self._skip, size - start)
                self._skip -= skipped
                self._offset += skipped
                start += skipped
            if start >= size:
                return False
            piece = bytes(data[start : start + PIECE])
            start += len(piece)
            if self._rest:
                piece = self._rest + piece
            if self._offset == 0 and len(piece) >= 8:
                self._begin(piece)
            end = self._walk_explicit(piece) if self._encoding.explicit else self._walk_implicit(piece)
            if self._complete:
                self._encoding.earn()
                return True
            self._offset += min(end, len(piece))
            self._rest = piece[end:]
            self._skip = max(end - len(piece), 0)

    # Each walk returns the position behind the last element that it is through with. That may lie beyond the
    # piece. A header or a wanted value that is not all there yet is looked at again when more has come.

    def _walk_explicit(self, data: bytes) -> int:
        pos = self._walk_sequence(data, 0) if self._depth else 0
        if self._depth:
            return pos
        raw, size = self._raw, len(data)
        encoding, new = self._encoding, pos  # from new on no run was known
        runs = encoding.runs if encoding.patience > 0 else {}
        unpack, short, wanted, last = encoding.header.unpack_from, encoding.short, WANTED, _LAST
        try:
            while True:
                run = runs.get(data[pos : pos + 8])
                if run is not None and (end := encoding.recognise(run, data, pos, raw)) > pos:
                    encoding.learn(data, new, pos)
                    new = pos = end
                    continue
                group, element, vr, length = unpack(data, pos)
                tag = group << 16 | element
                if vr in short:
                    value = pos + 8
                elif tag > last:
                    break
                else:
                    if not _is_vr(vr):
                        self._fail(tag, pos, "has no VR")
                    (length,) = encoding.length.unpack_from(data, pos + 8)
                    value = pos + 12
                    if length == _UNDEFINED:
                        encoding.learn(data, new, pos)
                        self._depth = 1
                        # PS3.5 §6.2.2: what is in a UN of undefined length is implicit VR little endian
                        self._implicit_depth = 1 if vr == encoding.un else 0
                        new = pos = self._walk_sequence(data, value)
                        if self._depth:
                            return pos
                        continue
                if tag in wanted:
                    end = value + length
                    if length > MAX_VALUE:
                        self._check_length(tag, pos, length)
                    elif end > size:
                        return pos
                    else:
                        raw[tag] = data[value:end]
                        if tag == last:
                            break
                    pos = end
                elif tag > last:
                    break
                else:
                    pos = value + length
        except struct.error:
            return pos
        encoding.learn(data, new, pos)
        self._complete = True
        return pos

    def _walk_implicit(self, data: bytes) -> int:
        pos = self._walk_sequence(data, 0) if self._depth else 0
        if self._depth:
            return pos
        raw, size = self._raw, len(data)
        encoding, new = self._encoding, pos  # from new on no run was known
        runs = encoding.runs if encoding.patience > 0 else {}
        unpack, wanted, last = encoding.item.unpack_from, WANTED, _LAST
        try:
            while True:
                run = runs.get(data[pos : pos + 8])
                if run is not None and (end := encoding.recognise(run, data, pos, raw)) > pos:
                    encoding.learn(data, new, pos)
                    new = pos = end
                    continue
                group, element, length = unpack(data, pos)
                tag = group << 16 | element
                if tag > last:
                    break
                if length == _UNDEFINED:
                    encoding.learn(data, new, pos)
                    self._depth = self._implicit_depth = 1
                    new = pos = self._walk_sequence(data, pos + 8)
                    if self._depth:
                        return pos
                elif tag in wanted:
                    end = pos + 8 + length
                    if length > MAX_VALUE:
                        self._check_length(tag, pos, length)
                    elif end > size:
                        return pos
                    else:
                        raw[tag] = data[pos + 8 : end]
                        if tag == last:
                            break
                    pos = end
                else:
                    pos += 8 + length
        except struct.error:
            return pos
        encoding.learn(data, new, pos)
        self._complete = True
        return pos

    def _walk_sequence(self, data: bytes, pos: int) -> int:
        """Go on from *pos* to the end of the outermost sequence of undefined length, PS3.5 §7.5."""
        depth, implicit_depth = self._depth, self._implicit_depth
        explicit, size = self._encoding, len(data)
        try:
            while depth and pos < size:
                value = pos + 8
                encoding = _IMPLICIT if implicit_depth else explicit
                group, element, length = encoding.item.unpack_from(data, pos)
                undefined = length == _UNDEFINED
                if group == _DELIMITERS and element == _ITEM:
                    if not depth & 1:
                        self._fail(0xFFFEE000, pos, "is an item in an item")
                    depth += undefined
                elif group == _DELIMITERS:
                    # Lenient: an item's end may stand behind an item of defined length, or be forgotten.
                    if element == _SEQUENCE_END:
                        depth -= 1 if depth & 1 else 2
                    elif element == _ITEM_END:
                        depth -= not depth & 1
                    else:
                        self._fail(group << 16 | element, pos, "is not known")
                    if depth < implicit_depth:
                        implicit_depth = 0
                    length = 0
                    undefined = False
                elif depth & 1:
                    self._fail(group << 16 | element, pos, "stands between items")
                else:
                    vr = 0
                    if encoding.explicit:
                        _, _, vr, short_length = encoding.header.unpack_from(data, pos)
                        if vr in encoding.short:
                            length = short_length
                        elif _is_vr(vr):
                            value += 4
                            (length,) = encoding.length.unpack_from(data, pos + 8)
                        # else: some writers fall back to implicit VR in sequences; that length we have
                        undefined = length == _UNDEFINED
                    if undefined:
                        depth += 1
                        if encoding.explicit and vr == encoding.un:
                            implicit_depth = depth
                pos = value if undefined else value + length
        except struct.error:
            pass
        self._depth, self._implicit_depth = depth, implicit_depth
        return pos

    def _begin(self, data: bytes) -> None:
        """Judge the first element, of which *data* has the header."""
        group = int.from_bytes(data[:2], "big" if self._encoding.big_endian else "little")
        if group in (0, 2, 4, 6):  # none of a data set, PS3.5 §7.1: a preamble, File Meta, a DICOMDIR
            raise HeadError(f"the data set begins with group {group:04X}, at byte 0")
        # Some files are implicit VR under the name of an explicit syntax, or the other way round. The first
        # element tells them apart: it is a short one, and two capitals in a length make 16 KiB at least.
        explicit = _is_vr(data[4] | data[5] << 8)
        if explicit != self._encoding.explicit and not self._encoding.big_endian:
            self._encoding = _EXPLICIT if explicit else _IMPLICIT

    def _check_length(self, tag: int, pos: int, length: int) -> None:
        """A wanted value is too long to be kept: do without it, but for the UIDs."""
        if tag in _UIDS:
            self._fail(tag, pos, f"has {length} bytes, too many for a UID")

    def _fail(self, tag: int, pos: int, what: str) -> NoReturn:
        raise HeadError(f"the element {_name(tag)} at byte {self._offset + pos} {what}")


def _is_vr(code: int) -> bool:
    """Whether the two bytes of *code* are capital letters."""
    return 0x41 <= code & 0xFF <= 0x5A and 0x41 <= code >> 8 <= 0x5A


def _name(tag: int) -> str:
    return f"({tag >> 16:04X},{tag & 0xFFFF:04X})"
