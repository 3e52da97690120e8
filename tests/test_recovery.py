"""storescp.recovery and storescp.archive: what a process finds that its predecessor left."""

from __future__ import annotations

import hashlib
import os
import pathlib
from unittest import mock

from twisted.trial.unittest import SynchronousTestCase

from storescp.archive import CannotOpen, ServerArchive
from storescp.config import Config, load
from storescp.config_callers import MAX_DIRECTORY
from storescp.index import Index
from storescp.journal import Beginning, Journal
from storescp.lost_answers import LostAnswers
from storescp.part10 import FileMeta
from storescp.recovery import Recovered
from storescp.storage_directory import PRIVATE_DIRECTORY
from tests.conversation import CT_IMAGE_STORAGE, EXPLICIT_VR_LITTLE_ENDIAN, data_set

PATH = "1.2.1/1.2.2/1.2.3.dcm"


class ArchiveTestCase(SynchronousTestCase):
    """An archive in a directory of its own."""

    def setUp(self) -> None:
        self.root = pathlib.Path(self.mktemp()).absolute()
        self.private = self.root / PRIVATE_DIRECTORY

    def config(self, **given: str | bool) -> Config:
        return load(None, {"storage-dir": str(self.root), **given})

    def open(self, **given: str | bool) -> ServerArchive:
        """Open the archive, until the end of the test."""
        archive = ServerArchive(self.config(**given))
        self.addCleanup(archive.close)
        return archive

    def recover(self, **given: str | bool) -> Recovered:
        """Open and close it."""
        archive = ServerArchive(self.config(**given))
        archive.close()
        (recovered,) = archive.recovered
        return recovered

    def file(self, path: str = PATH, uid: str = "1.2.3", patient_id: str = "") -> bytes:
        """A file that a server has left there."""
        meta = FileMeta(CT_IMAGE_STORAGE, EXPLICIT_VR_LITTLE_ENDIAN, "SCU", "STORESCP")
        content = meta.encode(uid) + data_set(uid, PatientID=patient_id)
        (self.root / path).parent.mkdir(parents=True, exist_ok=True)
        (self.root / path).write_bytes(content)
        return content

    def journal(self, *paths: str, ended: tuple[str, ...] = (), name: str = "journal") -> None:
        """A journal that a server has left there."""
        self.private.mkdir(parents=True, exist_ok=True)
        journal = Journal(str(self.private / name), None)
        journal.reset()
        journal.begin(list(map(Beginning, paths)))
        for path in ended:
            journal.end(path)
        journal.begin([])
        journal._file.close()
        journal._other.close()

    def lost(self, *paths: str) -> list[str]:
        """Which of *paths* are remembered, and nothing else is, as those whose answer may be lost."""
        directory = self.private / "lost-answers"
        lost = LostAnswers(str(directory), sync=False)
        found = [path for path in paths if path in lost]
        self.assertEqual(len(os.listdir(directory)), len(found))
        return found

    def rows(self) -> dict[str, tuple[int, str | None]]:
        """Size and digest of all rows, by path."""
        index = Index(str(self.private / "index.db"))
        try:
            return {row.path: (row.size, row.digest) for rows in index.rows() for row in rows}
        finally:
            index.close()


class RecoveryTests(ArchiveTestCase):
    """The start after a crash."""

    def test_nothing(self) -> None:
        """A new archive has nothing to recover."""
        self.assertEqual(self.recover(), Recovered(0, [], [], []))

    def test_row_is_missing(self) -> None:
        """A file that was named and not entered is entered; it is found once."""
        for ended in ((), (PATH,)):
            content = self.file()
            self.journal(PATH, ended=ended)
            self.assertEqual(self.recover(), Recovered(1, [PATH], [], []))
            self.assertEqual(self.rows(), {PATH: (len(content), None)})
            os.unlink(self.private / "index.db")

    def test_lost_answers(self) -> None:
        """What was open is remembered as an answer that may be lost; then the journal is done with it."""
        other = "1.2.1/1.2.2/1.2.4.dcm"
        self.file()
        self.file(other, "1.2.4")
        self.journal(PATH, other, ended=(other,))
        for looked_at in (2, 0):
            self.assertEqual(self.recover().looked_at, looked_at)
            self.assertEqual(self.lost(PATH, other), [PATH])

    def test_longest(self) -> None:
        """The same of the longest UIDs in the longest sub-directory, for which no single name would do."""
        directory = "/".join(("a" * 64, "b" * 64, "c" * 64, "d" * (MAX_DIRECTORY - 3 * 65)))
        path = f"{directory}/{'1' * 64}/{'2' * 64}/{'3' * 64}.dcm"
        self.file(path)
        self.journal(path)
        self.assertEqual(self.recover(), Recovered(1, [path], [], []))
        self.assertEqual(self.lost(path), [path])

    def test_workers(self) -> None:
        """What the processes of a server left is recovered by whoever comes: each its own, or one for all."""
        content = self.file()
        other = "1.2.1/1.2.2/1.2.4.dcm"
        self.file(other, "1.2.4")
        self.journal(PATH, name="journal-0")
        self.journal(other, name="journal-1")
        (self.private / "incoming" / "1").mkdir(parents=True)
        (self.private / "incoming" / "1" / "7-1").write_bytes(b"half of it")
        workers = [ServerArchive(self.config(), number) for number in (0, 2)]
        self.assertEqual([worker.recovered[0].entered for worker in workers], [[PATH], []])
        for worker in workers:
            worker.close()
        self.assertEqual(self.rows(), {PATH: (len(content), None)})
        archive = self.open()
        self.assertEqual(sorted(recovered.entered for recovered in archive.recovered), [[], [], [], [other]])
        self.assertEqual(
            sorted(path.name for path in self.private.glob("journal*")), ["journal", "journal.2"]
        )
        self.assertEqual(os.listdir(self.private / "incoming"), [])

    def test_no_file(self) -> None:
        """A name that was never given leaves nothing, not even empty directories; if it has a row, that is told."""
        (self.root / PATH).parent.mkdir(parents=True)
        self.journal(PATH)
        self.assertEqual(self.recover(), Recovered(1, [], [], []))
        self.assertEqual(os.listdir(self.root), [PRIVATE_DIRECTORY])
        self.file()
        self.journal(PATH)
        self.recover()
        os.unlink(self.root / PATH)
        self.journal(PATH)
        self.assertEqual(self.recover(), Recovered(1, [], [PATH], []))
        self.assertEqual(self.recover(), Recovered(0, [], [], []))

    def test_replaced(self) -> None:
        """A file that took another one's place, without its row: the row is that of the file."""
        self.file()
        self.journal(PATH)
        self.recover(digest="sha256")
        content = self.file(patient_id="another one")
        self.journal(PATH)
        self.assertEqual(self.recover(), Recovered(1, [PATH], [], []))
        self.assertEqual(self.rows(), {PATH: (len(content), f"sha256:{hashlib.sha256(content).hexdigest()}")})

    def test_no_instance(self) -> None:
        """What has the name and is no instance is told, and left alone."""
        self.file()
        (self.root / PATH).write_bytes(b"a note")
        self.journal(PATH)
        self.assertEqual(self.recover(), Recovered(1, [], [], [(PATH, "not a DICOM file")]))
        self.assertEqual((self.root / PATH).read_bytes(), b"a note")

    def test_without_index(self) -> None:
        """Without an index only the answers matter."""
        self.file()
        self.journal(PATH)
        self.assertEqual(self.recover(**{"no-index": True}), Recovered(1, [], [], []))
        self.assertEqual(self.lost(PATH), [PATH])

    def test_leftovers(self) -> None:
        """Hidden files of a process that died are removed."""
        (self.private / "incoming").mkdir(parents=True)
        (self.private / "incoming" / "1-2").write_bytes(b"half of it")
        self.recover()
        self.assertEqual(os.listdir(self.private / "incoming"), [])

    def test_twice(self) -> None:
        """A recovery that dies before its end is done by the next one."""
        self.file()
        self.journal(PATH)
        with mock.patch.object(Journal, "reset", side_effect=ZeroDivisionError):
            self.assertRaises(ZeroDivisionError, ServerArchive, self.config())
        with mock.patch.object(Index, "add", side_effect=ZeroDivisionError):
            os.unlink(self.private / "index.db")
            self.assertRaises(ZeroDivisionError, ServerArchive, self.config())
        self.assertEqual(self.recover().entered, [PATH])


class ArchiveTests(ArchiveTestCase):
    """Who may open it."""

    def test_in_use(self) -> None:
        """One at a time: another server is told, and takes nothing away from the first."""
        archive = self.open()
        hidden = archive.directory.create()
        with self.assertRaisesRegex(CannotOpen, "is in use by another server"):
            ServerArchive(self.config(sync="never"))
        archive.directory.name(hidden, PATH)
        hidden.close()
        self.assertTrue((self.root / PATH).exists())

    def test_after_the_first(self) -> None:
        """Whoever comes later may."""
        self.recover()
        self.recover()

    def test_cannot_be_written(self) -> None:
        """One line that says what cannot be written; nothing stays locked."""
        self.root.write_text("a file")
        with self.assertRaisesRegex(CannotOpen, "the storage directory .* cannot be written: "):
            ServerArchive(self.config())
        os.unlink(self.root)
        self.private.mkdir(parents=True)
        (self.private / "index.db").write_text("not a database at all, but some text of some length")
        for _ in range(2):
            with self.assertRaisesRegex(CannotOpen, "index .* not a database"):
                ServerArchive(self.config())
        descriptors = os.listdir("/proc/self/fd")
        self.assertRaises(CannotOpen, ServerArchive, self.config())
        self.assertEqual(len(os.listdir("/proc/self/fd")), len(descriptors))
