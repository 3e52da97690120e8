"""storescp.early_end: data sets that end before their elements do."""

from __future__ import annotations

import os
import tempfile
from unittest import mock

from twisted.trial.unittest import SynchronousTestCase

from storescp.early_end import early_end
from storescp.stored_file import NotAnInstance, read_file_head
from tests.test_dataset_head import (
    BIG_ENDIAN,
    DEFLATED,
    EXPLICIT,
    IMPLICIT,
    ITEM,
    ITEM_END,
    JPEG,
    REFERENCED_IMAGE_SEQUENCE,
    SEQUENCE_END,
    UNDEFINED,
    deflate,
    element,
    elements,
)
from tests.test_operator_end_to_end import DATA

_BEFORE = b"as in a file"


def missing(syntax: str, data: bytes) -> str:
    """What is said of a data set in a file."""
    with tempfile.TemporaryFile() as file:
        file.write(_BEFORE + data)
        file.flush()
        return early_end(file.fileno(), len(_BEFORE), syntax)


def rich(syntax: str) -> list[bytes]:
    """The elements of a data set that has sequences of all kinds, and pixels."""
    start, end = element(syntax, ITEM, "", b"", UNDEFINED), element(syntax, ITEM_END, "")
    stop = element(syntax, SEQUENCE_END, "")
    inside = element(syntax, 0x00081150, "UI", b"1.2\0")
    defined = element(syntax, ITEM, "", inside)
    deep = element(syntax, REFERENCED_IMAGE_SEQUENCE, "SQ", start + inside + end + defined + stop, UNDEFINED)
    sequence = element(syntax, REFERENCED_IMAGE_SEQUENCE, "SQ", start + deep + inside + end + stop, UNDEFINED)
    in_un = element(IMPLICIT, ITEM, "", element(IMPLICIT, 0x00081150, "UI", b"1.2\0"))
    in_un += element(IMPLICIT, SEQUENCE_END, "")
    pixels = element(syntax, 0x7FE00010, "OW", b"\1" * 30)
    if syntax == JPEG:
        fragments = element(syntax, ITEM, "") + element(syntax, ITEM, "", b"\xff\xd8jpeg") + stop
        pixels = element(syntax, 0x7FE00010, "OB", fragments, UNDEFINED)
    head = elements(syntax)
    return [
        *head[:3],
        sequence,
        element(syntax, 0x00091001, "UN", in_un, UNDEFINED),
        *head[4:],
        element(syntax, 0x00401000, "SQ", defined),
        pixels,
    ]


class EarlyEndTests(SynchronousTestCase):
    """early_end()."""

    def test_every_byte(self) -> None:
        """Cut anywhere a data set ends early, but between two elements, where nobody can see it."""
        for syntax in (IMPLICIT, EXPLICIT, BIG_ENDIAN, JPEG):
            parts = rich(syntax)
            data = b"".join(parts)
            whole = {0} | {len(b"".join(parts[:count])) for count in range(1, len(parts) + 1)}
            self.assertEqual(missing(syntax, data), "")
            for size in range(len(data)):
                said = missing(syntax, data[:size])
                if size in whole or not any(data[max(end for end in whole if end <= size) : size]):
                    self.assertEqual(said, "", size)
                else:
                    self.assertNotEqual(said, "", size)

    def test_what_is_said(self) -> None:
        """It names the element of the top level, and where it begins in the file."""
        parts = rich(EXPLICIT)
        data = b"".join(parts)
        where = len(_BEFORE) + len(data) - len(parts[-1])
        pixels = f"(7FE0,0010) at byte {where}"
        self.assertEqual(missing(EXPLICIT, data[:-7]), f"{pixels} is 7 B longer than what is left")
        self.assertEqual(
            missing(EXPLICIT, data[: -len(parts[-1]) + 5]),
            f"of an element at byte {where} there is but a part of the header",
        )
        parts = rich(JPEG)
        where = len(_BEFORE) + len(b"".join(parts[:-1]))
        self.assertEqual(missing(JPEG, b"".join(parts)[:-8]), f"(7FE0,0010) at byte {where} has no end")

    def test_not_understood(self) -> None:
        """Nothing is said of what is not read: zeros at the end, tags out of order, no VR, what is deflated."""
        data = b"".join(rich(EXPLICIT))
        for strange in (
            data + bytes(3),
            data + bytes(100),
            data + data[:-1],
            data + b"strange things",
            data[:-42] + element(EXPLICIT, SEQUENCE_END, "", b"", 1000),
        ):
            self.assertEqual(missing(EXPLICIT, strange), "")
        self.assertEqual(missing(DEFLATED, deflate(data)[:-9]), "")

    def test_real_files(self) -> None:
        """Of pydicom's test data those two are named that are said to be truncated."""
        found = []
        for path in sorted(DATA.rglob("*")):
            if path.is_file():
                with open(path, "rb") as file:
                    try:
                        head = read_file_head(file.fileno())
                    except NotAnInstance:
                        continue
                    if early_end(file.fileno(), head.data_set_offset, head.transfer_syntax_uid):
                        found.append(path.name)
        self.assertEqual(found, ["MR_truncated.dcm", "rtplan_truncated.dcm"])

    def test_reads(self) -> None:
        """Of three gigabytes of pixels none is read but the last."""
        data = b"".join(elements(EXPLICIT)) + element(EXPLICIT, 0x7FE00010, "OW", b"", 3 << 30)
        padding = element(EXPLICIT, 0xFFFCFFFC, "OB", b"\0\0")
        with tempfile.TemporaryFile() as file:
            file.write(data)
            file.seek(3 << 30, os.SEEK_CUR)
            file.write(padding)
            file.flush()
            with mock.patch("os.pread", wraps=os.pread) as reads:
                self.assertEqual(early_end(file.fileno(), 0, EXPLICIT), "")
                self.assertEqual(reads.call_count, 2)
            os.truncate(file.fileno(), len(data))
            self.assertIn(f" is {3 << 30} B longer", early_end(file.fileno(), 0, EXPLICIT))
