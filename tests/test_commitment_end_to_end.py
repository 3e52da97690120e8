"""Storage commitment with the real twistd: pynetdicom and Orthanc ask for it, and get their reports."""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import sqlite3
import ssl
from collections.abc import Callable, Sequence
from typing import Any

from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import AE, evt
from pynetdicom.association import Association
from pynetdicom.pdu_primitives import SCP_SCU_RoleSelectionNegotiation
from twisted.trial.unittest import SynchronousTestCase

from storescp.sop_classes import STORAGE_COMMITMENT, STORAGE_COMMITMENT_INSTANCE
from tests.faults.injected import Strace
from tests.orthanc import Orthanc
from tests.pki import Authority
from tests.pynetdicom_scu import associate
from tests.server import DEADLINE, Server, free_port, run, temporary_directory
from tests.test_end_to_end import DATA
from tests.test_workers import workers_of

CT, MR = DATA / "CT_small.dcm", DATA / "MR_small.dcm"
CT_IMAGE_STORAGE, MR_IMAGE_STORAGE = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.4"
CT_UID = "1.3.6.1.4.1.5962.1.1.1.1.1.20040119072730.12322"
MR_UID = "1.3.6.1.4.1.5962.1.1.4.1.1.20040826185059.5457"
BOTH = ((CT_IMAGE_STORAGE, CT_UID), (MR_IMAGE_STORAGE, MR_UID))

UserItem = Any  # of pynetdicom

Said = tuple[int | None, str, list[str], list[tuple[str, int]]]


def said(event: evt.Event) -> Said:
    """Event type, transaction, what is committed and what has failed, of an N-EVENT-REPORT-RQ."""
    information = event.event_information
    return (
        event.event_type,
        str(information.TransactionUID),
        [str(item.ReferencedSOPInstanceUID) for item in information.get("ReferencedSOPSequence", [])],
        [
            (str(item.ReferencedSOPInstanceUID), item.FailureReason)
            for item in information.get("FailedSOPSequence", [])
        ],
    )


class Modality:
    """An application entity that asks for commitment, and is told on its association or where it listens."""

    def __init__(self, case: SynchronousTestCase, title: str = "CT1") -> None:
        self.case = case
        self.title = title
        self.port = free_port()
        self.reports: queue.Queue[Said] = queue.Queue()
        self.status = 0x0000

    def reported(self) -> Said:
        """The next report."""
        return self.reports.get(timeout=DEADLINE)

    def _report(self, event: evt.Event) -> tuple[int, None]:
        if self.status == 0x0000:
            self.reports.put(said(event))
        return self.status, None

    def listen(
        self, *, scp_role: bool | None = True, context: ssl.SSLContext | None = None
    ) -> Callable[[], None]:
        """Take reports; returns what ends that. *scp_role* is what is said to who wants to be the SCP."""
        ae = AE(self.title)
        roles = {} if scp_role is None else {"scu_role": False, "scp_role": scp_role}
        if scp_role is False:
            roles = {"scu_role": True, "scp_role": False}
        ae.add_supported_context(
            STORAGE_COMMITMENT, [ExplicitVRLittleEndian, ImplicitVRLittleEndian], **roles
        )
        listening = ae.start_server(
            ("127.0.0.1", self.port),
            block=False,
            ssl_context=context,
            evt_handlers=[(evt.EVT_N_EVENT_REPORT, self._report)],
        )
        assert listening is not None
        return listening.shutdown

    def associate(self, server: Server, *, role: tuple[bool, bool] | None = None) -> Association:
        ae = AE(self.title)
        ae.add_requested_context(STORAGE_COMMITMENT, [ExplicitVRLittleEndian])
        items: list[UserItem] = []
        if role is not None:
            item = SCP_SCU_RoleSelectionNegotiation()
            item.sop_class_uid = STORAGE_COMMITMENT
            item.scu_role, item.scp_role = role
            items.append(item)
        handlers = [(evt.EVT_N_EVENT_REPORT, self._report)]
        association = associate(ae, server.address[1], evt_handlers=handlers, ext_neg=items)
        self.case.assertTrue(association.is_established)
        return association

    def ask(
        self,
        association: Association,
        uid: str = "1.2.3",
        references: Sequence[tuple[str, str]] = BOTH,
        *,
        instance: str = STORAGE_COMMITMENT_INSTANCE,
        action: int = 1,
    ) -> int:
        """The status of the answer to a request."""
        information = Dataset()
        information.TransactionUID = uid
        information.ReferencedSOPSequence = []
        for sop_class, sop_instance in references:
            item = Dataset()
            item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = sop_class, sop_instance
            information.ReferencedSOPSequence.append(item)
        status, _ = association.send_n_action(information, action, STORAGE_COMMITMENT, instance)
        self.case.assertIn("Status", status)
        return int(status.Status)

    def ask_once(
        self, server: Server, uid: str = "1.2.3", references: Sequence[tuple[str, str]] = BOTH
    ) -> int:
        """Ask on an association that is released at once."""
        association = self.associate(server)
        status = self.ask(association, uid, references)
        association.release()
        return status


class _TestCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.home = temporary_directory(self)
        self.modality = Modality(self)

    def options(self, address: str = "") -> tuple[object, ...]:
        """Those of a server that knows where the modality listens, and leaves who asks all the time to release."""
        config = self.home / "storescp.yaml"
        address = address or f"127.0.0.1:{self.modality.port}"
        config.write_text(f"callers: {{CT1: {{commitment: '{address}'}}}}")
        return "--config", config, "--commitment-retry", "0.2", "--commitment-delay", "600"

    def start(self, *options: object) -> Server:
        """A server that knows where the modality listens, and has its images."""
        server = Server(self, *self.options(), *options)
        self.store(server)
        return server

    def restarted(self, server: Server, *options: object) -> Server:
        """Another one on the same storage directory."""
        return Server(self, *self.options(), "--storage-dir", server.storage, *options)

    def store(self, server: Server) -> None:
        self.assertEqual(run("storescu", *server.address, CT, MR).returncode, 0)

    def listen(self, **options: object) -> Callable[[], None]:
        stop = self.modality.listen(**options)  # type: ignore[arg-type]
        self.addCleanup(stop)
        return stop


ALL: Said = (1, "1.2.3", [CT_UID, MR_UID], [])


class ReportTests(_TestCase):
    """Where reports go, and what they say."""

    def test_same_association(self) -> None:
        """Who keeps the association is told there, and confirms it: nothing is owed any more."""
        server = self.start("--commitment-delay", "0")
        association = self.modality.associate(server)
        self.assertEqual(self.modality.ask(association), 0)
        self.assertEqual(self.modality.reported(), ALL)
        server.wait_for("reported to CT1 on its association: 2 of 2 instances committed")
        association.release()
        server.stop()
        self.assertNotIn("cannot", server.output)

    def test_new_association(self) -> None:
        """Who releases at once is told on an association of ours, as who called us by the title it used."""
        server = self.start()
        self.listen()
        self.assertEqual(self.modality.ask_once(server), 0)
        self.assertEqual(self.modality.reported(), ALL)
        server.wait_for(rf"reported to CT1 at 127.0.0.1:{self.modality.port}: 2 of 2 instances committed")
        server.stop()

    def test_failures(self) -> None:
        """What is not there, not whole, of another class or of none that is taken has its reason."""
        server = self.start("--accept", "CT,MR,US", "--commitment-delay", "0")
        (path,) = (path for name, path in server.files().items() if CT_UID in name)
        references = (
            (MR_IMAGE_STORAGE, MR_UID),
            (MR_IMAGE_STORAGE, "1.2.3.4"),
            (CT_IMAGE_STORAGE, MR_UID),
            (CT_IMAGE_STORAGE, CT_UID),
            ("1.2.840.10008.5.1.4.1.1.1", "1.2.3.5"),
        )
        association = self.modality.associate(server)
        os.truncate(path, 1000)
        self.assertEqual(self.modality.ask(association, "1.1", references), 0)
        expected = [("1.2.3.4", 0x0112), (MR_UID, 0x0119), (CT_UID, 0x0110), ("1.2.3.5", 0x0122)]
        self.assertEqual(self.modality.reported(), (2, "1.1", [MR_UID], expected))
        path.unlink()
        self.assertEqual(self.modality.ask(association, "1.2", references[3:4]), 0)
        self.assertEqual(self.modality.reported(), (2, "1.2", [], [(CT_UID, 0x0112)]))
        server.wait_for("1 of 5 instances committed, 1 x 0110H, 1 x 0112H, 1 x 0119H, 1 x 0122H")
        association.release()
        server.stop()

    def test_again_and_again(self) -> None:
        """A report is tried until it is confirmed with Success: nobody there, nobody who would take it, a failure."""
        server = self.start()
        self.assertEqual(self.modality.ask_once(server), 0)
        where = rf"cannot report to CT1 at 127.0.0.1:{self.modality.port}"
        server.wait_for(f"{where}: cannot connect: Connection refused; 1 report is owed to it")
        stop = self.modality.listen(scp_role=False)
        server.wait_for(f"{where}: it does not accept Storage Commitment")
        stop()
        self.modality.status = 0x0110
        self.listen()
        server.wait_for(f"{where}: status 0110H")
        self.modality.status = 0x0000
        self.assertEqual(self.modality.reported(), ALL)
        server.wait_for("2 of 2 instances committed")
        server.stop()

    def test_roles(self) -> None:
        """A requester may propose its role, or both; one that says nothing of ours is taken to agree."""
        server = self.start("--commitment-delay", "0")
        for number, role in enumerate(((True, False), (True, True))):
            association = self.modality.associate(server, role=role)
            self.assertEqual(self.modality.ask(association, f"1.{number}"), 0)
            self.assertEqual(self.modality.reported()[:2], (1, f"1.{number}"))
            association.release()
        server.stop()

    def test_given_up(self) -> None:
        """What could not be delivered in its time goes, and the log says so."""
        server = self.start("--commitment-keep", "1")
        self.assertEqual(self.modality.ask_once(server), 0)
        server.wait_for(r"given up a report to CT1, transaction 1\.2\.3, after \d+ attempts?")
        server.stop()
        self.assertNotIn("are owed\n", self.restarted(server).output)

    def test_nowhere(self) -> None:
        """Without an address there is the caller's own association: this one, or one on which it asks again."""
        server = Server(self, "--commitment-delay", "600")
        self.store(server)
        self.assertEqual(self.modality.ask_once(server), 0)
        server.wait_for(
            r"nowhere to report to CT1, transaction 1\.2\.3: expected callers\.CT1\.commitment, got none"
        )
        server.stop()
        server = Server(self, "--commitment-delay", "0", "--storage-dir", server.storage)
        association = self.modality.associate(server)
        self.assertEqual(self.modality.ask(association), 0)
        self.assertEqual(self.modality.reported(), ALL)
        association.release()
        server.stop()

    def test_nowhere_to_the_end(self) -> None:
        """What nobody can be told of is told of once, and goes in its time like any other."""
        # Who has released has gone before it could have been told.
        server = Server(self, "--commitment-delay", "600", "--commitment-keep", "1")
        self.store(server)
        self.assertEqual(self.modality.ask_once(server), 0)
        server.wait_for("given up a report to CT1, transaction 1.2.3, after 0 attempts")
        self.assertEqual(server.output.count("nowhere to report to CT1"), 1)
        server.stop()

    def test_directory(self) -> None:
        """A caller with a directory of its own is told of what is there, and of nothing else."""
        config = self.home / "storescp.yaml"
        config.write_text("callers: {CT1: {directory: ct1}}")
        server = Server(self, "--config", config, "--commitment-delay", "0")
        self.assertEqual(run("storescu", "-aet", "CT1", *server.address, CT).returncode, 0)
        self.assertEqual(run("storescu", *server.address, MR).returncode, 0)
        association = self.modality.associate(server)
        self.assertEqual(self.modality.ask(association), 0)
        self.assertEqual(self.modality.reported(), (2, "1.2.3", [CT_UID], [(MR_UID, 0x0112)]))
        association.release()
        server.stop()

    def test_reload(self) -> None:
        """An address that comes by SIGHUP has what is owed delivered, in one process and with several."""
        for workers in ("1", "2"):
            config = self.home / "storescp.yaml"
            config.write_text("ae-title: STORESCP")
            server = Server(self, "--config", config, "--workers", workers, "--commitment-delay", "600")
            self.store(server)
            self.assertEqual(self.modality.ask_once(server), 0)
            server.wait_for("nowhere to report to CT1")
            self.options()
            stop = self.modality.listen()
            server.send_signal(signal.SIGHUP)
            self.assertEqual(self.modality.reported(), ALL)
            server.wait_for("2 of 2 instances committed")
            server.stop()
            stop()

    def test_never_synced(self) -> None:
        """With --sync never the files are brought to the disk before the report says that they are safe.

        If that fails it does not say so.
        """
        server = self.start("--sync", "never", "--commitment-delay", "0")
        association = self.modality.associate(server)
        self.assertEqual(self.modality.ask(association), 0)  # after which there is the thread that does it
        self.assertEqual(self.modality.reported(), ALL)
        paths = [word for path in (server.storage, *server.files().values()) for word in ("-P", str(path))]
        trace = self.home / "trace"
        failing = ("-e", "inject=syncfs,fsync:error=EIO")
        with Strace(server.process.pid, trace, *paths, "-e", "trace=syncfs,fsync", *failing) as strace:
            self.assertEqual(self.modality.ask(association, "1.2.4"), 0)
            failed = [(uid, 0x0110) for uid in (CT_UID, MR_UID)]
            self.assertEqual(self.modality.reported(), (2, "1.2.4", [], failed))
        self.assertIn("INJECTED", strace.text)
        self.assertEqual(self.modality.ask(association, "1.2.5"), 0)
        self.assertEqual(self.modality.reported()[:2], (1, "1.2.5"))
        association.release()
        server.stop()


class RefusalTests(_TestCase):
    """What is not taken."""

    def test_statuses(self) -> None:
        """Another instance or action, nothing referred to, too much, a Transaction UID in use: PS3.7 §10.1.4.1.10."""
        server = self.start(
            "--commitment-max-items", "2", "--commitment-max-owed", "1", "--commitment-delay", "60"
        )
        association, ask = self.modality.associate(server), self.modality.ask
        self.assertEqual(ask(association, instance="1.2.3"), 0x0112)
        self.assertEqual(ask(association, action=2), 0x0123)
        self.assertEqual(ask(association, references=()), 0x0115)
        self.assertEqual(ask(association, references=BOTH * 2), 0x0213)
        self.assertEqual(
            ask(association, references=[(CT_IMAGE_STORAGE, f"1.{n}") for n in range(9999)]), 0x0213
        )
        self.assertEqual(ask(association), 0)
        self.assertEqual(ask(association), 0)  # the same
        self.assertEqual(ask(association, references=BOTH[:1]), 0x0115)
        self.assertEqual(ask(association, "1.2.4"), 0x0213)
        self.assertEqual(run("echoscu", *server.address).returncode, 0)
        association.release()
        server.wait_for("request from CT1 refused: 0115H the Transaction UID is in use")
        server.stop()

    def test_not_offered(self) -> None:
        """Without an index, or by option, the presentation context is not accepted."""
        for option in ("--no-index", "--no-commitment"):
            server = Server(self, option)
            ae = AE("CT1")
            ae.add_requested_context(STORAGE_COMMITMENT)
            ae.add_requested_context("1.2.840.10008.1.1")
            association = associate(ae, server.port)
            self.assertEqual(
                [str(context.abstract_syntax) for context in association.accepted_contexts],
                ["1.2.840.10008.1.1"],
            )
            association.release()
            server.stop()


class RestartTests(_TestCase):
    """What is owed outlives the server."""

    def test_kill(self) -> None:
        """A server that is killed right after its answer has the report delivered when it is back."""
        server = self.start("--commitment-delay", "600")
        association = self.modality.associate(server)
        self.assertEqual(self.modality.ask(association), 0)
        server.kill()
        self.listen()
        again = self.restarted(server)
        again.wait_for("storage commitment: 1 report is owed\n")
        again.wait_for("is reported on the association that asks, or where 1 rule of callers says\n")
        self.assertEqual(self.modality.reported(), ALL)
        again.wait_for("2 of 2 instances committed")
        again.stop()

    def test_stop(self) -> None:
        """So has one that is stopped in good order while nobody takes the report; and then it is owed no more."""
        server = self.start()
        self.assertEqual(self.modality.ask_once(server), 0)
        server.wait_for("cannot connect")
        server.stop()
        self.listen()
        again = self.restarted(server)
        self.assertEqual(self.modality.reported(), ALL)
        again.wait_for("2 of 2 instances committed")
        again.stop()
        self.assertNotIn("are owed\n", self.restarted(server).output)


class WorkersTests(_TestCase):
    """Several processes."""

    def test_reports(self) -> None:
        """A worker reports on the association that it has; the server, on a new one, once."""
        server = self.start("--workers", "2", "--commitment-delay", "0")
        self.listen()
        association = self.modality.associate(server)
        self.assertEqual(self.modality.ask(association, "1.1"), 0)
        self.assertEqual(self.modality.reported(), (1, "1.1", [CT_UID, MR_UID], []))
        server.wait_for("reported to CT1 on its association")
        association.release()
        server.stop()
        server = self.restarted(server, "--workers", "2")
        for number in range(2, 8):
            self.assertEqual(self.modality.ask_once(server, f"1.{number}"), 0)
        reports = [self.modality.reported() for _ in range(2, 8)]
        self.assertEqual(sorted(report[1] for report in reports), [f"1.{number}" for number in range(2, 8)])
        server.wait_for("reported to CT1 at", count=6)
        server.stop()
        self.assertTrue(self.modality.reports.empty())

    def test_killed_worker(self) -> None:
        """What a worker has taken that is killed then, the server reports: it is held by the process, not its place."""
        server = self.start("--workers", "2", "--commitment-delay", "600")
        self.listen()
        association = self.modality.associate(server)
        self.assertEqual(self.modality.ask(association), 0)
        with contextlib.closing(sqlite3.connect(server.storage / ".storescp" / "commitment.db")) as database:
            ((holder,),) = database.execute("SELECT holder FROM transactions")
        self.assertIn(holder, workers_of(server))
        for pid in workers_of(server):
            os.kill(pid, signal.SIGKILL)
        self.assertEqual(self.modality.reported(), ALL)
        server.wait_for("is ready again", count=2)
        server.stop()


class TLSTests(_TestCase):
    """Reports by TLS."""

    def context(self, authority: Authority) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*map(str, authority.issue("ct1")))
        context.load_verify_locations(self.authority.file)
        context.verify_mode = ssl.CERT_REQUIRED
        return context

    def setUp(self) -> None:
        super().setUp()
        self.authority = Authority(self.home)

    def test_report(self) -> None:
        """Both show a certificate. A peer whose certificate is of another authority is not told."""
        certificate, key = self.authority.issue("server")
        options = ("--tls-certificate", certificate, "--tls-key", key, "--tls-ca", self.authority.file)
        address = f"tls:127.0.0.1:{self.modality.port}"
        server = Server(
            self, *self.options(address), *options, "--listen", "tls:0:interface=127.0.0.1", "--workers", "2"
        )
        server.port = int(server.wait_for(r"listening on \S+ port (\d+)\n")[1])
        self.store(server)
        stop = self.modality.listen(context=self.context(Authority(self.home, "Other")))
        self.assertEqual(self.modality.ask_once(server), 0)
        server.wait_for(f"cannot report to CT1 at {address}: certificate verify failed")
        stop()
        self.listen(context=self.context(self.authority))
        self.assertEqual(self.modality.reported(), ALL)
        server.wait_for(f"reported to CT1 at {address}: 2 of 2")
        server.stop()


class OrthancTests(_TestCase):
    """Orthanc as the modality."""

    def test_restart(self) -> None:
        """Orthanc sends, asks, and gets its report after the server was killed and started again in between."""
        dicom = free_port()
        self.modality.port = dicom
        # Which does not know where to report to.
        server = Server(self, "--commitment-delay", "600", "--ae-title", "ARCHIVE")
        modality = {"AET": "ARCHIVE", "Host": "127.0.0.1", "Port": server.port}
        # Its association is open when the server dies.
        orthanc = Orthanc(
            self, {"archive": modality}, DicomAet="CT1", DicomPort=dicom, DicomAssociationCloseDelay=5
        )
        orthanc.store("archive", CT)
        transaction = orthanc.ask("archive", (CT_IMAGE_STORAGE, CT_UID), (CT_IMAGE_STORAGE, "1.2.3"))
        self.assertEqual(orthanc.rest(f"storage-commitment/{transaction}")["Status"], "Pending")
        server.kill()
        again = Server(
            self,
            *self.options(f"127.0.0.1:{dicom}"),
            "--storage-dir",
            server.storage,
            "--ae-title",
            "ARCHIVE",
        )
        again.wait_for(r"reported to CT1 at \S+: 1 of 2 instances committed, 1 x 0112H")
        report = orthanc.rest(f"storage-commitment/{transaction}")
        self.assertEqual((report["Status"], report["RemoteAET"]), ("Failure", "ARCHIVE"))
        self.assertEqual([item["SOPInstanceUID"] for item in report["Success"]], [CT_UID])
        self.assertEqual(
            [(item["SOPInstanceUID"], item["FailureReason"]) for item in report["Failures"]],
            [("1.2.3", 0x0112)],
        )
        again.stop()
