"""storescp.audit and storescp.audit_messages: what is counted of an association, and what messages say."""

from __future__ import annotations

import datetime
import pathlib
import types
from typing import cast

from lxml import etree  # type: ignore[import-untyped]
from twisted.trial.unittest import SynchronousTestCase

from storescp import tags
from storescp.access import ANYONE
from storescp.audit import KINDS, STUDIES, Association, Audit, Transfers
from storescp.audit_messages import (
    Peer,
    Reporter,
    Study,
    application_activity,
    instances_transferred,
    node_rejected,
    user_authentication,
)
from storescp.dataset_head import Head
from storescp.dimse import Status
from storescp.interfaces import Outcome
from storescp.naming import Duplicate

SCHEMA = etree.RelaxNG(etree.parse(pathlib.Path(__file__).with_name("audit_message.rng")))
REPORTER = Reporter("Archive", "", "4711", "host")
WHEN = datetime.datetime(2026, 11, 25, 19, 5, tzinfo=datetime.UTC)
#: What no XML can hold, and what must be escaped in it.
NASTY = "\x00\x1b<&\">'\r\n\t\ud800\uffff名"


class MessageTests(SynchronousTestCase):
    """What peers and data sets say, in messages."""

    def test_any_text(self) -> None:
        """Whatever a peer calls itself or its patient, the message is well formed, and valid by the schema."""
        peer = Peer(NASTY, NASTY, "", NASTY)
        for message in (
            application_activity(REPORTER, NASTY, WHEN, stopped=False),
            instances_transferred(
                REPORTER, peer, WHEN, Study(NASTY, NASTY, {NASTY: 1}), new=False, failure=NASTY
            ),
            node_rejected(REPORTER, peer, WHEN, NASTY),
            user_authentication(REPORTER, peer, WHEN, NASTY),
        ):
            SCHEMA.assertValid(etree.fromstring(message))
            self.assertIn("名", message.decode())


class _Audit:
    """Notes what it is told."""

    def __init__(self) -> None:
        self.begun_studies: list[str] = []
        self.reports: list[tuple[str, str, dict[str, int], bool, str]] = []

    def begun(self, peer: Peer, study: Study) -> None:
        self.begun_studies.append(study.study_instance_uid)

    def transferred(self, peer: Peer, study: Study, *, new: bool, failure: str) -> None:
        self.reports.append((*study[:2], dict(study.instances), new, failure))


class TransfersTests(SynchronousTestCase):
    """Transfers."""

    def transfers(self, duplicate: Duplicate = Duplicate.REJECT) -> tuple[_Audit, Transfers]:
        audit = _Audit()
        association = types.SimpleNamespace(
            host="10.0.0.1", calling_ae_title="CT1", called_ae_title="ARCHIVE", caller=ANYONE, user=""
        )
        return audit, Transfers(cast(Audit, audit), cast(Association, association), duplicate)

    def outcome(
        self, study: str, patient: str = "p", sop_class: str = "1.2", status: Status = Status.SUCCESS
    ) -> Outcome:
        """Of an instance; UIDs are padded as they are in data sets."""
        raw = {
            tags.STUDY_INSTANCE_UID: study.encode() + b"\0",
            tags.PATIENT_ID: patient.encode(),
            tags.SOP_CLASS_UID: sop_class.encode() + b"\0",
        }
        return Outcome(status, "", 8, "path", Head(raw))

    def test_counts(self) -> None:
        """Of each study and patient: what was stored by SOP class, and apart from it what was not, with its status."""
        audit, transfers = self.transfers()
        for outcome in (
            self.outcome("1.1"),
            self.outcome("1.1"),
            self.outcome("1.1", sop_class="1.3"),
            self.outcome("1.1", patient="other"),
            self.outcome("1.1", status=Status.DUPLICATE_SOP_INSTANCE),
            self.outcome("1.2", status=Status.OUT_OF_RESOURCES),
            Outcome(Status.CANNOT_UNDERSTAND, "", 8, "", None),
        ):
            transfers.add(outcome)
        self.assertEqual(audit.begun_studies, ["1.1", "1.1", "1.2"])
        self.assertEqual(audit.reports, [])
        transfers.report()
        transfers.report()
        self.assertEqual(
            audit.reports,
            [
                ("1.1", "p", {"1.2": 2, "1.3": 1}, True, ""),
                ("1.1", "p", {"1.2": 1}, True, "1 with status 0111H"),
                ("1.1", "other", {"1.2": 1}, True, ""),
                ("1.2", "p", {"1.2": 1}, True, "1 with status A700H"),
            ],
        )

    def test_duplicates(self) -> None:
        """Where duplicates are taken, nothing is said to be new."""
        audit, transfers = self.transfers(Duplicate.REPLACE)
        transfers.add(self.outcome("1.1"))
        transfers.report()
        self.assertEqual([report[3] for report in audit.reports], [False])

    def test_longest(self) -> None:
        """Identifiers that are far too long are cut: a message stays within what receivers take, 32 KiB (§A.6)."""
        audit, transfers = self.transfers()
        for number in range(KINDS):
            transfers.add(self.outcome("1" * 5000, "&" * 5000, f"{number:03}" * 999))
        transfers.report()
        ((study, patient, instances, new, failure),) = audit.reports
        peer = Peer("&" * 16, "&" * 16, "::1", "&" * 100)
        message = instances_transferred(
            REPORTER, peer, WHEN, Study(study, patient, instances), new=new, failure=failure
        )
        self.assertEqual(len(instances), KINDS)
        self.assertLess(len(message), 32768)

    def test_bounds(self) -> None:
        """Many studies, or kinds of instances of one, are reported before the end, and none is forgotten."""
        audit, transfers = self.transfers()
        for number in range(STUDIES + 1):
            transfers.add(self.outcome(f"1.{number}"))
        self.assertEqual(len(audit.reports), STUDIES)
        transfers.report()
        self.assertEqual(len(audit.reports), STUDIES + 1)
        audit.reports.clear()
        for number in range(2 * KINDS + 1):
            transfers.add(self.outcome("1.1", sop_class=f"1.{number}"))
        transfers.report()
        self.assertEqual(sum(len(report[2]) for report in audit.reports), 2 * KINDS + 1)
        self.assertEqual(len(audit.reports), 3)
