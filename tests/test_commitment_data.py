"""storescp.commitment_data: what a request has, and what a report says, judged by pydicom."""

from __future__ import annotations

import io
import random

from pydicom.dataset import Dataset
from pydicom.filebase import DicomBytesIO
from pydicom.filereader import read_dataset
from pydicom.filewriter import write_dataset
from pydicom.sequence import Sequence
from twisted.trial.unittest import SynchronousTestCase

from storescp.commitment_data import (
    ActionStatus,
    BadRequest,
    FailureReason,
    Reference,
    Report,
    Request,
    decode_request,
    encode_report,
    encode_request,
)
from storescp.sop_classes import PLAIN_TRANSFER_SYNTAXES

IMPLICIT, EXPLICIT, BIG_ENDIAN = PLAIN_TRANSFER_SYNTAXES
CT = "1.2.840.10008.5.1.4.1.1.2"
REFERENCES = tuple(Reference(CT, f"1.2.3.{number}") for number in range(4))
REQUEST = Request("1.2.99", REFERENCES)


def written(dataset: Dataset, transfer_syntax_uid: str) -> bytes:
    """*dataset* as pydicom encodes it."""
    out = DicomBytesIO()
    out.is_little_endian = transfer_syntax_uid != BIG_ENDIAN
    out.is_implicit_VR = transfer_syntax_uid == IMPLICIT
    write_dataset(out, dataset)
    return out.getvalue()


def action_information(*, undefined: bool = False) -> Dataset:
    """REQUEST with all that may stand there besides; with undefined lengths, or with defined ones."""
    dataset = Dataset()
    dataset.TransactionUID = REQUEST.transaction_uid
    dataset.StorageMediaFileSetID = "DISK"
    dataset.ReferencedPerformedProcedureStepSequence = Sequence([Dataset()])
    dataset.ReferencedPerformedProcedureStepSequence[0].ReferencedSOPClassUID = "1.9"
    items = []
    for reference in REFERENCES:
        item = Dataset()
        item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = reference
        item.RetrieveAETitle = "ARCHIVE"
        item.PurposeOfReferenceCodeSequence = Sequence([Dataset(), Dataset()])
        item.PurposeOfReferenceCodeSequence[0].ReferencedSOPInstanceUID = "9.9"
        item["PurposeOfReferenceCodeSequence"].is_undefined_length = undefined
        item.is_undefined_length_sequence_item = undefined
        items.append(item)
    dataset.ReferencedSOPSequence = Sequence(items)
    dataset["ReferencedSOPSequence"].is_undefined_length = undefined
    return dataset


class RequestTests(SynchronousTestCase):
    """decode_request()."""

    def test_what_pydicom_writes(self) -> None:
        """It is read in each transfer syntax, with whatever stands besides, by either kind of length."""
        for syntax in PLAIN_TRANSFER_SYNTAXES:
            for undefined in (False, True):
                data = written(action_information(undefined=undefined), syntax)
                self.assertEqual(decode_request(data, syntax, 4), REQUEST)

    def test_inverse(self) -> None:
        """What encode_request() writes is read as what it was."""
        for syntax in PLAIN_TRANSFER_SYNTAXES:
            self.assertEqual(decode_request(encode_request(REQUEST, syntax), syntax, 4), REQUEST)

    def test_unusual_uids(self) -> None:
        """UIDs are taken as they are sent, valid or not, without their padding."""
        request = Request("1.02.x", (Reference("a-b", "0" * 64),))
        self.assertEqual(decode_request(encode_request(request, EXPLICIT), EXPLICIT, 1), request)

    def refused(self, data: bytes, most: int = 4) -> tuple[ActionStatus, str]:
        error = self.assertRaises(BadRequest, decode_request, data, EXPLICIT, most)
        return error.status, str(error)

    def test_incomplete(self) -> None:
        """Without a Transaction UID, without references, or with half a reference: invalid argument value."""
        whole = action_information()
        for keyword, expected in (
            ("TransactionUID", "no Transaction UID, or one that is no UID"),
            ("ReferencedSOPSequence", "no Referenced SOP Sequence"),
        ):
            dataset = Dataset()
            dataset.update({e.tag: e for e in whole if e.keyword != keyword})
            self.assertEqual(
                self.refused(written(dataset, EXPLICIT)), (ActionStatus.INVALID_ARGUMENT_VALUE, expected)
            )
        whole.ReferencedSOPSequence[3].ReferencedSOPInstanceUID = ""
        status, comment = self.refused(written(whole, EXPLICIT))
        self.assertEqual(status, ActionStatus.INVALID_ARGUMENT_VALUE)
        self.assertIn("Referenced SOP Instance UID", comment)
        whole.ReferencedSOPSequence = Sequence()
        self.assertEqual(self.refused(written(whole, EXPLICIT))[1], "no Referenced SOP Sequence")
        for uid in (b"1.2 3", b"1.2\\1.3", b"1" * 66, b"\xe9\xe9"):
            data = written(action_information(), EXPLICIT).replace(b"1.2.99", uid, 1)
            data = data[:6] + len(uid).to_bytes(2, "little") + data[8:]
            if b"\\" not in uid:  # which ends nothing: there is but one value
                self.assertEqual(self.refused(data)[0], ActionStatus.INVALID_ARGUMENT_VALUE)

    def test_too_many(self) -> None:
        """More items than are allowed are a resource limitation, known before the last of them is read."""
        data = written(action_information(), EXPLICIT)
        self.assertEqual(
            self.refused(data, 3), (ActionStatus.RESOURCE_LIMITATION, "more than 3 items in a sequence")
        )
        empty = b"\x08\0\x99\x11SQ\0\0\xff\xff\xff\xff" + b"\xfe\xff\0\xe0\0\0\0\0" * 11 + b"broken"
        self.assertEqual(self.refused(empty, 3)[0], ActionStatus.RESOURCE_LIMITATION)

    def test_deep(self) -> None:
        """Sequences that are nested without end are refused, and do not exhaust the stack."""
        data = (b"\x08\0\x99\x11SQ\0\0\xff\xff\xff\xff" + b"\xfe\xff\0\xe0\xff\xff\xff\xff") * 5000
        self.assertEqual(
            self.refused(data), (ActionStatus.INVALID_ARGUMENT_VALUE, "undecodable Action Information")
        )

    def test_broken(self) -> None:
        """What is cut short anywhere, or has any byte changed, is a request or is refused; nothing else is raised."""
        choose = random.Random(6)
        for syntax in PLAIN_TRANSFER_SYNTAXES:
            data = written(action_information(undefined=True), syntax)
            for position in range(len(data)):
                changed = bytearray(data)
                changed[position] = choose.randrange(256)
                for broken in (data[:position], bytes(changed)):
                    try:
                        self.assertIsInstance(decode_request(broken, syntax, 4), Request)
                    except BadRequest as error:
                        self.assertIn(
                            error.status,
                            (ActionStatus.INVALID_ARGUMENT_VALUE, ActionStatus.RESOURCE_LIMITATION),
                        )


class ReportTests(SynchronousTestCase):
    """encode_report(), PS3.4 Table J.3-2."""

    def read(self, report: Report, syntax: str) -> Dataset:
        data = io.BytesIO(encode_report(report, syntax))
        return read_dataset(data, syntax == IMPLICIT, syntax != BIG_ENDIAN)

    def test_all_committed(self) -> None:
        """Event type 1: the references of the request, and no failed ones."""
        report = Report("1.2.99", REFERENCES, ())
        self.assertEqual((report.event_type_id, report.reasons), (1, ""))
        for syntax in PLAIN_TRANSFER_SYNTAXES:
            dataset = self.read(report, syntax)
            self.assertEqual(dataset.TransactionUID, "1.2.99")
            self.assertNotIn("FailedSOPSequence", dataset)
            self.assertEqual(
                [
                    (i.ReferencedSOPClassUID, i.ReferencedSOPInstanceUID)
                    for i in dataset.ReferencedSOPSequence
                ],
                list(REFERENCES),
            )

    def test_failures(self) -> None:
        """Event type 2: the failed ones, each with its reason, before those that are committed, if there are."""
        failed = (
            (REFERENCES[0], FailureReason.NO_SUCH_OBJECT_INSTANCE),
            (REFERENCES[1], FailureReason.CLASS_INSTANCE_CONFLICT),
        )
        for syntax in PLAIN_TRANSFER_SYNTAXES:
            for committed in ((), REFERENCES[2:]):
                report = Report("1.2.99", committed, failed)
                self.assertEqual((report.event_type_id, report.reasons), (2, "1 x 0112H, 1 x 0119H"))
                dataset = self.read(report, syntax)
                self.assertEqual(
                    [(i.ReferencedSOPInstanceUID, i.FailureReason) for i in dataset.FailedSOPSequence],
                    [("1.2.3.0", 0x0112), ("1.2.3.1", 0x0119)],
                )
                self.assertEqual("ReferencedSOPSequence" in dataset, bool(committed))
                self.assertEqual([e.tag for e in dataset], sorted(e.tag for e in dataset))
