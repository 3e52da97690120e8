"""storescp.stored_file: what is read out of files, whole ones and damaged ones."""

from __future__ import annotations

import hashlib
import io
import os
import pathlib
from typing import Literal

import pydicom
from pydicom.data import get_testdata_files
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.errors import InvalidDicomError
from pydicom.uid import (
    UID,
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
)
from twisted.trial.unittest import SynchronousTestCase

from storescp import tags
from storescp.part10 import FileMeta
from storescp.stored_file import (
    MAX_FILE_META,
    PIECE,
    FileHead,
    NotAnInstance,
    read_file_head,
    read_instance,
    same_data_set,
)


def a_file(**attributes: object) -> bytes:
    """A DICOM file of an instance, as pydicom writes it; *attributes* of the data set by keyword, None: absent."""
    dataset = Dataset()
    dataset.SOPClassUID = CTImageStorage
    dataset.SOPInstanceUID = "1.2.3.4"
    dataset.StudyInstanceUID = "1.2"
    dataset.SeriesInstanceUID = "1.2.3"
    dataset.PatientID = "P1"
    for keyword, value in attributes.items():
        if value is None:
            delattr(dataset, keyword)
        else:
            setattr(dataset, keyword, value)
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.MediaStorageSOPInstanceUID = UID("1.2.3.4")
    dataset.file_meta.MediaStorageSOPClassUID = CTImageStorage
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.SourceApplicationEntityTitle = "MODALITY"
    file = io.BytesIO()
    dataset.save_as(file, enforce_file_format=True)
    return file.getvalue()


class StoredFileTestCase(SynchronousTestCase):
    """A directory for files."""

    def setUp(self) -> None:
        self.root = pathlib.Path(self.mktemp())
        self.root.mkdir(parents=True)

    def head_of(self, content: bytes) -> FileHead:
        """What the File Meta Information of a file of *content* says."""
        (self.root / "a.dcm").write_bytes(content)
        with open(self.root / "a.dcm", "rb") as file:
            return read_file_head(file.fileno())

    def assertNotAnInstance(self, content: bytes, reason: str) -> None:
        """A file of *content* is refused in one line."""
        (self.root / "a.dcm").write_bytes(content)
        with self.assertRaisesRegex(NotAnInstance, reason) as caught:
            read_instance(str(self.root), "a.dcm", None)
        self.assertNotIn("\n", str(caught.exception))


class FileHeadTests(StoredFileTestCase):
    """File Meta Information."""

    def test_our_own(self) -> None:
        """What part10 writes is read back."""
        meta = FileMeta(CTImageStorage, ExplicitVRLittleEndian, "SENDER", "ARCHIVE").encode("1.2.3")
        self.assertEqual(
            self.head_of(meta + b"\x08\0\x16\0UI\0\0"),
            FileHead(CTImageStorage, "1.2.3", ExplicitVRLittleEndian, "SENDER", len(meta)),
        )

    def test_pydicom_files(self) -> None:
        """Of pydicom's files with the three UIDs all is as pydicom reads it, and the data set begins there."""
        count = 0
        for name in get_testdata_files():
            try:
                dataset = pydicom.dcmread(name, stop_before_pixels=True)
                meta = dataset.file_meta
                wanted = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID, meta.TransferSyntaxUID
            except (InvalidDicomError, IsADirectoryError, AttributeError):
                continue
            if not all(wanted):
                continue
            count += 1
            with open(name, "rb") as file:
                head = read_file_head(file.fileno())
                file.seek(head.data_set_offset)
                first = file.read(4)
            self.assertEqual(head[:3], wanted, name)
            self.assertEqual(head.source_ae_title, meta.get("SourceApplicationEntityTitle", ""), name)
            if head.transfer_syntax_uid != DeflatedExplicitVRLittleEndian:
                order: Literal["big", "little"] = (
                    "big" if head.transfer_syntax_uid == ExplicitVRBigEndian else "little"
                )
                element = next(iter(dataset.keys()))
                self.assertEqual(int.from_bytes(first[:2], order), element >> 16, name)
                self.assertEqual(int.from_bytes(first[2:], order), element & 0xFFFF, name)
        self.assertGreater(count, 100)

    def test_wrong_group_length(self) -> None:
        """The group length of File Meta is not believed: some writers have it wrong, or not at all."""
        content = a_file()
        right = self.head_of(content)
        self.assertEqual(self.head_of(content[:140] + b"\xff\xff\0\0" + content[144:]), right)
        without = self.head_of(content[:132] + content[144:])
        self.assertEqual(without, right._replace(data_set_offset=right.data_set_offset - 12))

    def test_long(self) -> None:
        """Private information in File Meta may be long, up to a bound."""
        content = a_file()
        end = self.head_of(content).data_set_offset
        for size, fits in ((10_000, True), (MAX_FILE_META - end - 12 - 8, True), (MAX_FILE_META, False)):
            private = b"\x02\0\x02\x01OB\0\0" + size.to_bytes(4, "little") + bytes(size)
            content_now = content[:end] + private + content[end:]
            if fits:
                self.assertEqual(self.head_of(content_now).data_set_offset, end + 12 + size)
            else:
                self.assertNotAnInstance(content_now, f"more than {MAX_FILE_META} bytes")

    def test_cut_short(self) -> None:
        """Cut anywhere, a file is refused and never misread."""
        content = a_file()
        end = self.head_of(content).data_set_offset
        for size in range(132):
            self.assertNotAnInstance(content[:size], "^not a DICOM file$")
        for size in range(132, end):
            self.assertNotAnInstance(
                content[:size], "cut short|(File Meta Information|data set) has no SOP|Transfer"
            )
        self.assertNotAnInstance(content[: end - 1], "cut short in its File Meta")

    def test_missing_uids(self) -> None:
        """Each UID of File Meta must be there, and be ASCII."""
        content = a_file()
        for element, name in ((2, "SOP Class"), (3, "SOP Instance"), (16, "Transfer Syntax")):
            tag = b"\x02\0" + element.to_bytes(2, "little") + b"UI"
            start = content.index(tag)
            length = int.from_bytes(content[start + 6 : start + 8], "little")
            without = content[:start] + content[start + 8 + length :]
            self.assertNotAnInstance(without, rf"no {name} UID \(0002,{element:04X}\)")
            other = content[: start + 8] + b"\xe4" * length + content[start + 8 + length :]
            self.assertNotAnInstance(other, f"no {name} UID")

    def test_implicit(self) -> None:
        """File Meta in implicit VR, which PS3.10 does not allow, is refused."""
        self.assertNotAnInstance(bytes(128) + b"DICM\x02\0\x10\0\x04\0\0\x001.2\0", "explicit VR")


class ReadInstanceTests(StoredFileTestCase):
    """The row of a file."""

    def test_row(self) -> None:
        """All that the index is to know: UIDs, head, size, the time of the last change, who sent it, the digest."""
        content = a_file(EncapsulatedDocument=bytes(3 * PIECE))
        (self.root / "1").mkdir()
        path = self.root / "1" / "a.dcm"
        path.write_bytes(content)
        os.utime(path, (0, 1234.5))
        for algorithm in ("sha256", "md5", "blake2b"):
            row = read_instance(str(self.root), "1/a.dcm", algorithm)
            digest = f"{algorithm}:{hashlib.new(algorithm, content).hexdigest()}"
            self.assertEqual(
                row[1:],
                (
                    *(CTImageStorage, "1.2.3.4", ExplicitVRLittleEndian, "1/a.dcm"),
                    *(len(content), "MODALITY", 1234.5, digest),
                ),
            )
            self.assertEqual(row.head.text(tags.PATIENT_ID), "P1")
        self.assertIsNone(read_instance(str(self.root), "1/a.dcm", None).digest)

    def test_no_instance(self) -> None:
        """A data set without UIDs, of another instance, unreadable or cut short in its head is refused."""
        self.assertNotAnInstance(a_file(StudyInstanceUID=None), "no Study Instance UID")
        self.assertNotAnInstance(a_file(SeriesInstanceUID=None), "no Series Instance UID")
        other = a_file().replace(b"\x08\0\x18\0UI\x08\x001.2.3.4", b"\x08\0\x18\0UI\x08\x001.2.3.5")
        self.assertNotAnInstance(other, "'1.2.3.5' in its data set, '1.2.3.4' in its File Meta")
        self.assertNotAnInstance(a_file()[:-3], "ends inside the element")
        bad = a_file().replace(b"\x20\0\x0d\0UI", b"\x20\0\x0d\0\1\2")
        self.assertNotAnInstance(bad, r"\(0020,000D\) at byte \d+ has no VR")

    def test_no_file(self) -> None:
        """What is no regular file is refused, a FIFO without waiting; what is not there is an OSError."""
        os.mkfifo(self.root / "fifo")
        self.assertRaisesRegex(NotAnInstance, "not a regular", read_instance, str(self.root), "fifo", None)
        self.assertRaises(FileNotFoundError, read_instance, str(self.root), "nothing", None)

    def test_unknown_algorithm(self) -> None:
        """An algorithm that hashlib does not have is a ValueError."""
        (self.root / "a.dcm").write_bytes(a_file())
        self.assertRaises(ValueError, read_instance, str(self.root), "a.dcm", "sha257")


class SameDataSetTests(StoredFileTestCase):
    """Two files."""

    def same(self, a: bytes, b: bytes) -> bool:
        """Whether *a* and *b* are the same behind heads of different lengths."""
        (self.root / "a").write_bytes(b"head" + a)
        (self.root / "b").write_bytes(b"another head" + b)
        with open(self.root / "a", "rb") as one, open(self.root / "b", "rb") as other:
            return same_data_set(one.fileno(), 4, other.fileno(), 12)

    def test_compared(self) -> None:
        """Each byte counts, in every piece and at their borders, and so does the length."""
        for size in (0, 1, PIECE - 1, PIECE, PIECE + 1, 2 * PIECE + 5):
            content = os.urandom(size)
            self.assertTrue(self.same(content, content))
            self.assertFalse(self.same(content, content + b"\0"))
            for position in {0, PIECE - 1, PIECE, size - 1}:
                if 0 <= position < size:
                    changed = bytes([content[position] ^ 1])
                    other = content[:position] + changed + content[position + 1 :]
                    self.assertFalse(self.same(content, other), (size, position))
