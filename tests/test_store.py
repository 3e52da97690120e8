"""storescp.store: stored means a whole file and its row; anything else leaves nothing behind."""

from __future__ import annotations

import datetime
import errno
import io
import os
import pathlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from unittest import mock

from pydicom import dcmread
from twisted.internet import reactor
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.interfaces import IReactorFromThreads, IReactorTime
from twisted.internet.task import Clock
from twisted.trial.unittest import TestCase
from zope.interface import implementer

from storescp import tags
from storescp.commit import Committer
from storescp.config import Duplicate
from storescp.dimse import Status
from storescp.index import Index, IndexUnavailable
from storescp.index_rows import ReceivedInstance
from storescp.interfaces import IFlow, IIncomingInstance, Origin, Outcome
from storescp.journal import Journal
from storescp.lost_answers import LostAnswers
from storescp.naming import Naming
from storescp.part10 import FileMeta
from storescp.pdu import AAbort, AReleaseRP
from storescp.storage_directory import PRIVATE_DIRECTORY, StorageDirectory
from storescp.store import BATCH_BYTES, PIECE_OVERHEAD, InstanceStore
from tests.conversation import (
    CT_IMAGE_STORAGE,
    EXPLICIT_VR_LITTLE_ENDIAN,
    IMPLICIT_VR_LITTLE_ENDIAN,
    MemoryReactor,
    Response,
    World,
    c_store,
    data_set,
    p_data,
)
from tests.test_storage_directory import DirectoryTestCase, WithoutLinks, WithoutTemporaryFiles, failing

NOON = datetime.datetime(2032, 4, 5, 12).timestamp()
PATH = "1.2.1/1.2.2/1.2.3.dcm"


class MemoryIndex(Index):
    """Remembers what was added together. ``during`` is called once, in the middle of the next commit."""

    def __init__(self) -> None:
        self.commits: list[list[ReceivedInstance]] = []
        self.during: Callable[[], None] | None = None

    def add(self, instances: Sequence[ReceivedInstance]) -> None:
        during, self.during = self.during, None
        if during is not None:
            during()
        self.commits.append(list(instances))

    def make_durable(self) -> None:
        pass

    @property
    def paths(self) -> list[str]:
        return [row.path for rows in self.commits for row in rows]


@implementer(IFlow)
class MemoryFlow:
    """Counts what is held."""

    def __init__(self, enough: float = float("inf")) -> None:
        self.now = self.most = 0
        self.enough = enough

    def held(self, size: int) -> bool:
        self.now += size
        self.most = max(self.most, self.now)
        return self.now >= self.enough

    def released(self, size: int) -> bool:
        self.now -= size
        return self.now >= self.enough


def origin(
    sop_instance_uid: str = "1.2.3", *, transfer_syntax_uid: str = EXPLICIT_VR_LITTLE_ENDIAN
) -> Origin:
    """What the command set and the association say of an instance."""
    return Origin(CT_IMAGE_STORAGE, sop_instance_uid, transfer_syntax_uid, "SCU", "STORESCP")


def empty(keyword: str) -> bytes:
    """A data set with a UID that has no value."""
    attributes: dict[str, object] = {keyword: ""}
    return data_set("1.2.3", **attributes)  # type: ignore[arg-type]


def mistake() -> None:
    """What nobody has thought of."""
    raise ZeroDivisionError("a mistake")


def unavailable() -> None:
    """What the index does when it fails."""
    raise IndexUnavailable("database is locked")


class StoreTestCase(DirectoryTestCase):
    """A store on a directory of its own, whose worker has no threads and is turned by hand."""

    naming = Naming.HIERARCHICAL
    duplicate = Duplicate.REJECT

    def setUp(self) -> None:
        super().setUp()
        self.reactor = MemoryReactor()
        self.clock = Clock()
        self.index = MemoryIndex()
        self.flow = MemoryFlow()
        sync = self.directory.sync_together if self.directory.sync else None
        self.journal = Journal(str(self.root / PRIVATE_DIRECTORY / "journal"), sync)
        self.addCleanup(self.journal.close)
        self.journal.reset()
        self.lost = LostAnswers(str(self.root / PRIVATE_DIRECTORY / "lost-answers"), sync=self.directory.sync)
        self.instances = self.make_store(self.index)
        self.descriptors = set(os.listdir("/proc/self/fd"))
        self.addCleanup(self.check)

    def check(self) -> None:
        """However an instance ends: nothing is held, under way or open."""
        self.work()
        self.instances._checkpoint()
        self.directory._recent.close()
        self.assertEqual(self.flow.now, 0)
        # Others may have let go of some.
        self.assertLessEqual(set(os.listdir("/proc/self/fd")), self.descriptors)
        self.assertEqual(os.listdir(self.root / PRIVATE_DIRECTORY / "incoming"), [])

    def make_store(self, index: Index | None) -> InstanceStore:
        return InstanceStore(
            self.reactor,
            self.clock,
            self.directory,
            Committer(self.directory, index, self.journal, self.lost, self.duplicate),
            naming=self.naming,
            threaded=False,
            wall_clock=lambda: NOON,
        )

    def work(self) -> None:
        """Do the work of threads and reactor, in turns, until there is none."""
        worker = self.instances.worker
        self.reactor.turn()
        while worker.outstanding:
            worker.turn()
            self.reactor.turn()

    def begin(self, sop_instance_uid: str = "1.2.3") -> IIncomingInstance:
        return self.instances.begin(origin(sop_instance_uid), self.flow)

    def send(self, data: bytes, sop_instance_uid: str = "1.2.3") -> Deferred[Outcome]:
        """A whole data set arrives; nothing is done about it yet."""
        incoming = self.begin(sop_instance_uid)
        incoming.write(memoryview(data))
        return incoming.finish()

    def visible(self, path: str) -> bool:
        return path.startswith(str(self.root)) and PRIVATE_DIRECTORY not in path

    def store(self, path: str, content: bytes) -> None:
        raise NotImplementedError

    def receive(self, data: bytes, sop_instance_uid: str = "1.2.3") -> Outcome:
        """A whole data set arrives, and all is done about it."""
        outcome = self.send(data, sop_instance_uid)
        self.work()
        return self.successResultOf(outcome)

    def file(self, data: bytes, sop_instance_uid: str = "1.2.3") -> bytes:
        """The file that *data* makes."""
        meta = FileMeta(CT_IMAGE_STORAGE, EXPLICIT_VR_LITTLE_ENDIAN, "SCU", "STORESCP")
        return meta.encode(sop_instance_uid) + data


class StoredTests(StoreTestCase):
    """What is stored, and where."""

    def test_file(self) -> None:
        """The file is File Meta Information and the data set byte for byte; pydicom reads it."""
        data = data_set("1.2.3", pixels=bytes(range(256)))
        outcome = self.receive(data)
        self.assertEqual(outcome[:4], (Status.SUCCESS, "", len(data), PATH))
        assert outcome.head is not None
        self.assertEqual(outcome.head.text(tags.PATIENT_NAME), "Doe^Jane")
        ((path, content),) = self.files().items()
        self.assertEqual(path, PATH)
        self.assertEqual(content, self.file(data))
        dataset = dcmread(io.BytesIO(content))
        self.assertEqual((dataset.PatientID, dataset.PixelData), ("4711", bytes(range(256))))
        self.assertEqual(dataset.file_meta.TransferSyntaxUID, EXPLICIT_VR_LITTLE_ENDIAN)

    def test_row(self) -> None:
        """The index is told of the instance when its file has its name."""
        seen: list[list[str]] = []
        self.index.during = lambda: seen.append(list(self.files()))
        data = data_set("1.2.3")
        outcome = self.receive(data)
        self.assertEqual(seen, [[PATH]])
        assert outcome.head is not None
        row = ReceivedInstance(
            head=outcome.head,
            sop_class_uid=CT_IMAGE_STORAGE,
            sop_instance_uid="1.2.3",
            transfer_syntax_uid=EXPLICIT_VR_LITTLE_ENDIAN,
            path=PATH,
            size=len(self.file(data)),
            calling_ae_title="SCU",
            received_at=NOON,
        )
        self.assertEqual(self.index.commits, [[row]])

    def test_transfer_syntax(self) -> None:
        """File Meta names the transfer syntax of the presentation context."""
        data = data_set("1.2.3", transfer_syntax_uid=IMPLICIT_VR_LITTLE_ENDIAN)
        incoming = self.instances.begin(origin(transfer_syntax_uid=IMPLICIT_VR_LITTLE_ENDIAN), self.flow)
        incoming.write(memoryview(data))
        incoming.finish()
        self.work()
        dataset = dcmread(io.BytesIO(self.files()[PATH]))
        self.assertEqual(dataset.file_meta.TransferSyntaxUID, IMPLICIT_VR_LITTLE_ENDIAN)
        self.assertEqual(dataset.PatientID, "4711")

    def test_without_index(self) -> None:
        """A store without an index stores all the same."""
        self.instances = self.make_store(None)
        self.assertIs(self.receive(data_set("1.2.3")).status, Status.SUCCESS)
        self.assertEqual(list(self.files()), [PATH])
        self.assertEqual(self.index.commits, [])

    def test_naming(self) -> None:
        """Each naming scheme has its path; without a usable Study Date the day of receipt takes its place."""
        for naming, study_date, path in (
            (Naming.HIERARCHICAL, "20310203", PATH),
            (Naming.DATE, "20310203", "2031/02/03/1.2.1/1.2.3.dcm"),
            (Naming.DATE, "", "2032/04/05/1.2.1/1.2.3.dcm"),
            (Naming.FLAT, "20310203", "1.2.3.dcm"),
        ):
            self.naming = naming
            self.instances = self.make_store(self.index)
            outcome = self.receive(data_set("1.2.3", StudyDate=study_date))
            self.assertEqual((outcome.path, list(self.files())), (path, [path]))
            self.directory.remove(path)

    def test_crumbs(self) -> None:
        """A data set in pieces of one byte is stored whole, and each piece is charged with what it really costs."""
        data = data_set("1.2.3", pixels=bytes(8000))
        incoming = self.begin()
        for number in range(len(data)):
            incoming.write(memoryview(data)[number : number + 1])
            self.work()
        outcome = incoming.finish()
        self.work()
        self.assertIs(self.successResultOf(outcome).status, Status.SUCCESS)
        self.assertEqual(self.files(), {PATH: self.file(data)})
        self.assertLess(self.flow.most, BATCH_BYTES + PIECE_OVERHEAD + 1)
        self.assertGreater(self.flow.most, BATCH_BYTES - 1)

    def test_chunks(self) -> None:
        """A large object goes to the disk in chunks while it arrives."""
        data = data_set("1.2.3", pixels=bytes(8 * BATCH_BYTES))
        incoming = self.begin()
        chunks = 0
        for start in range(0, len(data), 256 * 1024):
            incoming.write(memoryview(data)[start : start + 256 * 1024])
            chunks += self.instances.worker.outstanding
            self.work()
        self.assertEqual(chunks, 8)
        self.assertEqual(self.files(), {})
        outcome = incoming.finish()
        self.work()
        self.assertEqual(self.successResultOf(outcome)[:3], (Status.SUCCESS, "", len(data)))
        self.assertEqual(self.files(), {PATH: self.file(data)})
        self.assertLess(self.flow.most, 2 * BATCH_BYTES)

    def test_slow_worker(self) -> None:
        """What arrives while a chunk is out waits, is charged, and makes the next chunk."""
        data = data_set("1.2.3", pixels=bytes(4 * BATCH_BYTES))
        outcome_of = self.begin()
        for start in range(0, len(data), 256 * 1024):
            outcome_of.write(memoryview(data)[start : start + 256 * 1024])
        self.assertEqual(self.instances.worker.outstanding, 1)
        self.assertGreater(self.flow.now, len(data))
        outcome = outcome_of.finish()
        self.work()
        self.assertIs(self.successResultOf(outcome).status, Status.SUCCESS)
        self.assertEqual(self.files(), {PATH: self.file(data)})

    def test_one_hop(self) -> None:
        """A small object makes one job, and all that are there at once share one commit."""
        outcomes = [self.send(data_set(f"1.2.{number}"), f"1.2.{number}") for number in range(10)]
        self.assertEqual(self.instances.worker.outstanding, 10)
        self.instances.worker.turn()
        self.reactor.turn()
        self.assertEqual(
            [self.successResultOf(outcome).status for outcome in outcomes], [Status.SUCCESS] * 10
        )
        self.assertEqual([len(rows) for rows in self.index.commits], [10])
        self.assertEqual(len(self.files()), 10)


class DuplicateTests(StoreTestCase):
    """The same instance again, under the policy ``reject``."""

    answer = Status.DUPLICATE_SOP_INSTANCE
    first_stays = True

    def setUp(self) -> None:
        super().setUp()
        self.first = data_set("1.2.3", PatientID="first")
        self.second = data_set("1.2.3", PatientID="second")

    def assertStays(self, stays: bool = True) -> None:
        """Exactly one file is there, of one of the two, and it was indexed last."""
        self.assertEqual(self.files(), {PATH: self.file(self.first if stays else self.second)})
        head = self.index.commits[-1][-1].head
        self.assertEqual(head.text(tags.PATIENT_ID), "first" if stays else "second")

    def test_later(self) -> None:
        """The second one is answered as the policy says, and the right one stays."""
        self.assertIs(self.receive(self.first).status, Status.SUCCESS)
        self.assertIs(self.receive(self.second).status, self.answer)
        self.assertStays(self.first_stays)

    def test_same_batch(self) -> None:
        """Two that are taken by one thread together."""
        first, second = self.send(self.first), self.send(self.second)
        self.work()
        self.assertIs(self.successResultOf(first).status, Status.SUCCESS)
        self.assertIs(self.successResultOf(second).status, self.answer)
        self.assertStays(self.first_stays)

    def meanwhile(self, fail: bool) -> tuple[Outcome, Outcome]:
        """The second one comes while the first one is being committed."""
        outcomes: list[Deferred[Outcome]] = []

        def commit() -> None:
            outcomes.append(self.send(self.second))
            self.reactor.turn()
            self.assertNoResult(outcomes[0])
            if fail:
                unavailable()

        self.index.during = commit
        first = self.receive(self.first)
        return first, self.successResultOf(outcomes[0])

    def test_at_once(self) -> None:
        """The second one waits for the first one's outcome, and then is answered as the policy says."""
        first, second = self.meanwhile(False)
        self.assertEqual((first.status, second.status), (Status.SUCCESS, self.answer))
        self.assertStays(self.first_stays)

    def test_at_once_and_the_first_fails(self) -> None:
        """When the first one is taken back, the second one is no duplicate, and is stored."""
        first, second = self.meanwhile(True)
        self.assertEqual((first.status, second.status), (Status.OUT_OF_RESOURCES, Status.SUCCESS))
        self.assertStays(False)

    def test_many_at_once(self) -> None:
        """Of any number at once one is first, and the others are duplicates."""
        outcomes = [self.send(self.first) for _ in range(200)]
        self.work()
        statuses = [self.successResultOf(outcome).status for outcome in outcomes]
        self.assertEqual(statuses, [Status.SUCCESS] + [self.answer] * 199)
        self.assertStays()

    def test_index_fails_for_the_second(self) -> None:
        """When the index fails, what was stored before is there as before."""
        self.receive(self.first)
        self.index.during = unavailable
        status = self.receive(self.second).status
        self.assertIs(status, self.answer if self.first_stays else Status.OUT_OF_RESOURCES)
        self.assertStays()


class IgnoreTests(DuplicateTests):
    """Under the policy ``ignore`` the second one is answered with Success, and the first one stays."""

    duplicate = Duplicate.IGNORE
    answer = Status.SUCCESS


class ReplaceTests(DuplicateTests):
    """Under the policy ``replace`` the second one takes the first one's place."""

    duplicate = Duplicate.REPLACE
    answer = Status.SUCCESS
    first_stays = False

    def test_never_gone(self) -> None:
        """The old or the new file is there at every moment, also while it may yet be taken back."""
        self.receive(self.first)
        self.index.during = lambda: self.assertEqual((self.root / PATH).read_bytes(), self.file(self.second))
        self.receive(self.second)
        self.assertIsNone(self.index.during)

    def test_disk_fails(self) -> None:
        """When the new file cannot be put there, the old one stays."""
        self.receive(self.first)
        with mock.patch.object(os, "rename", failing(os.rename, errno.EIO)):
            self.assertIs(self.receive(self.second).status, Status.OUT_OF_RESOURCES)
        self.assertStays()


class FaultTests(StoreTestCase):
    """When the disk or the index fails, the sender is told A700H, nothing is left, and the next one is stored."""

    @contextmanager
    def full_after(self, size: int) -> Iterator[None]:
        """A disk that has room for *size* more bytes: the system writes less than it is told, then nothing."""
        left = size

        def write(descriptor: int, data: bytes | Sequence[bytes]) -> int:
            nonlocal left
            joined = data if isinstance(data, bytes | memoryview) else b"".join(data)
            if not left:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            written = original(descriptor, bytes(joined[:left]))
            left -= written
            return written

        original = os.write
        with mock.patch.object(os, "writev", write), mock.patch.object(os, "write", write):
            yield

    @contextmanager
    def index_fails(self) -> Iterator[None]:
        self.index.during = unavailable
        yield

    def faults(self) -> dict[str, Callable[[], object]]:
        """What can go wrong, by name; each makes a context manager."""

        def fails(function: str, number: int, when: Callable[[str], bool]) -> Callable[[], object]:
            return lambda: mock.patch.object(os, function, failing(getattr(os, function), number, when=when))

        return {
            "no room for a file": fails("open", errno.ENOSPC, lambda path: "incoming" in path),
            "no file can be opened": fails("open", errno.EMFILE, lambda path: "incoming" in path),
            "no quota left": lambda: mock.patch.object(os, "writev", failing(os.writev, errno.EDQUOT)),
            "cannot be written": lambda: mock.patch.object(os, "writev", failing(os.writev, errno.EIO)),
            "full at once": lambda: self.full_after(0),
            "full in File Meta": lambda: self.full_after(10),
            "full in the data set": lambda: self.full_after(500),
            "no directory": fails("mkdir", errno.ENOSPC, self.visible),
            "no name": lambda: self.no_name(),
            "no index": self.index_fails,
        }

    def no_name(self) -> object:
        return mock.patch.object(os, "link", failing(os.link, errno.ENOSPC, when=self.visible))

    def test_faults(self) -> None:
        """One instance after the other, each with another fault, and a good one in between."""
        good = {"1.2.1/1.2.2/1.2.4.dcm": self.file(data_set("1.2.4"), "1.2.4")}
        for name, fault in self.faults().items():
            with fault():  # type: ignore[attr-defined]
                outcome = self.receive(data_set("1.2.3", pixels=bytes(3000)))
            self.assertEqual(outcome.status, Status.OUT_OF_RESOURCES, name)
            self.assertTrue(outcome.comment, name)
            self.assertEqual(self.files(), {}, name)
            self.assertIs(self.receive(data_set("1.2.4"), "1.2.4").status, Status.SUCCESS, name)
            self.assertEqual(self.files(), good, name)
            self.directory.remove("1.2.1/1.2.2/1.2.4.dcm")
            self.check()

    def test_large(self) -> None:
        """A fault in an early chunk: the rest is not held and not written, and the answer comes at its end."""
        data = data_set("1.2.3", pixels=bytes(4 * BATCH_BYTES))
        incoming = self.begin()
        with self.full_after(BATCH_BYTES // 2):
            for start in range(0, len(data), BATCH_BYTES):
                incoming.write(memoryview(data)[start : start + BATCH_BYTES])
                self.work()
        self.instances._checkpoint()
        self.assertEqual(self.flow.now, 0)
        self.assertLess(self.flow.most, 2 * BATCH_BYTES)
        outcome = self.successResultOf(incoming.finish())
        self.assertEqual(outcome[:3], (Status.OUT_OF_RESOURCES, os.strerror(errno.ENOSPC), len(data)))
        self.assertEqual(self.files(), {})

    def test_index_fails_for_all(self) -> None:
        """All that shared the commit are told, and none is left; but what was stored before is."""
        self.receive(data_set("1.2.9"), "1.2.9")
        self.index.during = unavailable
        outcomes = [self.send(data_set(f"1.2.{number}"), f"1.2.{number}") for number in range(5)]
        self.work()
        statuses = {self.successResultOf(outcome).status for outcome in outcomes}
        self.assertEqual(statuses, {Status.OUT_OF_RESOURCES})
        self.assertEqual(list(self.files()), ["1.2.1/1.2.2/1.2.9.dcm"])

    def test_one_of_many(self) -> None:
        """A fault of one instance is not one of those that are stored with it."""
        target = str(self.root / "1.2.1/1.2.2/1.2.1.dcm")
        outcomes = [self.send(data_set(f"1.2.{number}"), f"1.2.{number}") for number in range(3)]
        fail = failing(os.link, errno.EIO, when=lambda path: path == target)
        rename = failing(os.rename, errno.EIO, when=lambda path: path == target)
        with mock.patch.object(os, "link", fail), mock.patch.object(os, "rename", rename):
            self.work()
        statuses = [self.successResultOf(outcome).status for outcome in outcomes]
        self.assertEqual(statuses, [Status.SUCCESS, Status.OUT_OF_RESOURCES, Status.SUCCESS])
        self.assertEqual(self.index.paths, ["1.2.1/1.2.2/1.2.0.dcm", "1.2.1/1.2.2/1.2.2.dcm"])
        self.assertEqual(sorted(self.files()), self.index.paths)


class FaultsWithoutTemporaryFilesTests(WithoutTemporaryFiles, FaultTests):
    """The same on a file system without O_TMPFILE."""


class FaultsWithoutLinksTests(WithoutLinks, FaultTests):
    """The same on a file system without hard links."""

    def no_name(self) -> object:
        return mock.patch.object(os, "rename", failing(os.rename, errno.ENOSPC, when=self.visible))


class DuplicatesWithoutLinksTests(WithoutLinks, DuplicateTests):
    """Duplicates on a file system without hard links."""


class ReplaceWithoutLinksTests(WithoutLinks, ReplaceTests):
    """Replacing on a file system without hard links."""


class BadInputTests(StoreTestCase):
    """Data sets that cannot be stored as what they were announced."""

    def assertRefused(
        self, data: bytes, status: Status, comment: str, sop_instance_uid: str = "1.2.3"
    ) -> None:
        """*data* is refused with *status* and *comment*, and leaves nothing; the next one is stored."""
        outcome = self.receive(data, sop_instance_uid)
        self.assertEqual((outcome.status, outcome.size), (status, len(data)))
        self.assertIn(comment, outcome.comment)
        self.assertEqual(self.files(), {})
        self.receive(data_set("1.2.3"))
        self.directory.remove(PATH)

    def test_other_than_the_command(self) -> None:
        """Another SOP class or instance than the command's: A900H."""
        status = Status.DATA_SET_DOES_NOT_MATCH_SOP_CLASS
        self.assertRefused(data_set("1.2.4"), status, "SOP Instance UID differs")
        self.assertRefused(data_set("1.2.3", SOPClassUID="1.2"), status, "SOP Class UID differs")
        self.assertRefused(data_set("1.2.3"), status, "SOP Instance UID differs", "")

    def test_missing_uids(self) -> None:
        """A data set without one of the UIDs, or with an empty one: C000H."""
        for keyword in ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID"):
            for data in (data_set("1.2.3", without=[keyword]), empty(keyword)):
                self.assertRefused(data, Status.CANNOT_UNDERSTAND, "the data set has no ")

    def test_unsafe_uids(self) -> None:
        """UIDs that would lead out of their directory, or are no names: C000H, though command and data set agree."""
        for uid in ("../../x", "..", ".", "/etc/x", "1/2", ".storescp", "1" * 65, "1.2\n", "-rf", "1.2\0.3"):
            plain = data_set("1.2.9", StudyInstanceUID="1.2.8", SeriesInstanceUID="1.2.7")
            value = uid.encode() + b"\0" * (len(uid) % 2)
            for old in (b"1.2.9\0", b"1.2.8\0", b"1.2.7\0"):
                data = plain.replace(b"\x06\0" + old, len(value).to_bytes(2, "little") + value)
                self.assertNotEqual(data, plain)
                announced = uid if old == b"1.2.9\0" else "1.2.9"
                self.assertRefused(data, Status.CANNOT_UNDERSTAND, "", announced)

    def test_non_ascii_uid(self) -> None:
        """A UID with bytes beyond ASCII: C000H."""
        data = data_set("1.2.3").replace(b"1.2.2\0", b"1.\xff.2\0")
        self.assertRefused(data, Status.CANNOT_UNDERSTAND, "beyond ASCII")

    def test_garbage(self) -> None:
        """What is no data set at all: C000H."""
        for data in (
            b"",
            b"\0",
            b"GET / HTTP/1.1\r\n\r\n",
            b"\xff" * 5000,
            bytes(5000),
            b"\x08\0\5\0UI\xff\xff",
        ):
            self.assertRefused(data, Status.CANNOT_UNDERSTAND, "")

    def test_cut_short(self) -> None:
        """A data set that ends within its head, at any byte: C000H. Where the UIDs are complete it may be stored."""
        data = data_set("1.2.3", without=["SeriesInstanceUID"])
        for length in range(len(data)):
            self.assertRefused(data[:length], Status.CANNOT_UNDERSTAND, "")

    def test_found_out_early(self) -> None:
        """What is wrong with a large data set is known from its head: the rest is neither held nor written."""
        data = data_set("1.2.4", pixels=bytes(4 * BATCH_BYTES))
        incoming = self.begin("1.2.3")
        for start in range(0, len(data), BATCH_BYTES):
            incoming.write(memoryview(data)[start : start + BATCH_BYTES])
            self.work()
            self.assertEqual(self.flow.now, 0)
        status = self.successResultOf(incoming.finish()).status
        self.assertIs(status, Status.DATA_SET_DOES_NOT_MATCH_SOP_CLASS)
        self.assertEqual(self.files(), {})


class CancelTests(StoreTestCase):
    """An instance whose rest will not come leaves no trace; see also check()."""

    def setUp(self) -> None:
        super().setUp()
        self.data = memoryview(data_set("1.2.3", pixels=bytes(2 * BATCH_BYTES)))
        self.incoming = self.begin()

    def check(self) -> None:
        super().check()
        self.assertEqual(self.files(), {})
        self.assertEqual(self.index.commits, [])
        self.assertIs(self.receive(data_set("1.2.3")).status, Status.SUCCESS)

    def test_before_a_byte(self) -> None:
        """Nothing has come yet."""
        self.incoming.cancel()
        self.assertEqual(self.instances.worker.outstanding, 0)

    def test_before_a_chunk(self) -> None:
        """Not enough has come to be written."""
        self.incoming.write(self.data[:1000])
        self.incoming.cancel()
        self.assertEqual((self.flow.now, self.instances.worker.outstanding), (0, 0))

    def test_while_a_chunk_waits(self) -> None:
        """A chunk is on its way to a thread."""
        self.incoming.write(self.data[:BATCH_BYTES])
        self.incoming.write(self.data[BATCH_BYTES:])
        self.incoming.cancel()

    def test_while_a_chunk_returns(self) -> None:
        """A chunk has been written, and the reactor does not know it yet."""
        self.incoming.write(self.data[:BATCH_BYTES])
        self.instances.worker.turn()
        self.incoming.cancel()

    def test_between_chunks(self) -> None:
        """A chunk has been written, and nothing is under way."""
        self.incoming.write(self.data[:BATCH_BYTES])
        self.work()
        self.incoming.write(self.data[BATCH_BYTES : BATCH_BYTES + 10])
        self.incoming.cancel()

    def test_after_a_failure(self) -> None:
        """What has come was refused already."""
        self.incoming.write(memoryview(b"\xff" * BATCH_BYTES))
        self.work()
        self.incoming.cancel()

    def test_refused_meanwhile(self) -> None:
        """What has come is being refused."""
        self.incoming.write(memoryview(b"\xff" * BATCH_BYTES))
        self.instances.worker.turn()
        self.incoming.write(self.data)
        self.incoming.cancel()


class CancelWithoutTemporaryFilesTests(WithoutTemporaryFiles, CancelTests):
    """The same where files that are being written have hidden names."""


class UnexpectedTests(StoreTestCase):
    """Mistakes of ours are answered with 0110H, and logged with their traceback."""

    def test_index(self) -> None:
        """An exception that is no failure of the index leaves nothing either."""
        self.index.during = mistake
        outcome = self.receive(data_set("1.2.3"))
        self.assertEqual(outcome[:2], (Status.PROCESSING_FAILURE, "internal error"))
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.assertEqual(self.files(), {})
        self.assertIs(self.receive(data_set("1.2.3")).status, Status.SUCCESS)

    def test_before_the_end(self) -> None:
        """An exception in an early chunk is the outcome in the end; other instances do not notice."""
        self.instances.wall_clock = lambda: 1 / 0
        large = self.begin()
        large.write(memoryview(data_set("1.2.3", pixels=bytes(BATCH_BYTES))))
        self.work()
        self.instances.wall_clock = lambda: NOON
        self.assertIs(self.receive(data_set("1.2.4"), "1.2.4").status, Status.SUCCESS)
        self.assertIs(self.successResultOf(large.finish()).status, Status.PROCESSING_FAILURE)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.assertEqual(list(self.files()), ["1.2.1/1.2.2/1.2.4.dcm"])


class AssociationTests(StoreTestCase):
    """The store behind real associations."""

    def setUp(self) -> None:
        super().setUp()
        self.world = World(self.instances, timeout=100)
        self.peer = self.world.associated()

    def half(self) -> None:
        """Half of a large data set arrives, and a part of it is on the disk."""
        self.peer.message(c_store("1.2.3"), context_id=3)
        data = data_set("1.2.3", pixels=bytes(2 * BATCH_BYTES))[: BATCH_BYTES + 100_000]
        for start in range(0, len(data), 16_000):
            self.peer.say(p_data(3, False, data[start : start + 16_000], is_last=False))
        self.instances.worker.turn()
        self.reactor.turn()

    def test_stored(self) -> None:
        """From the wire to the disk and back, in any fragments."""
        for number, fragment in enumerate((100, 1000, 16_000)):
            uid = f"1.2.3.{number}"
            data = data_set(uid, pixels=bytes(100_000))
            self.peer.store(data, uid, fragment=fragment, read_size=7001)
            self.work()
            self.assertEqual(self.peer.statuses(), [0])
            self.assertEqual(self.files()[f"1.2.1/1.2.2/{uid}.dcm"], self.file(data, uid))

    def test_broken_off(self) -> None:
        """Abort, loss, release, violation and silence in the middle of a data set leave no trace on the disk."""
        ends: list[Callable[[], object]] = [
            lambda: self.peer.abort(),
            lambda: self.peer.drop(),
            lambda: self.peer.hang_up(),
            lambda: self.peer.release(),
            lambda: self.peer.say(AAbort(0, 0).encode()[:5] + b"\0" * 100),
            lambda: self.world.clock.advance(100),
        ]
        for end in ends:
            self.peer = self.world.associated()
            self.half()
            end()
            self.work()
            self.assertEqual(self.files(), {})
            self.assertEqual(os.listdir(self.root), [PRIVATE_DIRECTORY])
            self.assertEqual(self.index.commits, [])

    def test_two_associations_at_once(self) -> None:
        """Two associations that send the same instance get the right two answers."""
        other = self.world.associated()
        for peer in (self.peer, other):
            peer.store(data_set("1.2.3"), "1.2.3")
        self.work()
        self.assertEqual(self.peer.statuses() + other.statuses(), [0, 0x0111])
        self.assertEqual(list(self.files()), [PATH])

    def test_window(self) -> None:
        """Of many instances outstanding on one association each gets its own answer; they share commits, and of the
        same instance the first is stored.
        """
        peer = self.world.associated(window=64)
        uids = ["1.2.3", *(f"1.2.{number}" for number in range(10, 40)), "1.2.3"]
        for message_id, uid in enumerate(uids, 1):
            peer.store(data_set(uid if message_id != 5 else "1.9"), uid, message_id)
        self.assertEqual(peer.heard(), [])
        self.work()
        answers = {item.message_id: item.status for item in peer.heard() if isinstance(item, Response)}
        self.assertEqual(answers.pop(5), 0xA900)
        self.assertEqual(answers.pop(len(uids)), 0x0111)
        self.assertEqual(answers, {number: 0 for number in range(1, len(uids)) if number != 5})
        self.assertEqual(len(self.files()), len(uids) - 2)
        self.assertLess(len(self.index.commits), 3)
        self.assertEqual(len(self.journal.open_paths), len(uids) - 2)
        peer.release()
        self.assertEqual(peer.heard(), [AReleaseRP()])
        self.assertEqual(self.journal.open_paths, [])

    def test_paused(self) -> None:
        """An association that is not read until storage has caught up does not wait for results that can wait."""
        hurried = []
        self.patch(self.instances, "hurry", lambda: hurried.append(True))
        world = World(self.instances, max_in_flight=1000)
        peer = world.associated(window=64)
        peer.store(data_set("1.2.3"), "1.2.3")
        self.assertFalse(peer.transport.is_reading)
        self.assertEqual(hurried, [True])
        self.work()
        self.assertTrue(peer.transport.is_reading)

    def test_lives_on(self) -> None:
        """Whatever an instance's status, the association goes on and can be released."""
        self.index.during = mistake
        self.peer.store(data_set("1.2.3"), "1.2.3")
        self.work()
        self.peer.store(b"\xff" * 100, "1.2.3")
        self.work()
        self.peer.store(data_set("1.2.3"), "1.2.4")
        self.work()
        self.peer.store(data_set("1.2.3"), "1.2.3")
        self.work()
        self.assertEqual(self.peer.statuses(), [0x0110, 0xC000, 0xA900, 0])
        self.peer.release()
        self.assertEqual(self.peer.heard(), [AReleaseRP()])
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def test_lost_after_the_data_set(self) -> None:
        """An instance that is complete is stored, though there is nobody left to answer."""
        self.peer.store(data_set("1.2.3"), "1.2.3")
        self.peer.drop()
        self.work()
        self.assertEqual(list(self.files()), [PATH])
        self.assertEqual(self.index.paths, [PATH])


class ThreadTests(TestCase):
    """Real threads, a real index, the real reactor."""

    def setUp(self) -> None:
        self.root = pathlib.Path(self.mktemp()).absolute()
        self.directory = StorageDirectory(self.root, sync=False)
        self.addCleanup(self.directory.close)
        self.index = Index(str(self.root / PRIVATE_DIRECTORY / "index.db"))
        self.addCleanup(self.index.close)

    def race(self, duplicate: Duplicate) -> Deferred[list[Outcome]]:
        """40 instances, each sent five times at once."""
        journal = Journal(str(self.root / PRIVATE_DIRECTORY / "journal"), None)
        lost = LostAnswers(str(self.root / PRIVATE_DIRECTORY / "lost-answers"), sync=False)
        self.addCleanup(journal.close)
        journal.reset()
        store = InstanceStore(
            IReactorFromThreads(reactor),
            IReactorTime(reactor),
            self.directory,
            Committer(self.directory, self.index, journal, lost, duplicate),
            naming=Naming.HIERARCHICAL,
        )
        store.worker.start()
        self.addCleanup(store.stop)
        outcomes = []
        for number in range(200):
            uid = f"1.2.3.{number % 40}"
            incoming = store.begin(origin(uid), MemoryFlow())
            incoming.write(memoryview(data_set(uid, PatientID=str(number), pixels=bytes(2000))))
            outcomes.append(incoming.finish())
        return gatherResults(outcomes)

    def check(self, outcomes: list[Outcome], stored: int) -> None:
        """Every instance is there once and whole; *stored* of the outcomes are Success, the others 0111H."""
        statuses = [outcome.status for outcome in outcomes]
        self.assertEqual(statuses.count(Status.SUCCESS), stored)
        self.assertEqual(statuses.count(Status.DUPLICATE_SOP_INSTANCE), 200 - stored)
        paths = list(self.root.glob("1.2.1/1.2.2/*.dcm"))
        self.assertEqual(len(paths), 40)
        self.assertTrue(all(len(dcmread(path).PixelData) == 2000 for path in paths))
        self.assertEqual(self.index.totals().instances, 40)
        self.assertEqual(self.index.totals().bytes, sum(path.stat().st_size for path in paths))
        self.assertEqual(os.listdir(self.root / PRIVATE_DIRECTORY / "incoming"), [])

    def test_reject(self) -> Deferred[None]:
        """One of five is stored, four are duplicates."""
        return self.race(Duplicate.REJECT).addCallback(self.check, 40)

    def test_ignore(self) -> Deferred[None]:
        """All are answered with Success."""
        return self.race(Duplicate.IGNORE).addCallback(self.check, 200)

    def test_replace(self) -> Deferred[None]:
        """All are answered with Success, and each file is one of the five."""
        return self.race(Duplicate.REPLACE).addCallback(self.check, 200)

    def test_broken_index(self) -> Deferred[None]:
        """When the index cannot be written, no instance is stored, and no file or directory is left."""
        self.index.close()

        def check(outcomes: list[Outcome]) -> None:
            self.assertEqual({outcome.status for outcome in outcomes}, {Status.OUT_OF_RESOURCES})
            self.assertEqual(os.listdir(self.root), [PRIVATE_DIRECTORY])
            self.assertEqual(os.listdir(self.root / PRIVATE_DIRECTORY / "incoming"), [])

        return self.race(Duplicate.REPLACE).addCallback(check)
