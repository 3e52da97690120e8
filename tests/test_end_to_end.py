"""The real twistd process and real senders: DCMTK, GDCM and pynetdicom, with all of pydicom's test data."""

from __future__ import annotations

import contextlib
import datetime
import io
import pathlib
import shutil
import sqlite3
import subprocess
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import pydicom
import pynetdicom
from pydicom.dataset import Dataset
from twisted.trial.unittest import SynchronousTestCase

from storescp.part10 import FileMeta
from storescp.pdu import AAbort, AAssociateAC, AAssociateRJ
from tests.pynetdicom_scu import associate
from tests.raw_scu import CT, EXPLICIT, EXPLICIT_CONTEXT, MR, RawSCU, element, instance, p_data, store_command
from tests.raw_scu import store as raw_store
from tests.server import (
    DEADLINE,
    Server,
    data_set_of,
    data_set_offset,
    environment,
    file_meta_elements,
    free_port,
    run,
    temporary_directory,
)

# Not by pydicom.data's functions, which download what is not there.
CHARACTER_SETS = pathlib.Path(pydicom.__file__).parent / "data" / "charset_files"
DATA = CHARACTER_SETS.parent / "test_files"

#: Readable, but without the UIDs that an instance needs. PS3.4 §B.2.3: such a data set cannot be understood.
NO_INSTANCES = {
    "DICOMDIR": "a directory",
    "DICOMDIR-bigEnd": "a directory",
    "DICOMDIR-empty.dcm": "a directory",
    "DICOMDIR-implicit": "a directory",
    "DICOMDIR-nooffset": "a directory",
    "DICOMDIR-nopatient": "a directory",
    "DICOMDIR-reordered": "a directory",
    "JPEGLSNearLossless_08.dcm": "no Study Instance UID",
    "JPEGLSNearLossless_16.dcm": "no Study Instance UID",
    "SC_rgb_jls_lossy_line.dcm": "no Study Instance UID",
    "SC_rgb_jls_lossy_sample.dcm": "no Study Instance UID",
    "UN_sequence.dcm": "no UID at all",
    "chrSQEncoding.dcm": "no UID at all",
    "chrSQEncoding1.dcm": "no UID at all",
    "empty_charset_LEI.dcm": "no UID at all",
    "meta_missing_tsyntax.dcm": "no UID at all",
    "nested_priv_SQ.dcm": "no UID at all",
    "no_meta_group_length.dcm": "no UID at all",
    "priv_SQ.dcm": "no UID at all",
}


class Sample(NamedTuple):
    """A readable file of pydicom's test data; ``data_set`` is encoded as it stands in the file."""

    path: pathlib.Path
    transfer_syntax_uid: str
    sop_class_uid: str
    study_instance_uid: str
    series_instance_uid: str
    sop_instance_uid: str
    data_set: bytes

    @property
    def stored_path(self) -> str:
        """Where the hierarchical scheme puts it."""
        return f"{self.study_instance_uid}/{self.series_instance_uid}/{self.sop_instance_uid}.dcm"


def samples() -> list[Sample]:
    """Every readable file of pydicom's test data."""
    found = []
    for path in sorted([*CHARACTER_SETS.rglob("*"), *DATA.rglob("*")]):
        if path.is_file():
            content = path.read_bytes()
            with contextlib.suppress(pydicom.errors.InvalidDicomError), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                data_set = pydicom.dcmread(io.BytesIO(content), stop_before_pixels=True)
                meta = data_set.file_meta
                found.append(
                    Sample(
                        path,
                        str(meta.get("TransferSyntaxUID", EXPLICIT)),
                        str(data_set.get("SOPClassUID") or meta.get("MediaStorageSOPClassUID") or CT),
                        str(data_set.get("StudyInstanceUID", "")),
                        str(data_set.get("SeriesInstanceUID", "")),
                        str(data_set.get("SOPInstanceUID") or ""),
                        content[data_set_offset(content) :],
                    )
                )
    return found


def rounds(instances: Sequence[Sample]) -> Iterator[list[Sample]]:
    """Split them so that none has a UID in common with another one of the same round."""
    left = list(instances)
    while left:
        chosen: dict[str, Sample] = {}
        for sample in left:
            chosen.setdefault(sample.sop_instance_uid, sample)
        yield list(chosen.values())
        left = [sample for sample in left if chosen[sample.sop_instance_uid] is not sample]


def read(content: bytes) -> Dataset:
    """What pydicom reads, all of it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data_set = pydicom.dcmread(io.BytesIO(content), force=True)
        data_set.walk(lambda parent, item: None)  # decodes every element, in sequences too
    return data_set


class Pynetdicom:
    """An association of pynetdicom's that sends encoded data sets as they are."""

    def __init__(
        self,
        case: SynchronousTestCase,
        port: int,
        contexts: set[tuple[str, str]],
        *,
        calling: str = "PYNETDICOM",
    ) -> None:
        # It sends the bytes of a file then, and does not decode them first.
        case.patch(pynetdicom._config, "STORE_SEND_CHUNKED_DATASET", True)
        self._file = temporary_directory(case) / "to be sent"
        entity = pynetdicom.AE(ae_title=calling)
        for sop_class, transfer_syntax in sorted(contexts):
            entity.add_requested_context(sop_class, transfer_syntax)
        self.association = associate(entity, port)
        case.addCleanup(self._end)
        assert self.association.is_established

    def store(self, sample: Sample) -> int:
        """Send one; its status."""
        # The UIDs of the request come from the File Meta, where some of these files have others.
        meta = FileMeta(sample.sop_class_uid, sample.transfer_syntax_uid, "ANY", "ANY")
        self._file.write_bytes(meta.encode(sample.sop_instance_uid or "1.2.3") + sample.data_set)
        response = self.association.send_c_store(self._file)
        status: int = response.Status
        return status

    def _end(self) -> None:
        if self.association.is_established:
            self.association.abort()


class AllDataTests(SynchronousTestCase):
    """pydicom's test data from three senders."""

    def check(self, server: Server, sample: Sample, *, calling: str) -> None:
        """What was stored for *sample* is its data set, byte for byte, under the right File Meta."""
        stored = (server.storage / sample.stored_path).read_bytes()
        start = data_set_offset(stored)
        self.assertTrue(stored[start:] == sample.data_set, f"{sample.path.name} has other bytes now")
        meta = {number: value.decode("latin-1") for _, number, value in file_meta_elements(stored)}
        self.assertEqual(
            {number: meta[number] for number in (0x02, 0x03, 0x10, 0x16, 0x17)},
            {
                0x02: sample.sop_class_uid,
                0x03: sample.sop_instance_uid,
                0x10: sample.transfer_syntax_uid,
                0x16: calling,
                0x17: calling,
            },
        )
        # Equal bytes do not read alike when the transfer syntax is wrong; truncated ones do not read at all.
        if "truncated" not in sample.path.name:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                self.assertEqual(read(stored), read(sample.path.read_bytes()))

    def test_pynetdicom(self) -> None:
        """Every readable file arrives byte-identical in its own transfer syntax; those without UIDs get C000H."""
        everything = samples()
        self.assertGreater(len(everything), 150)
        self.assertGreater(len({sample.transfer_syntax_uid for sample in everything}), 10)
        good = [sample for sample in everything if sample.path.name not in NO_INSTANCES]
        bad = [sample for sample in everything if sample.path.name in NO_INSTANCES]
        self.assertEqual({sample.path.name for sample in bad}, set(NO_INSTANCES))
        server = Server(self, "--duplicate", "replace")
        contexts = {(sample.sop_class_uid, sample.transfer_syntax_uid) for sample in everything}
        contexts = {pair for pair in contexts if pair[0] != "1.2.840.10008.1.3.10"}  # Media Storage Directory
        peer = Pynetdicom(self, server.port, contexts)
        for some in rounds(good):
            self.assertEqual([peer.store(sample) for sample in some], [0] * len(some))
            for sample in some:
                self.check(server, sample, calling="PYNETDICOM")
        refused = [sample for sample in bad if "DICOMDIR" not in sample.path.name]
        self.assertEqual([peer.store(sample) for sample in refused], [0xC000] * len(refused))
        peer.association.release()

        files = server.files()
        self.assertEqual(set(files), {sample.stored_path for sample in good})
        self.assertEqual(server.litter(), [])
        rows = server.rows("SELECT path, size FROM instances")
        self.assertEqual(sorted(rows), sorted((name, path.stat().st_size) for name, path in files.items()))
        counts = server.rows("SELECT sum(instances), sum(bytes) FROM series")
        self.assertEqual(counts, [(len(files), sum(path.stat().st_size for path in files.values()))])
        statistics = server.stop()
        self.assertEqual((statistics["stored"], statistics["failed"]), (len(good), len(refused)))
        self.assertEqual(statistics["bytes_stored"], sum(len(sample.data_set) for sample in good))

    def compare(self, program: str, *options: str, leave_out: Mapping[str, str]) -> None:
        """Have *program* send the test data; where it re-encodes a file, what DCMTK's server gets is the judge."""
        good = [sample for sample in samples() if sample.path.name not in {**NO_INSTANCES, **leave_out}]
        home = temporary_directory(self)
        profile = home / "profile"
        profile.write_text(dcmtk_profile({(s.sop_class_uid, s.transfer_syntax_uid) for s in good}))
        arguments = [str(profile) if option == "PROFILE" else option for option in options]
        server = Server(self, "--duplicate", "replace")
        judged = 0
        for number, some in enumerate(rounds(good)):
            said = run(program, *arguments, *server.address, *(sample.path for sample in some))
            server.wait_for("association released", count=number + 1)
            files = server.files()
            self.assertEqual({sample.stored_path for sample in some} - set(files), set(), said.stdout)
            ours = {sample: files[sample.stored_path].read_bytes() for sample in some}
            others = [s for s in some if ours[s][data_set_offset(ours[s]) :] != s.data_set]
            judged += len(others)
            for sample in some:
                self.assertEqual(transfer_syntax_of(ours[sample]), sample.transfer_syntax_uid)
            if not others:
                continue
            theirs = home / str(number)
            theirs.mkdir()
            with dcmtk_storescp(self, theirs) as port:
                # Two sides with Nagle's algorithm on wait 40 ms for each other at every image.
                run(program, *arguments, "127.0.0.1", port, *(s.path for s in others), TCP_NODELAY="1")
            judge = {data_set_uid(path): path.read_bytes() for path in theirs.iterdir()}
            for sample in others:
                their = judge[sample.sop_instance_uid]
                self.assertTrue(
                    ours[sample][data_set_offset(ours[sample]) :] == their[data_set_offset(their) :],
                    f"{sample.path.name} was not stored as sent",
                )
        self.assertLess(judged, len(good) // 2)
        self.assertEqual(server.litter(), [])
        self.assertEqual(server.stop()["stored"], len(good))

    def test_gdcm(self) -> None:
        """All that gdcmscu sends arrives byte for byte as it sends it: as at DCMTK's storescp with ``+B``.

        It writes some encapsulated and truncated pixel data anew. After the release it aborts ("ProtocolStream as
        nullptr is invalid"), at whatever server, so that its exit code says nothing.
        """
        self.compare("gdcmscu", "--store", leave_out=NOT_FROM_GDCM)

    def test_dcmtk(self) -> None:
        """All that storescu sends arrives byte for byte as it sends it: as at DCMTK's storescp with ``+B``.

        It leaves out trailing padding and the lengths of groups.
        """
        self.compare("storescu", "-nh", "-xf", "PROFILE", "Test", leave_out=NOT_FROM_DCMTK)


#: What storescu does not send, and why.
NOT_FROM_DCMTK = {
    "SC_rgb_jpeg.dcm": "implicit VR under an explicit transfer syntax: DCMTK cannot read it",
    "MR_truncated.dcm": "DCMTK cannot read it",
    "rtplan_truncated.dcm": "DCMTK cannot read it",
    "rtdose_rle.dcm": "DCMTK cannot read it",
    "rtdose_rle_1frame.dcm": "DCMTK cannot read it",
}

#: The same for gdcmscu.
NOT_FROM_GDCM = {
    "image_dfl.dcm": "sent with an odd length, as it is in the file: DCMTK's storescp aborts",
    "rtplan_truncated.dcm": "gdcmscu drops the connection at it",
}


def transfer_syntax_of(content: bytes) -> str:
    """The Transfer Syntax UID in a file's File Meta Information."""
    return next(value.decode() for _, number, value in file_meta_elements(content) if number == 0x10)


def data_set_uid(path: pathlib.Path) -> str:
    """The SOP Instance UID of a file."""
    return str(read(path.read_bytes()).SOPInstanceUID)


def dcmtk_profile(contexts: set[tuple[str, str]]) -> str:
    """A configuration file that makes storescu propose these pairs (SOP class, transfer syntax)."""
    syntaxes = sorted({transfer_syntax for _, transfer_syntax in contexts})
    lines = ["[[TransferSyntaxes]]"]
    for number, syntax in enumerate(syntaxes):
        lines += [f"[S{number}]", f"TransferSyntax1 = {syntax}"]
    lines += ["[[PresentationContexts]]", "[All]"]
    for number, (sop_class, syntax) in enumerate(sorted(contexts), 1):
        lines.append(f"PresentationContext{number} = {sop_class}\\S{syntaxes.index(syntax)}")
    lines += ["[[Profiles]]", "[Test]", "PresentationContexts = All"]
    return "\n".join(lines) + "\n"


@contextlib.contextmanager
def dcmtk_storescp(case: SynchronousTestCase, directory: pathlib.Path, *options: str) -> Iterator[int]:
    """DCMTK's own server, which writes exactly what it receives, of whatever kind; gives its port."""
    port = free_port()
    program = shutil.which("storescp", path=environment()["PATH"])
    assert program is not None
    process = subprocess.Popen(
        [program, "+B", "+xa", "-pm", *options, "-od", directory, str(port)],
        env={**environment(), "TCP_NODELAY": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        # It says nothing when it is ready.
        deadline = time.monotonic() + DEADLINE
        while run("echoscu", "127.0.0.1", port).returncode:
            if process.poll() is not None or time.monotonic() > deadline:
                case.fail("DCMTK's storescp does not start")
        yield port
    finally:
        process.terminate()
        process.wait(DEADLINE)


def ct(uid: str = "1.2.3.4.5", *, study_date: str = "", pixels: bytes = b"\0\0") -> tuple[str, bytes]:
    """A small CT instance: its UID and its data set."""
    date = element(0x00080020, "DA", study_date) if study_date else b""
    data = instance(uid, pixels=pixels)
    sop_class_and_instance = data.index(element(0x00080060, "CS", "CT"))
    return uid, data[:sop_class_and_instance] + date + data[sop_class_and_instance:]


class VerificationTests(SynchronousTestCase):
    """C-ECHO."""

    def test_echo(self) -> None:
        """Three peers' C-ECHOs succeed, and several on one association."""
        server = Server(self)
        said = run("echoscu", "-v", "--repeat", 3, *server.address)
        self.assertEqual((said.returncode, said.stdout.count("(Success)")), (0, 3), said.stdout)
        run("gdcmscu", "--echo", *server.address)
        peer = Pynetdicom(self, server.port, {("1.2.840.10008.1.1", "1.2.840.10008.1.2")})
        self.assertEqual(peer.association.send_c_echo().Status, 0)
        peer.association.release()
        server.wait_for("association released", count=3)
        statistics = server.stop()
        self.assertEqual((statistics["associations"], statistics["messages"]), (3, 5))
        self.assertEqual((statistics["aborted"], statistics["stored"]), (0, 0))


class IndexTests(SynchronousTestCase):
    """What the index knows of what was received."""

    def test_attributes(self) -> None:
        """A CT slice from storescu: patient, study, series and instance have their attributes and counts."""
        server = Server(self)
        before = int(time.time())
        said = run("storescu", "-aet", "SCANNER7", *server.address, DATA / "CT_small.dcm")
        self.assertEqual(said.returncode, 0, said.stdout)
        ((name, path),) = server.files().items()
        expected = pydicom.dcmread(DATA / "CT_small.dcm")
        patient = server.rows(
            "SELECT patient_id, patient_name, patient_birth_date, patient_sex FROM patients"
        )
        self.assertEqual(patient, [("1CT1", "CompressedSamples^CT1", None, "O")])
        study = server.rows(
            "SELECT study_instance_uid, study_date, study_time, study_id, accession_number, study_description"
            " FROM studies"
        )
        self.assertEqual(
            study, [(expected.StudyInstanceUID, "20040119", "072730", "1CT1", None, "e+1")], expected
        )
        series = server.rows(
            "SELECT series_instance_uid, series_number, modality, station_name, instances, bytes FROM series"
        )
        self.assertEqual(
            series, [(expected.SeriesInstanceUID, 1, "CT", "CT01_OC0", 1, path.stat().st_size)], expected
        )
        ((received_at, *row),) = server.rows(
            "SELECT received_at, sop_instance_uid, sop_class_uid, transfer_syntax_uid, instance_number,"
            ' "rows", "columns", size, path, calling_ae_title FROM instances'
        )
        self.assertEqual(
            row,
            [expected.SOPInstanceUID, CT, EXPLICIT, 1, 128, 128, path.stat().st_size, name, "SCANNER7"],
        )
        assert isinstance(received_at, float)
        self.assertTrue(before <= received_at <= time.time())

    def test_names(self) -> None:
        """Patients' names are in the index as pydicom reads them, whatever the character set."""
        by_uid = {
            sample.sop_instance_uid: sample
            for sample in samples()
            if sample.path.parent.name == "charset_files" and sample.path.name not in NO_INSTANCES
        }
        server = Server(self)
        said = run("storescu", *server.address, *(sample.path for sample in by_uid.values()))
        self.assertEqual(said.returncode, 0, said.stdout)
        rows = server.rows(
            "SELECT sop_instance_uid, patient_name FROM instances JOIN series ON series.id = series"
            " JOIN studies ON studies.id = study JOIN patients ON patients.id = patient"
        )
        self.assertEqual({uid for uid, _ in rows}, set(by_uid))
        names = {by_uid[str(uid)].path.name: name for uid, name in rows}
        self.assertEqual(names["chrX1.dcm"], "Wang^XiaoDong=王^小東=")  # pydicom drops the empty last group
        self.assertGreater(len([name for name in names.values() if not str(name).isascii()]), 8)
        for name, text in names.items():
            expected = pydicom.dcmread(by_uid_path(by_uid, name)).PatientName
            self.assertEqual(str(text).rstrip("="), str(expected), name)

    def test_many_series(self) -> None:
        """Four senders at once: the counts of each series are those of its instances, and none is missing."""
        server = Server(self)
        uids = [f"1.2.{sender}.{number}" for sender in range(4) for number in range(50)]
        with ThreadPoolExecutor(4) as pool:
            results = pool.map(
                lambda sender: raw_store(
                    server.address,
                    [
                        (uid, instance(uid, study=f"1.{sender % 2}", series=f"1.{sender}.{n % 3}"))
                        for n, uid in enumerate(uids[sender * 50 : sender * 50 + 50])
                    ],
                ),
                range(4),
            )
            self.assertEqual([status for statuses in results for status in statuses], [0] * 200)
        self.assertEqual(server.rows("SELECT count(*), sum(size) FROM instances")[0][0], 200)
        self.assertEqual(
            server.rows("SELECT series, count(*), sum(size) FROM instances GROUP BY series ORDER BY series"),
            server.rows("SELECT id, instances, bytes FROM series ORDER BY id"),
        )
        self.assertEqual(server.rows("SELECT count(*) FROM studies"), [(2,)])
        self.assertEqual(server.rows("SELECT count(*) FROM series"), [(12,)])

    def test_without(self) -> None:
        """With --no-index instances are stored, and there is no database."""
        server = Server(self, "--no-index")
        self.assertEqual(run("storescu", *server.address, DATA / "CT_small.dcm").returncode, 0)
        self.assertEqual(len(server.files()), 1)
        self.assertEqual(list((server.storage / ".storescp").rglob("*.db*")), [])

    def test_elsewhere(self) -> None:
        """--index-db puts the database where it says; it stays over a new start, and so do duplicates."""
        database = temporary_directory(self) / "new" / "index.sqlite"
        storage = temporary_directory(self)
        for expected in (0, 0x0111):
            server = Server(self, "--index-db", database, "--storage-dir", storage)
            self.assertEqual(raw_store(server.address, [ct()]), [expected])
            server.stop()
        with contextlib.closing(sqlite3.connect(database)) as connection:
            self.assertEqual(connection.execute("SELECT count(*) FROM instances").fetchall(), [(1,)])


def by_uid_path(by_uid: Mapping[str, Sample], name: str) -> pathlib.Path:
    """The file of that name."""
    return next(sample.path for sample in by_uid.values() if sample.path.name == name)


class NamingTests(SynchronousTestCase):
    """--naming."""

    def names(self, naming: str) -> list[str]:
        server = Server(self, "--naming", naming)
        with_date, without = ct("1.2.1", study_date="20230405"), ct("1.2.2")
        self.assertEqual(raw_store(server.address, [with_date, without]), [0, 0])
        self.assertEqual(server.litter(), [])
        self.assertEqual(
            sorted(str(path) for (path,) in server.rows("SELECT path FROM instances")), list(server.files())
        )
        return list(server.files())

    def test_hierarchical(self) -> None:
        """Study/Series/SOP.dcm."""
        self.assertEqual(self.names("hierarchical"), ["1.2.3/1.2.3.4/1.2.1.dcm", "1.2.3/1.2.3.4/1.2.2.dcm"])

    def test_date(self) -> None:
        """YYYY/MM/DD/Study/SOP.dcm by Study Date; the day of receipt where there is none."""
        days = {datetime.date.today()}
        names = self.names("date")
        days.add(datetime.date.today())
        self.assertEqual(names[0], "2023/04/05/1.2.3/1.2.1.dcm")
        self.assertIn(names[1], {f"{day:%Y/%m/%d}/1.2.3/1.2.2.dcm" for day in days})

    def test_flat(self) -> None:
        """SOP.dcm."""
        self.assertEqual(self.names("flat"), ["1.2.1.dcm", "1.2.2.dcm"])


class DuplicateTests(SynchronousTestCase):
    """--duplicate, with storescu and then pynetdicom sending the same instance with other content."""

    def send_twice(self, policy: str) -> tuple[Server, int, bytes, bytes]:
        """Returns the second status, the first data set and the second."""
        server = Server(self, "--duplicate", policy)
        (first,) = [sample for sample in samples() if sample.path.name == "MR_small.dcm"]
        second = first._replace(data_set=first.data_set[:-2] + b"\x12\x34")
        self.assertEqual(run("storescu", *server.address, first.path).returncode, 0)
        before = self.stored(server)
        peer = Pynetdicom(self, server.port, {(first.sop_class_uid, first.transfer_syntax_uid)})
        status = peer.store(second)
        peer.association.release()
        self.assertEqual(list(server.files()), [first.stored_path])
        self.assertEqual(server.litter(), [])
        self.assertEqual(server.rows("SELECT instances FROM series"), [(1,)])
        self.assertEqual(len(server.rows("SELECT path FROM instances")), 1)
        return server, status, before, second.data_set

    def stored(self, server: Server) -> bytes:
        (path,) = server.files().values()
        return data_set_of(path)

    def test_reject(self) -> None:
        """The second one gets 0111H, and the first one stays."""
        server, status, first, _ = self.send_twice("reject")
        self.assertEqual(status, 0x0111)
        self.assertEqual(self.stored(server), first)
        self.assertEqual(server.rows("SELECT calling_ae_title FROM instances"), [("STORESCU",)])

    def test_ignore(self) -> None:
        """The second one gets 0000H, and the first one stays."""
        server, status, first, _ = self.send_twice("ignore")
        self.assertEqual(status, 0)
        self.assertEqual(self.stored(server), first)
        self.assertEqual(server.rows("SELECT calling_ae_title FROM instances"), [("STORESCU",)])

    def test_replace(self) -> None:
        """The second one gets 0000H and takes the place of the first one, in the index too."""
        server, status, _, second = self.send_twice("replace")
        self.assertEqual(status, 0)
        self.assertEqual(self.stored(server), second)
        self.assertEqual(server.rows("SELECT calling_ae_title FROM instances"), [("PYNETDICOM",)])

    def race(
        self, policy: str
    ) -> tuple[Server, list[tuple[int | AAbort | None, int | AAbort | None]], list[bytes]]:
        """Two associations, one instance: all of it but the last fragment is there before either sends that one."""
        server = Server(self, "--duplicate", policy)
        answers = []
        stored = []
        with RawSCU(server.address) as one, RawSCU(server.address) as other:
            one.associate(calling="ONE")
            other.associate(calling="OTHER")
            for number in range(20):
                uid = f"1.2.3.4.{number}"
                for scu, pixel in ((one, b"\1\1"), (other, b"\2\2")):
                    data = instance(uid, pixels=pixel)
                    scu.send_command(store_command(uid))
                    scu.send(p_data(EXPLICIT_CONTEXT, False, False, data[:-2]))
                for scu, pixel in ((one, b"\1\1"), (other, b"\2\2")):
                    scu.send(p_data(EXPLICIT_CONTEXT, False, True, pixel))
                answers.append((one.status(), other.status()))
                stored.append((server.storage / f"1.2.3/1.2.3.4/{uid}.dcm").read_bytes()[-2:])
            one.release()
            other.release()
        self.assertEqual(len(server.files()), 20)
        self.assertEqual(server.litter(), [])
        self.assertEqual(server.rows("SELECT instances FROM series"), [(20,)])
        return server, answers, stored

    def test_race_reject(self) -> None:
        """Of two that come at once exactly one is stored and gets 0000H, the other one gets 0111H."""
        server, answers, stored = self.race("reject")
        for answer, pixel in zip(answers, stored, strict=True):
            self.assertEqual(answer, (0, 0x0111) if pixel == b"\1\1" else (0x0111, 0))
        statistics = server.stop()
        self.assertEqual((statistics["stored"], statistics["failed"]), (20, 20))

    def test_race_others(self) -> None:
        """Under the other policies both get 0000H, there is one file, and the index agrees with it."""
        for policy in ("replace", "ignore"):
            server, answers, stored = self.race(policy)
            self.assertEqual(answers, [(0, 0)] * 20)
            rows = server.rows("SELECT path, calling_ae_title FROM instances")
            callers = {str(path): title for path, title in rows}
            for name, pixel in zip(
                (f"1.2.3/1.2.3.4/1.2.3.4.{n}.dcm" for n in range(20)), stored, strict=True
            ):
                self.assertEqual(callers[name], "ONE" if pixel == b"\1\1" else "OTHER")


class NegotiationTests(SynchronousTestCase):
    """Who and what is let in."""

    def test_accept(self) -> None:
        """With --accept CT a CT slice is stored; MR is refused with result 3, and C-ECHO still answered."""
        server = Server(self, "--accept", "CT")
        said = run("storescu", "-v", "-R", *server.address, DATA / "CT_small.dcm")
        self.assertEqual(said.returncode, 0, said.stdout)
        said = run("storescu", "-d", "-R", *server.address, DATA / "MR_small.dcm")
        self.assertNotEqual(said.returncode, 0)
        self.assertIn("Abstract Syntax Not Supported", said.stdout)
        with RawSCU(server.address) as scu:
            answer = scu.associate(
                ((MR, EXPLICIT), (CT, EXPLICIT), (CT, "1.2.3"), ("1.2.840.10008.1.1", EXPLICIT))
            )
            assert isinstance(answer, AAssociateAC)
            self.assertEqual([context.result for context in answer.presentation_contexts], [3, 0, 4, 0])
        self.assertEqual(run("echoscu", *server.address).returncode, 0)
        self.assertEqual(len(server.files()), 1)

    def test_called_ae_title(self) -> None:
        """With --check-called-ae another called AE title is rejected with its reason, to the log as well."""
        server = Server(self, "--check-called-ae", "--ae-title", "ARCHIVE")
        self.assertEqual(run("echoscu", "-aec", "ARCHIVE", *server.address).returncode, 0)
        said = run("echoscu", "-v", "-aec", "OTHER", *server.address)
        self.assertNotEqual(said.returncode, 0)
        self.assertIn("Called AE Title Not Recognized", said.stdout)
        server.wait_for("association rejected: 'ECHOSCU' at .* to 'OTHER': called AE title not recognized")
        self.assertEqual(server.stop()["rejected"], 1)

    def test_max_assoc(self) -> None:
        """Of 12 at once 3 get in, the others a transient rejection; those inside go on; later ones get in again."""
        server = Server(self, "--max-assoc", 3)
        with contextlib.ExitStack() as stack:
            with ThreadPoolExecutor(12) as pool:
                scus = [stack.enter_context(RawSCU(server.address)) for _ in range(12)]
                answers = list(pool.map(lambda scu: scu.associate(), scus))
            inside = [s for s, answer in zip(scus, answers, strict=True) if isinstance(answer, AAssociateAC)]
            self.assertEqual(len(inside), 3)
            rejections = [answer for answer in answers if not isinstance(answer, AAssociateAC)]
            self.assertEqual(rejections, [AAssociateRJ(2, 3, 2)] * 9)
            said = run("echoscu", "-v", *server.address)
            self.assertIn("Local Limit Exceeded", said.stdout)
            for number, scu in enumerate(inside):
                self.assertEqual(scu.store(*ct(f"1.2.3.{number}")), 0)
                scu.release()
        self.assertEqual(run("echoscu", *server.address).returncode, 0)
        statistics = server.stop()
        self.assertEqual((statistics["associations"], statistics["rejected"]), (4, 10))

    def test_many_storescus(self) -> None:
        """Eight storescu processes at once, each with 20 files: all arrive."""
        server = Server(self, "--duplicate", "ignore", "--naming", "flat")
        with ThreadPoolExecutor(8) as pool:
            ends = list(
                pool.map(
                    lambda number: run("storescu", "-nh", "+II", *server.address, *some_of(number)), range(8)
                )
            )
        self.assertEqual([end.returncode for end in ends], [0] * 8)
        self.assertEqual(len(server.files()), 160)
        self.assertEqual(server.rows("SELECT count(*) FROM instances"), [(160,)])
        self.assertEqual(server.litter(), [])


def some_of(number: int) -> list[pathlib.Path]:
    """Twenty uncompressed files; other ones for another *number*, as far as there are."""
    paths = sorted((DATA / "dicomdirtests").glob("*/[CM]*/*"))
    return [paths[(number * 20 + i) % len(paths)] for i in range(20)]


class ConfigurationTests(SynchronousTestCase):
    """--config."""

    def test_command_line_wins(self) -> None:
        """Options come from the YAML file, unless the command line gives them."""
        file = temporary_directory(self) / "storescp.yaml"
        storage = temporary_directory(self)
        file.write_text(
            "ae-title: FROMFILE\ncheck-called-ae: true\naccept: [CT, MR]\nnaming: flat\nduplicate: ignore\n"
            f"storage-dir: {storage}/not-here\nlisten:\n  - tcp:0:interface=127.0.0.1\n"
        )
        server = Server(self, "--config", file, "--naming", "hierarchical", listen=False)
        self.assertIn("AE title FROMFILE", server.output)
        self.assertNotEqual(run("echoscu", "-aec", "STORESCP", *server.address).returncode, 0)
        for _ in range(2):
            said = run("storescu", "-aec", "FROMFILE", *server.address, DATA / "MR_small.dcm")
            self.assertEqual(said.returncode, 0, said.stdout)
            self.assertNotIn("Warning", said.stdout)
        (name,) = server.files()
        self.assertEqual(name.count("/"), 2)
        self.assertEqual(list(storage.iterdir()), [])
