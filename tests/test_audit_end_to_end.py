"""The real server, real senders and a real receiver of audit messages: rsyslogd."""

from __future__ import annotations

import base64
import datetime
import pathlib
import socket

from pydicom.data import get_testdata_file
from twisted.trial.unittest import SynchronousTestCase

from tests.raw_scu import RawSCU, instance
from tests.receiver import Message, Receiver
from tests.server import Server, free_port, run, run_twistd, temporary_directory

CT, MR = (str(get_testdata_file(name)) for name in ("CT_small.dcm", "MR_small.dcm"))


class _TestCase(SynchronousTestCase):
    def attributes(self, message: Message, path: str) -> dict[str, str]:
        """Those of the one element at *path*."""
        (element,) = message.xml.findall(path)
        return element.attrib


class TransferTests(_TestCase):
    """What is reported of a server that stores."""

    def test_udp(self) -> None:
        """Its start, each study that begins and what came of it, and its stop: by the standard's schema."""
        receiver = Receiver(self)
        server = Server(self, "--audit", receiver.url("udp"), "--audit-site", "Ward 7")
        start = receiver.message("110100")
        self.assertEqual(start.code("EventIdentification/EventTypeCode"), "110120")
        self.assertEqual(
            (start.transport, start.priority, start.application, start.message_id),
            ("udp", 85, "storescp", "DICOM+RFC3881"),
        )
        self.assertEqual((start.process, start.host), (str(server.process.pid), socket.gethostname()))
        self.assertEqual(
            self.attributes(start, "AuditSourceIdentification"),
            {"AuditSourceID": "STORESCP", "AuditEnterpriseSiteID": "Ward 7"},
        )
        run("storescu", "-nh", *server.address, CT, CT, MR)
        begun = receiver.message("110102", 2)
        self.assertEqual(self.attributes(begun, "EventIdentification")["EventActionCode"], "E")
        stored = receiver.message("110104")
        event = self.attributes(stored, "EventIdentification")
        self.assertEqual((event["EventActionCode"], event["EventOutcomeIndicator"]), ("C", "0"))
        self.assertIsNotNone(datetime.datetime.fromisoformat(event["EventDateTime"]).tzinfo)
        sender, receiver_of_images = stored.xml.findall("ActiveParticipant")
        self.assertEqual(
            sender.attrib,
            {
                "UserID": "STORESCU",
                "AlternativeUserID": "AETITLES=STORESCU",
                "UserIsRequestor": "true",
                "NetworkAccessPointID": "127.0.0.1",
                "NetworkAccessPointTypeCode": "2",
            },
        )
        self.assertEqual(receiver_of_images.attrib["AlternativeUserID"], "AETITLES=ANY-SCP")
        roles = [part.attrib["csd-code"] for part in stored.xml.findall("ActiveParticipant/RoleIDCode")]
        self.assertEqual(roles, ["110153", "110152"])
        study, patient = stored.xml.findall("ParticipantObjectIdentification")
        self.assertEqual(study.attrib["ParticipantObjectID"], "1.3.6.1.4.1.5962.1.2.1.20040119072730.12322")
        self.assertEqual(patient.attrib["ParticipantObjectID"], "1CT1")
        (sop_class,) = study.findall("ParticipantObjectDescription/SOPClass")
        self.assertEqual(sop_class.attrib, {"UID": "1.2.840.10008.5.1.4.1.1.2", "NumberOfInstances": "1"})
        failed = receiver.message("110104", 2)
        outcome = failed.xml.find("EventIdentification/EventOutcomeDescription")
        assert outcome is not None
        self.assertEqual(outcome.text, "1 with status 0111H")
        self.assertEqual(self.attributes(failed, "EventIdentification")["EventOutcomeIndicator"], "4")
        receiver.message("110104", 3)
        self.assertNotIn("CompressedSamples", "".join(message.text for message in receiver.messages))
        server.stop()
        stop = receiver.message("110100", 2)
        self.assertEqual(stop.code("EventIdentification/EventTypeCode"), "110121")
        self.assertEqual(len(receiver.messages), 7)

    def test_workers(self) -> None:
        """Workers report what they store, over TLS, and the server that it starts and stops, each but once."""
        receiver = Receiver(self)
        certificate, key = receiver.authority.issue("client")
        tls = ("--audit-ca", receiver.authority.file, "--audit-certificate", certificate, "--audit-key", key)
        server = Server(
            self, "--workers", 2, "--audit", receiver.url("tls"), "--audit-source", "Archive", *tls
        )
        for image in (CT, MR):
            self.assertEqual(run("storescu", *server.address, image).returncode, 0)
        stored = [receiver.message("110104", count) for count in (1, 2)]
        self.assertEqual({message.transport for message in stored}, {"tls"})
        self.assertNotIn(str(server.process.pid), [message.process for message in stored])
        server.stop()
        stop = receiver.message("110100", 2)
        self.assertEqual(stop.code("EventIdentification/EventTypeCode"), "110121")
        self.assertEqual(self.attributes(stop, "AuditSourceIdentification"), {"AuditSourceID": "Archive"})
        self.assertEqual(
            sorted(message.event for message in receiver.messages),
            ["110100"] * 2 + ["110102"] * 2 + ["110104"] * 2,
        )

    def test_receiver_away(self) -> None:
        """While nobody receives, images are stored and messages wait; they arrive when somebody does."""
        receiver = Receiver(self)
        server = Server(self, "--audit", receiver.url("tcp"))
        receiver.message("110100")
        receiver.stop()
        server.wait_for("audit: no connection to tcp://localhost")
        self.assertEqual(run("storescu", *server.address, CT).returncode, 0)
        server.wait_for("association released")
        receiver.start()
        stored = receiver.message("110104")
        self.assertEqual(stored.transport, "tcp")
        server.stop()
        receiver.message("110100", 2)

    def test_nobody(self) -> None:
        """A server whose receiver never comes stores, stops in time, and says what is lost."""
        receiver = Receiver(self)
        receiver.stop()
        server = Server(self, "--audit", receiver.url("tcp"))
        self.assertEqual(run("storescu", *server.address, CT).returncode, 0)
        server.stop()
        self.assertRegex(server.output, r"audit: lost 4 messages to tcp://localhost:\d+\n")


class AlertTests(_TestCase):
    """What is reported of those who may not come in."""

    def test_node(self) -> None:
        """A caller without a rule is a security alert."""
        receiver = Receiver(self)
        rules = receiver.home / "rules.yaml"
        rules.write_text("reject-unknown-callers: true\ncallers: {CT1: {}}\n")
        server = Server(self, "--config", rules, "--audit", receiver.url("tcp"))
        self.assertNotEqual(run("echoscu", "-aet", "MALLORY", *server.address).returncode, 0)
        alert = receiver.message("110113")
        self.assertEqual(alert.code("EventIdentification/EventTypeCode"), "110126")
        self.assertEqual(
            alert.xml.findall("ActiveParticipant")[1].attrib,
            {
                "UserID": "MALLORY",
                "AlternativeUserID": "AETITLES=MALLORY",
                "UserIsRequestor": "false",
                "NetworkAccessPointID": "127.0.0.1",
                "NetworkAccessPointTypeCode": "2",
            },
        )
        subject = self.attributes(alert, "ParticipantObjectIdentification")
        self.assertEqual(subject["ParticipantObjectID"], "127.0.0.1")
        detail = self.attributes(alert, "ParticipantObjectIdentification/ParticipantObjectDetail")
        self.assertEqual(detail["type"], "Alert Description")
        self.assertIn("no entry in callers", base64.b64decode(detail["value"]).decode())

    def test_nobody(self) -> None:
        """Where nobody takes the datagrams images are stored all the same, and the log says what is lost."""
        server = Server(self, "--audit", f"udp://127.0.0.1:{free_port()}")
        for number in range(10):
            with RawSCU(server.address) as scu:
                scu.associate()
                self.assertEqual(scu.store(f"1.2.{number}", instance(f"1.2.{number}")), 0)
                scu.release()
        server.wait_for("audit: messages to udp://.* are lost: nobody listens there")
        self.assertEqual(server.stop()["stored"], 10)

    def test_user(self) -> None:
        """A wrong passcode is a login that failed, a right one a login; neither has the passcode in it."""
        receiver = Receiver(self)
        passwords = temporary_directory(self) / "passwd"
        passwords.write_text("alice:wonderland\n")
        server = Server(self, "--audit", receiver.url("udp"), "--auth", f"file:{passwords}")
        run("storescu", "-usr", "alice", "-pwd", "queen-of-hearts", *server.address, CT)
        failed = receiver.message("110114")
        self.assertEqual(self.attributes(failed, "EventIdentification")["EventOutcomeIndicator"], "4")
        self.assertEqual(failed.xml.findall("ActiveParticipant")[0].attrib["UserID"], "alice")
        run("storescu", "-usr", "alice", "-pwd", "wonderland", *server.address, CT)
        login = receiver.message("110114", 2)
        self.assertEqual(self.attributes(login, "EventIdentification")["EventOutcomeIndicator"], "0")
        self.assertEqual(login.code("EventIdentification/EventTypeCode"), "110122")
        stored = receiver.message("110104")
        self.assertEqual(stored.xml.findall("ActiveParticipant")[2].attrib["UserID"], "alice")
        text = "".join(message.text for message in receiver.messages)
        self.assertNotIn("wonderland", text)
        self.assertNotIn("queen", text)

    def test_tls(self) -> None:
        """Who shows no certificate is a security alert; the receiver of audit messages is judged by its own."""
        receiver = Receiver(self)
        certificate, key = receiver.authority.issue("127.0.0.1")
        server = Server(
            self,
            *("--audit", receiver.url("tls"), "--audit-ca", receiver.authority.file),
            *("--audit-certificate", certificate, "--audit-key", key),
            *("--listen", "tls:0:interface=127.0.0.1", "--tls-certificate", certificate),
            *("--tls-key", key, "--tls-ca", receiver.authority.file),
        )
        port = int(server.wait_for(r"listening on 127\.0\.0\.1 port (\d+), TLS")[1])
        run("echoscu", "+tla", "-ic", "127.0.0.1", port)
        alert = receiver.message("110113")
        description = alert.xml.find("EventIdentification/EventOutcomeDescription")
        assert description is not None and description.text is not None
        self.assertRegex(description.text, "^TLS: ")
        stranger = run_twistd(
            "--audit", receiver.url("tls"), "--audit-ca", self.mktemp(), cwd=pathlib.Path("/")
        )
        self.assertEqual(stranger.returncode, 1)
        self.assertRegex(
            stranger.stderr, r"^storescp: --audit-ca: expected a readable file, got '.*': No such file"
        )
