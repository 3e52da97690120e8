"""commitment_check: which instances a report on storage commitment calls safe, by the index and the files."""

from __future__ import annotations

import pathlib

from twisted.trial.unittest import SynchronousTestCase

from storescp import tags
from storescp.commitment_check import Judge
from storescp.commitment_data import FailureReason, Reference, Report, Request
from storescp.dataset_head import Head
from storescp.index import Index
from storescp.index_rows import ReceivedInstance
from tests.raw_scu import CT, EXPLICIT
from tests.server import temporary_directory

MR = "1.2.840.10008.5.1.4.1.1.4"
HEAD = Head({tags.STUDY_INSTANCE_UID: b"1.1", tags.SERIES_INSTANCE_UID: b"1.1.1"})


class ReportTests(SynchronousTestCase):
    """What is reported."""

    def setUp(self) -> None:
        self.root = temporary_directory(self)
        self.index = Index(str(self.root / "index.db"))
        self.addCleanup(self.index.close)
        self.judge = Judge(str(self.root), self.index, {CT, MR}.__contains__, is_synced=False)

    def store(self, uid: str, path: str, sop_class: str = CT) -> pathlib.Path:
        """A file with its row."""
        file = self.root / path
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(b"content")
        self.index.add([ReceivedInstance(HEAD, sop_class, uid, EXPLICIT, path, 7, "SENDER", 1.0)])
        return file

    def report(self, *references: Reference, directory: str = "") -> Report:
        report = self.judge.report(Request("1.2.99", references), directory)
        self.assertEqual(report.transaction_uid, "1.2.99")
        return report

    def reason(self, reference: Reference) -> FailureReason:
        """Why it, and nothing else, fails."""
        report = self.report(reference)
        self.assertEqual((report.committed, [failed for failed, _ in report.failed]), ((), [reference]))
        return report.failed[0][1]

    def test_each(self) -> None:
        """Each reference of the request is in the report, in their order, as often as it was there."""
        self.store("1.2.1", "a")
        self.store("1.2.2", "b")
        there, other, missing = (Reference(CT, f"1.2.{number}") for number in (2, 1, 3))
        report = self.report(there, missing, other, there, missing)
        self.assertEqual(report.committed, (there, other, there))
        self.assertEqual(report.failed, ((missing, FailureReason.NO_SUCH_OBJECT_INSTANCE),) * 2)

    def test_reasons(self) -> None:
        """Without row or file there is none, another size is damage, and another class a conflict."""
        reference = Reference(CT, "1.2.1")
        self.assertEqual(self.reason(reference), FailureReason.NO_SUCH_OBJECT_INSTANCE)
        self.assertEqual(
            self.reason(Reference("1.2.3.4", "1.2.1")), FailureReason.REFERENCED_SOP_CLASS_NOT_SUPPORTED
        )
        file = self.store("1.2.1", "a")
        self.assertEqual(self.report(reference).committed, (reference,))
        self.assertEqual(self.reason(Reference(MR, "1.2.1")), FailureReason.CLASS_INSTANCE_CONFLICT)
        file.write_bytes(b"cut")
        self.assertEqual(self.reason(reference), FailureReason.PROCESSING_FAILURE)
        file.unlink()
        self.assertEqual(self.reason(reference), FailureReason.NO_SUCH_OBJECT_INSTANCE)

    def test_several_places(self) -> None:
        """Of an instance stored in several places any that is whole will do, of the class that is asked for."""
        files = [self.store("1.2.1", path) for path in ("first", "second")]
        self.store("1.2.1", "third", MR)
        reference, other = Reference(CT, "1.2.1"), Reference(MR, "1.2.1")
        for file in files:
            file.write_bytes(b"cut")
            self.assertEqual(self.report(reference, other).committed, (reference, other))
            file.write_bytes(b"content")
        files[0].unlink()
        files[1].unlink()
        self.assertEqual(self.report(reference, other).committed, (other,))

    def test_directory(self) -> None:
        """For a caller with a directory of its own only what is below that counts."""
        self.store("1.2.1", "here/a")
        reference = Reference(CT, "1.2.1")
        self.assertEqual(self.report(reference, directory="here").committed, (reference,))
        for elsewhere in ("there", "her"):
            self.assertEqual(
                self.report(reference, directory=elsewhere).failed,
                ((reference, FailureReason.NO_SUCH_OBJECT_INSTANCE),),
            )
