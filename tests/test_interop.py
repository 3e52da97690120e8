"""Real senders, feature by feature: what docs/interop.rst has a table of, which is made from what stands here.

``python -m tests.test_interop`` renews that table. Each sender has one server and, for every feature, a cell: a method
that shows it, or the reason why there is nothing to show.
"""

from __future__ import annotations

import json
import pathlib
import re
import ssl
import sys
from collections.abc import Sequence
from typing import ClassVar, Final, TypeAlias

import pydicom
from pydicom.uid import UID
from pynetdicom import AE
from pynetdicom.association import Association
from pynetdicom.pdu_primitives import (
    AsynchronousOperationsWindowNegotiation,
    SCP_SCU_RoleSelectionNegotiation,
    SOPClassCommonExtendedNegotiation,
    SOPClassExtendedNegotiation,
    UserIdentityNegotiation,
)
from twisted.trial.unittest import SynchronousTestCase

from storescp.extended_negotiation import ExtendedNegotiation, OperationsWindow, RoleSelection
from storescp.pdu import AAbort, AReleaseRQ
from storescp.sop_classes import STORAGE_SOP_CLASSES
from tests import orthanc
from tests.pki import Authority
from tests.pynetdicom_scu import associate
from tests.raw_scu import CT, EXPLICIT
from tests.recorder import Recorder
from tests.server import ROOT, Server, data_set_of, free_port, run, temporary_directory
from tests.test_commitment_end_to_end import Modality
from tests.test_end_to_end import DATA, dcmtk_profile

DOCUMENT = ROOT / "docs" / "interop.rst"

FEATURES: Final = {
    "syntaxes": "several transfer syntaxes",
    "contexts": "many contexts",
    "window": "asynchronous window proposed",
    "role": "role selection",
    "extended": "extended negotiation",
    "user": "user identity",
    "tls": "TLS",
    "commitment": "storage commitment",
    "large": "an image of 8 MB",
    "released": "release",
    "aborted": "abort",
}

#: Files in as many transfer syntaxes as all senders can send.
FILES = (
    *("CT_small.dcm", "SC_rgb_jpeg_dcmd.dcm", "ExplVR_BigEnd.dcm", "JPEG2000.dcm", "SC_rgb_rle.dcm"),
    *("examples_jpeg2k.dcm", "MR_small_jpeg_ls_lossless.dcm"),
)

LARGE = "1.2.3.8"
CT_UID = str(pydicom.dcmread(DATA / "CT_small.dcm").SOPInstanceUID)
EXTENDED = ExtendedNegotiation(CT, bytes((3, 0, 0, 0, 2)))
ANSWERED = ExtendedNegotiation(CT, bytes((2, 0, 3, 0, 0)))


def meta(path: pathlib.Path) -> tuple[str, str]:
    """SOP class and transfer syntax of a file."""
    head = pydicom.filereader.read_file_meta_info(path)
    return str(head.MediaStorageSOPClassUID), str(head.TransferSyntaxUID)


class Cells:
    """What the sender ``name`` can do: a cell raises where it does not. ``cannot`` has what there is no cell for."""

    name: ClassVar[str]
    cannot: ClassVar[dict[str, str]] = {}

    def __init__(self, case: SynchronousTestCase) -> None:
        self.case = case
        self.home = temporary_directory(case)
        self.authority = Authority(self.home)
        certificate, key = self.authority.issue("localhost")
        (self.home / "users").write_text("alice:secret\n")
        self.report_port = free_port()
        (self.home / "storescp.yaml").write_text(
            f"callers: {{ORTHANC: {{commitment: '127.0.0.1:{self.report_port}'}}}}"
        )
        self.server = Server(
            case,
            *("--listen", "tls:0:interface=127.0.0.1", "--tls-certificate", certificate, "--tls-key", key),
            *("--tls-client-cert", "request", "--tls-ca", self.authority.file),
            *("--auth", f"file:{self.home / 'users'}", "--duplicate", "replace"),
            *("--config", self.home / "storescp.yaml"),
        )
        self.tls_port = int(self.server.wait_for(r"port (\d+), TLS")[1])
        self.recorder = Recorder(self.server.address)
        case.addCleanup(self.recorder.close)
        self.port = str(self.recorder.port)

    def store(self, *paths: pathlib.Path) -> object:
        """Have the sender send these files, and release the association."""
        raise NotImplementedError

    # -- cells of those that need nothing but that --

    def syntaxes(self) -> None:
        files = self.files()
        self.store(*files)
        self.has(*files)

    def contexts(self) -> None:
        files = [*self.files(), *map(DATA.joinpath, ("rtplan.dcm", "liver_1frame.dcm", "MR_small_RLE.dcm"))]
        self.store(*files)
        needed = len({meta(path) for path in files})
        self.many(at_least=needed, accepted=needed)

    def large(self) -> None:
        self.store(path := self.large_file())
        self.is_same(path)

    def released(self) -> None:
        self.store(DATA / "CT_small.dcm")
        self.is_released()

    # -- what cells look at --

    def is_released(self) -> None:
        """The latest association was released by the sender, and so the server saw it."""
        self.case.assertIn(AReleaseRQ(), self.recorder.whole())
        self.server.wait_for("association released")

    def is_windowed(self) -> None:
        """A window of 8 operations was proposed, and granted."""
        for user_information in (
            self.recorder.request().user_information,
            self.recorder.acceptance().user_information,
        ):
            self.case.assertIn(OperationsWindow(8, 1).item, user_information.other)

    def is_aborted(self) -> None:
        """The latest association was aborted by the sender, and so the server saw it."""
        self.case.assertIsInstance(self.recorder.whole()[-1], AAbort)
        self.server.wait_for(r"association aborted: .*: A-ABORT received \(source 0, reason \d\)")

    def has(self, *paths: pathlib.Path) -> None:
        """All of these files are stored, in their transfer syntaxes."""
        stored = {
            pydicom.dcmread(path, stop_before_pixels=True).SOPInstanceUID: path
            for path in self.server.files().values()
        }
        for path in paths:
            uid = pydicom.dcmread(path, stop_before_pixels=True).SOPInstanceUID
            self.case.assertIn(uid, stored, path)
            self.case.assertEqual(meta(stored[uid]), meta(path), path)

    def many(self, *, at_least: int, accepted: int) -> None:
        """The latest association had so many contexts, and this number was accepted at least."""
        self.case.assertGreaterEqual(len(self.recorder.request().presentation_contexts), at_least)
        results = [context.result for context in self.recorder.acceptance().presentation_contexts]
        self.case.assertGreaterEqual(results.count(0), accepted)

    def roles(self, *expected: RoleSelection) -> None:
        """Role selection was proposed, and answered like this."""
        proposed = self.recorder.request().user_information.other
        self.case.assertIn(RoleSelection.ITEM_TYPE, [kind for kind, _ in proposed])
        items = self.recorder.acceptance().user_information.other
        self.case.assertEqual(
            [item for item in items if item[0] == RoleSelection.ITEM_TYPE], [role.item for role in expected]
        )

    def is_extended(self) -> None:
        """Extended negotiation of CT was proposed, and answered."""
        self.case.assertIn(EXTENDED.item, self.recorder.request().user_information.other)
        self.case.assertIn(ANSWERED.item, self.recorder.acceptance().user_information.other)

    def is_committed(self) -> None:
        """A request for one instance was reported on, and the sender has confirmed the report."""
        self.server.wait_for(r"reported to \S+ \S.*: 1 of 1 instance committed")

    def files(self) -> list[pathlib.Path]:
        """FILES, without what the sender cannot send."""
        return [DATA / name for name in FILES]

    def large_file(self) -> pathlib.Path:
        """A CT of 8 MB."""
        image = pydicom.dcmread(DATA / "CT_small.dcm")
        del image.DataSetTrailingPadding  # which DCMTK does not send
        image.Rows = image.Columns = 2048
        image.PixelData = bytes(range(256)) * 32768
        image.SOPInstanceUID = image.file_meta.MediaStorageSOPInstanceUID = UID(LARGE)
        image.save_as(path := self.home / "large.dcm")
        return path

    def stored_large_file(self) -> pathlib.Path:
        """What the server made of it."""
        return next(path for name, path in self.server.files().items() if name.endswith(f"/{LARGE}.dcm"))

    def is_same(self, path: pathlib.Path) -> None:
        """The file is stored byte for byte."""
        self.case.assertTrue(data_set_of(self.stored_large_file()) == data_set_of(path))


class DCMTK(Cells):
    """storescu."""

    name = "DCMTK"
    cannot: ClassVar = {"window": "has no option for it", "commitment": "has no user of it"}

    def store(self, *arguments: object, port: object = None) -> str:
        """Run storescu, which has to succeed."""
        done = run("storescu", *arguments[:-1], "127.0.0.1", port or self.port, *_list(arguments[-1]))
        self.case.assertEqual(done.returncode, 0, done.stdout)
        return done.stdout

    def profile(self, contexts: set[tuple[str, str]], more: str = "") -> pathlib.Path:
        """A file with a profile named Test."""
        path = self.home / "profile"
        path.write_text(dcmtk_profile(contexts) + more)
        return path

    def syntaxes(self) -> None:
        files = self.files()
        self.store("-xf", self.profile({meta(path) for path in files}), "Test", files)
        self.has(*files)

    def contexts(self) -> None:
        self.store(DATA / "CT_small.dcm")
        self.many(at_least=128, accepted=128)

    def role(self) -> None:
        more = f"SCPSCURoleSelection = R\n[[SCPSCURoleSelection]]\n[R]\nRole1 = {CT}\\Both\n"
        self.store("-xf", self.profile({(CT, EXPLICIT)}, more), "Test", DATA / "CT_small.dcm")
        self.roles(RoleSelection(CT, scu=True, scp=False))

    def extended(self) -> None:
        item = f"{CT}\\{EXTENDED.information.hex()}"
        more = f"ExtendedNegotiation = E\n[[ExtendedNegotiation]]\n[E]\nExtendedNegotiation1 = {item}\n"
        self.store("-xf", self.profile({(CT, EXPLICIT)}, more), "Test", DATA / "CT_small.dcm")
        self.is_extended()

    def user(self) -> None:
        self.store("-usr", "alice", "-pwd", "secret", "-rsp", DATA / "CT_small.dcm")
        self.server.wait_for("association accepted: .* user 'alice'")
        self.case.assertNotEqual(
            run(
                "storescu", "-usr", "alice", "-pwd", "x", "127.0.0.1", self.port, DATA / "CT_small.dcm"
            ).returncode,
            0,
        )

    def tls(self) -> None:
        self.store("+tla", "+cf", self.authority.file, DATA / "CT_small.dcm", port=self.tls_port)
        self.server.wait_for("speaks TLSv1.[23]")

    def aborted(self) -> None:
        self.store("--abort", DATA / "CT_small.dcm")
        self.is_aborted()


Item: TypeAlias = (
    AsynchronousOperationsWindowNegotiation
    | SCP_SCU_RoleSelectionNegotiation
    | SOPClassCommonExtendedNegotiation
    | SOPClassExtendedNegotiation
    | UserIdentityNegotiation
)


class Pynetdicom(Cells):
    """A program on pynetdicom."""

    name = "pynetdicom"

    def associate(
        self,
        contexts: set[tuple[str, str]],
        items: Sequence[Item] = (),
        *,
        port: int = 0,
        tls: ssl.SSLContext | None = None,
    ) -> Association:
        """An association with these contexts and items of the user information."""
        entity = AE("PYNETDICOM")
        for sop_class, syntax in sorted(contexts):
            entity.add_requested_context(sop_class, syntax)
        association = associate(
            entity,
            port or int(self.port),
            ext_neg=list(items),
            tls_args=(tls, "127.0.0.1") if tls is not None else None,
        )
        self.case.assertTrue(association.is_established)
        return association

    def store(
        self,
        *paths: pathlib.Path,
        items: Sequence[Item] = (),
        port: int = 0,
        tls: ssl.SSLContext | None = None,
    ) -> Association:
        """Send these files, and release."""
        association = self.associate({meta(path) for path in paths}, items, port=port, tls=tls)
        for path in paths:
            self.case.assertEqual(association.send_c_store(path).Status, 0, path)
        association.release()
        return association

    def contexts(self) -> None:
        self.associate({(uid, EXPLICIT) for uid in sorted(STORAGE_SOP_CLASSES)[:128]}).release()
        self.many(at_least=128, accepted=128)

    def window(self) -> None:
        window = AsynchronousOperationsWindowNegotiation()
        window.maximum_number_operations_invoked, window.maximum_number_operations_performed = 8, 1
        self.store(DATA / "CT_small.dcm", items=[window])
        self.is_windowed()

    def role(self) -> None:
        role = SCP_SCU_RoleSelectionNegotiation()
        role.sop_class_uid, role.scu_role, role.scp_role = UID(CT), True, True
        self.store(DATA / "CT_small.dcm", items=[role])
        self.roles(RoleSelection(CT, scu=True, scp=False))

    def extended(self) -> None:
        said = SOPClassCommonExtendedNegotiation()
        said.sop_class_uid, said.service_class_uid = UID(CT), UID("1.2.840.10008.4.2")
        extended = SOPClassExtendedNegotiation()
        extended.sop_class_uid = UID(CT)
        extended.service_class_application_information = EXTENDED.information
        self.store(DATA / "CT_small.dcm", items=[said, extended])
        self.is_extended()

    def user(self) -> None:
        user = UserIdentityNegotiation()
        user.user_identity_type, user.positive_response_requested = 2, True
        user.primary_field, user.secondary_field = b"alice", b"secret"
        association = self.store(DATA / "CT_small.dcm", items=[user])
        self.case.assertIsNotNone(association.acceptor.user_identity)

    def tls(self) -> None:
        context = ssl.create_default_context(cafile=self.authority.file)
        self.store(DATA / "CT_small.dcm", port=self.tls_port, tls=context)
        self.server.wait_for("speaks TLSv1.[23]")

    def commitment(self) -> None:
        self.store(DATA / "CT_small.dcm")
        modality = Modality(self.case, "PYNETDICOM")
        association = modality.associate(self.server, role=(True, False))
        self.case.assertEqual(modality.ask(association, "1.2.3", [(CT, CT_UID)]), 0)
        self.case.assertEqual(modality.reported(), (1, "1.2.3", [CT_UID], []))
        self.is_committed()
        association.release()

    def aborted(self) -> None:
        self.associate({(CT, EXPLICIT)}).abort()
        self.is_aborted()


class GDCM(Cells):
    """gdcmscu."""

    name = "GDCM"
    cannot: ClassVar = {
        "window": "has no option for it",
        "role": "has no option for it",
        "extended": "has no option for it",
        "user": "has no option for it",
        "tls": "has no TLS",
        "commitment": "has no user of it",
        "aborted": "never aborts",
    }

    def store(self, *paths: pathlib.Path) -> None:
        """Run gdcmscu, whose exit code says nothing: after the release it dies, whoever it talks to."""
        run("gdcmscu", "--store", "127.0.0.1", self.port, *paths)
        self.is_released()


class Orthanc(Cells):
    """A server of its own, which sends what it has."""

    name = "Orthanc"
    cannot: ClassVar = {
        "window": "has no option for it",
        "role": "has no option for it",
        "extended": "has no option for it",
        "user": "has no option for it",
        "aborted": "has no command for it",
    }

    def __init__(self, case: SynchronousTestCase) -> None:
        super().__init__(case)
        certificate, key = self.authority.issue("orthanc")
        modality = {"AET": "STORESCP", "Host": "127.0.0.1", "Port": self.recorder.port}
        self._orthanc = orthanc.Orthanc(
            case,
            {"clear": modality, "tls": {**modality, "Port": self.tls_port, "UseDicomTls": True}},
            DicomAet="ORTHANC",
            DicomPort=self.report_port,
            DicomTlsCertificate=str(certificate),
            DicomTlsPrivateKey=str(key),
            DicomTlsTrustedCertificates=str(self.authority.file),
        )

    def store(self, *paths: pathlib.Path, modality: str = "clear") -> None:
        """Give it these files, and have it send them."""
        self._orthanc.store(modality, *paths)

    def tls(self) -> None:
        self.store(DATA / "CT_small.dcm", modality="tls")
        self.server.wait_for("certificate 'CN=orthanc,O=Hospital'")

    def commitment(self) -> None:
        self.store(DATA / "CT_small.dcm")
        transaction = self._orthanc.ask("clear", (CT, CT_UID))
        self.is_committed()
        self.case.assertEqual(self._orthanc.rest(f"storage-commitment/{transaction}")["Status"], "Success")


class DcmjsDimse(Cells):
    """tests/dcmjs_send.js."""

    name = "dcmjs-dimse"
    cannot: ClassVar = {"extended": "has no option for it"}

    def send(self, *, port: int = 0, **given: object) -> dict[str, list[object]]:
        """Run the sender; what it was told."""
        modules = str(ROOT / ".node" / "node_modules")
        given |= {"host": "127.0.0.1", "port": port or int(self.port)}
        done = run("node", ROOT / "tests" / "dcmjs_send.js", json.dumps(given), NODE_PATH=modules)
        self.case.assertEqual(done.returncode, 0, done.stdout)
        said: dict[str, list[object]] = json.loads(done.stdout.splitlines()[-1])
        return said

    def store(self, *paths: pathlib.Path, port: int = 0, **given: object) -> None:
        """Send these files; all of them are stored."""
        given["files"] = [str(path) for path in paths]
        said = self.send(port=port, **given)
        events = ["associationAccepted", "associationReleased", "closed"]
        self.case.assertEqual(said, {"statuses": [0] * len(paths), "events": events, "reports": []})

    def files(self) -> list[pathlib.Path]:
        return [path for path in super().files() if "BigEnd" not in path.name]  # whose date it refuses

    def syntaxes(self) -> None:
        files = self.files()
        self.store(*files)
        for path in files:  # implicit and explicit VR are all one to it: it re-encodes what it sends
            uid = pydicom.dcmread(path, stop_before_pixels=True).SOPInstanceUID
            self.case.assertTrue(any(name.endswith(f"/{uid}.dcm") for name in self.server.files()), path)
        self.case.assertGreaterEqual(len({meta(path)[1] for path in self.server.files().values()}), 5)

    def contexts(self) -> None:
        self.send(contexts=sorted(STORAGE_SOP_CLASSES)[:127])
        self.many(at_least=128, accepted=128)

    def window(self) -> None:
        self.store(
            DATA / "CT_small.dcm", options={"asyncOps": {"maxAsyncOpsInvoked": 8, "maxAsyncOpsPerformed": 1}}
        )
        self.is_windowed()

    def role(self) -> None:
        """It proposes roles with C-GET alone, and then to be the SCP: what follows is that there is nothing for it."""
        said = self.send(get=True)
        self.case.assertEqual(said["statuses"], [])
        self.roles()
        results = {context.result for context in self.recorder.acceptance().presentation_contexts}
        self.case.assertEqual(results, {1, 3})

    def user(self) -> None:
        user = {
            "type": 2,
            "positiveResponseRequested": True,
            "primaryField": "alice",
            "secondaryField": "secret",
        }
        self.store(DATA / "CT_small.dcm", options={"userIdentity": user})
        self.server.wait_for("association accepted: .* user 'alice'")

    def tls(self) -> None:
        self.store(DATA / "CT_small.dcm", port=self.tls_port, tls={"ca": str(self.authority.file)})
        self.server.wait_for("speaks TLSv1.[23]")

    def commitment(self) -> None:
        self.store(DATA / "CT_small.dcm")
        said = self.send(commit=[CT, CT_UID], options={"associationLingerTimeout": 60000})
        self.case.assertEqual(said["reports"], [1])
        self.is_committed()

    def large(self) -> None:
        self.store(path := self.large_file())
        pixels = [pydicom.dcmread(file).PixelData for file in (path, self.stored_large_file())]
        self.case.assertTrue(pixels[0] == pixels[1])

    def aborted(self) -> None:
        self.send(abort=True, files=[str(DATA / "CT_small.dcm")])
        self.is_aborted()


SENDERS: Final = (DCMTK, Pynetdicom, GDCM, Orthanc, DcmjsDimse)


def _list(paths: object) -> Sequence[object]:
    return paths if isinstance(paths, list) else [paths]


class InteropTests(SynchronousTestCase):
    """The cells of the table."""

    def check(self, sender: type[Cells]) -> None:
        """Every feature has a cell, and every cell holds."""
        cells = sender(self)
        for feature in FEATURES:
            if feature in sender.cannot:
                continue
            try:
                getattr(cells, feature)()
            except self.failureException as failure:
                self.fail(f"{sender.name}, {FEATURES[feature]}: {failure}\n{cells.server.output}")
        self.assertEqual(cells.server.litter(), [])

    def test_dcmtk(self) -> None:
        """storescu of DCMTK."""
        self.check(DCMTK)

    def test_pynetdicom(self) -> None:
        """pynetdicom, as a program of one's own would use it."""
        self.check(Pynetdicom)

    def test_gdcm(self) -> None:
        """gdcmscu."""
        self.check(GDCM)

    def test_orthanc(self) -> None:
        """Orthanc, told by its REST interface to send what it has."""
        self.check(Orthanc)

    def test_dcmjs_dimse(self) -> None:
        """A program on dcmjs-dimse, for Node.js."""
        self.check(DcmjsDimse)


def table() -> list[str]:
    """The table of the document."""
    rows = [["Feature", *(sender.name for sender in SENDERS)]]
    for feature, name in FEATURES.items():
        rows.append([name, *("--" if feature in sender.cannot else "yes" for sender in SENDERS)])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    rule = " ".join("=" * width for width in widths)
    lines = [" ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
    reasons = [
        f"* {sender.name}, {FEATURES[feature]}: {reason}."
        for sender in SENDERS
        for feature, reason in sender.cannot.items()
    ]
    return [
        rule,
        lines[0],
        rule,
        *lines[1:],
        rule,
        "",
        "There is nothing to try where a sender cannot do it:",
        "",
        *reasons,
    ]


def renewed(text: str) -> str:
    """The document with its table made anew."""
    made = "\n".join(table())
    text, count = re.subn(
        r"^\.\. generated\n(?:.*\n)*?\.\. end of generated\n",
        lambda _: f".. generated\n\n{made}\n\n.. end of generated\n",
        text,
        flags=re.M,
    )
    assert count == 1
    return text


class DocumentTests(SynchronousTestCase):
    """docs/interop.rst."""

    def test_table(self) -> None:
        """Its table has the cells that are tested, and every sender answers for every feature, one way or the other."""
        for sender in SENDERS:
            self.assertLessEqual(set(sender.cannot), set(FEATURES))
            for feature in FEATURES:
                self.assertNotEqual(
                    hasattr(sender, feature), feature in sender.cannot, (sender.name, feature)
                )
        text = DOCUMENT.read_text()
        self.assertEqual(renewed(text), text, "python -m tests.test_interop renews it")


if __name__ == "__main__":
    DOCUMENT.write_text(renewed(DOCUMENT.read_text()))
    sys.exit(0)
