"""storescp.commit: names that are taken, answers that are lost, and what the journal knows of both."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
from collections.abc import Iterator
from unittest import mock

import storescp.store
from storescp.commit import Committer
from storescp.config import Duplicate
from storescp.dimse import Status
from storescp.journal import Journal
from storescp.lost_answers import LostAnswers
from storescp.space import FreeSpace, SpaceLimit
from storescp.storage_directory import PRIVATE_DIRECTORY
from tests.conversation import data_set
from tests.test_storage_directory import failing
from tests.test_store import PATH, StoreTestCase, origin, unavailable


class SameTests(StoreTestCase):
    """The policy ``same``: another one with the same bytes is a success, with others a duplicate."""

    duplicate = Duplicate.SAME

    def test_same(self) -> None:
        """The same bytes: Success, and the file that was there stays."""
        self.receive(data_set("1.2.3"))

        def written() -> tuple[int, int]:
            """The file and when it was written; when it was read, to be compared, changes with the second."""
            status = (self.root / PATH).stat()
            return status.st_ino, status.st_mtime_ns

        before = written()
        self.assertIs(self.receive(data_set("1.2.3")).status, Status.SUCCESS)
        self.assertEqual(written(), before)
        self.assertEqual(self.index.paths, [PATH])

    def test_other(self) -> None:
        """One bit less, more, or another: 0111H."""
        first = data_set("1.2.3", pixels=bytes(3000))
        self.receive(first)
        for second in (first[:-1], first + b"\0", first[:-1] + b"\1"):
            self.assertIs(self.receive(second).status, Status.DUPLICATE_SOP_INSTANCE)
        self.assertEqual(self.files(), {PATH: self.file(first)})

    def test_other_transfer_syntax(self) -> None:
        """The same bytes in another transfer syntax mean something else."""
        self.receive(data_set("1.2.3"))
        incoming = self.instances.begin(
            origin("1.2.3", transfer_syntax_uid="1.2.840.10008.1.2.4.50"), self.flow
        )
        incoming.write(memoryview(data_set("1.2.3")))
        outcome = incoming.finish()
        self.work()
        self.assertIs(self.successResultOf(outcome).status, Status.DUPLICATE_SOP_INSTANCE)

    def test_no_instance(self) -> None:
        """What has the name may be no DICOM file at all: then it is not the same."""
        (self.root / PATH).parent.mkdir(parents=True)
        (self.root / PATH).write_bytes(b"a note")
        self.assertIs(self.receive(data_set("1.2.3")).status, Status.DUPLICATE_SOP_INSTANCE)
        self.assertEqual((self.root / PATH).read_bytes(), b"a note")

    def test_unreadable(self) -> None:
        """A stored one that cannot be read is a fault, not a success."""
        self.receive(data_set("1.2.3"))
        with mock.patch.object(os, "pread", failing(os.pread, errno.EIO)):
            self.assertIs(self.receive(data_set("1.2.3")).status, Status.OUT_OF_RESOURCES)


class OriginTests(StoreTestCase):
    """What the rule of a sender says goes before what goes for all."""

    def receive_from(self, directory: str, duplicate: Duplicate | None, data: bytes) -> Status:
        source = origin("1.2.3")._replace(directory=directory, duplicate=duplicate)
        incoming = self.instances.begin(source, self.flow)
        incoming.write(memoryview(data))
        outcome = incoming.finish()
        self.work()
        return self.successResultOf(outcome).status

    def test_duplicate(self) -> None:
        """Its policy, not the server's (reject), decides on what is stored already."""
        first, second = data_set("1.2.3"), data_set("1.2.3", PatientID="4712")
        for policy, data, status, kept in (
            (None, first, Status.SUCCESS, first),
            (None, second, Status.DUPLICATE_SOP_INSTANCE, first),
            (Duplicate.IGNORE, second, Status.SUCCESS, first),
            (Duplicate.SAME, first, Status.SUCCESS, first),
            (Duplicate.SAME, second, Status.DUPLICATE_SOP_INSTANCE, first),
            (Duplicate.REPLACE, second, Status.SUCCESS, second),
            (Duplicate.REJECT, first, Status.DUPLICATE_SOP_INSTANCE, second),
        ):
            self.assertIs(self.receive_from("", policy, data), status)
            self.assertEqual(self.files(), {PATH: self.file(kept)})

    def test_directory(self) -> None:
        """The same instance in two directories is two: each has its file and its row."""
        for directory in ("ct/1", "ct/2"):
            self.assertIs(self.receive_from(directory, None, data_set("1.2.3")), Status.SUCCESS)
            self.assertIs(
                self.receive_from(directory, None, data_set("1.2.3")), Status.DUPLICATE_SOP_INSTANCE
            )
        self.assertEqual(sorted(self.files()), [f"ct/1/{PATH}", f"ct/2/{PATH}"])
        self.assertEqual(self.index.paths, [f"ct/1/{PATH}", f"ct/2/{PATH}"])


class LostAnswerTests(StoreTestCase):
    """Under ``reject``, who cannot have had the answer may send the same again."""

    def open_paths(self) -> list[str]:
        """What the next process would find open."""
        return Journal(str(self.root / PRIVATE_DIRECTORY / "journal"), None).open_paths

    def test_acknowledged(self) -> None:
        """Once the peer has the answer, the same again is a duplicate, and the journal has nothing open."""
        outcome = self.receive(data_set("1.2.3"))
        self.assertTrue(outcome.is_open)
        self.instances.acknowledged(outcome.path)
        self.assertIs(self.receive(data_set("1.2.3")).status, Status.DUPLICATE_SOP_INSTANCE)
        self.assertEqual(self.journal.open_paths, [])

    def test_not_known_yet(self) -> None:
        """While the first one's association lasts, the same from another one is a duplicate."""
        self.receive(data_set("1.2.3"))
        self.assertIs(self.receive(data_set("1.2.3")).status, Status.DUPLICATE_SOP_INSTANCE)

    def test_lost(self) -> None:
        """The same bytes are a success, once: the one who sent them has the answer now."""
        self.instances.unacknowledged(self.receive(data_set("1.2.3")).path)
        other = self.receive(data_set("1.2.3", PatientID="other"))
        self.assertIs(other.status, Status.DUPLICATE_SOP_INSTANCE)
        self.assertFalse(other.is_open)
        again = self.receive(data_set("1.2.3"))
        self.assertEqual((again.status, again.is_open), (Status.SUCCESS, True))
        self.instances.acknowledged(again.path)
        self.assertIs(self.receive(data_set("1.2.3")).status, Status.DUPLICATE_SOP_INSTANCE)
        self.assertEqual(self.journal.open_paths, [])

    def test_lost_again(self) -> None:
        """If that answer is lost too, the next one is a success as well."""
        for _ in range(3):
            outcome = self.receive(data_set("1.2.3"))
            self.assertIs(outcome.status, Status.SUCCESS)
            self.instances.unacknowledged(outcome.path)
            self.assertEqual(self.journal.open_paths, [])

    def test_for_all_processes(self) -> None:
        """Whoever else has the archive open, or has it later, knows of lost answers."""
        self.instances.unacknowledged(self.receive(data_set("1.2.3")).path)
        self.lost = LostAnswers(str(self.root / PRIVATE_DIRECTORY / "lost-answers"), sync=False)
        self.assertIn(PATH, self.lost)
        self.instances = self.make_store(self.index)
        again = self.receive(data_set("1.2.3"))
        self.assertIs(again.status, Status.SUCCESS)
        self.instances.acknowledged(again.path)
        self.assertNotIn(PATH, self.lost)

    def test_other_process_dies(self) -> None:
        """Until the second answer has surely arrived, the first one counts as lost."""
        self.instances.unacknowledged(self.receive(data_set("1.2.3")).path)
        for _ in range(2):
            self.assertIs(self.receive(data_set("1.2.3")).status, Status.SUCCESS)

    def test_failures_are_settled(self) -> None:
        """What has failed, or was a duplicate, is not open."""
        self.index.during = unavailable
        self.assertIs(self.receive(data_set("1.2.3")).status, Status.OUT_OF_RESOURCES)
        with mock.patch.object(os, "link", failing(os.link, errno.ENOSPC)):
            self.receive(data_set("1.2.4"), "1.2.4")
        self.assertEqual(self.journal.open_paths, [])
        self.instances.acknowledged(self.receive(data_set("1.2.3")).path)
        self.receive(data_set("1.2.3"))
        self.assertEqual(self.journal.open_paths, [])

    def test_journal_fails(self) -> None:
        """Without the journal nothing gets a name; with it, the next one does."""
        with mock.patch.object(os, "pwritev", failing(os.pwritev, errno.EIO)):
            self.assertIs(self.receive(data_set("1.2.3")).status, Status.OUT_OF_RESOURCES)
        self.assertEqual(self.files(), {})
        self.assertIs(self.receive(data_set("1.2.3")).status, Status.SUCCESS)

    def test_no_lock(self) -> None:
        """Where processes cannot keep out of each other's way nothing is stored, and nothing hangs."""

        @contextlib.contextmanager
        def locked() -> Iterator[None]:
            raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))
            yield

        self.instances._commit = Committer(
            self.directory, self.index, self.journal, self.lost, self.duplicate, locked()
        ).commit
        self.assertIs(self.receive(data_set("1.2.3")).status, Status.OUT_OF_RESOURCES)
        self.assertEqual((self.files(), self.journal.open_paths), ({}, []))

    def test_cannot_be_taken_back(self) -> None:
        """A file that stays although its row does not is left to the next start."""
        self.index.during = unavailable
        with mock.patch.object(os, "unlink", failing(os.unlink, errno.EIO, when=self.visible)):
            self.assertIs(self.receive(data_set("1.2.3")).status, Status.OUT_OF_RESOURCES)
        self.assertEqual(list(self.files()), [PATH])
        self.assertEqual(self.open_paths(), [PATH])


class SyncedTests(LostAnswerTests):
    """The same with everything synced."""

    sync = True

    def test_content_cannot_be_synced(self) -> None:
        """What does not reach the disk gets no name."""
        with mock.patch.object(os, "fdatasync", failing(os.fdatasync, errno.EIO)):
            self.assertIs(self.receive(data_set("1.2.3")).status, Status.OUT_OF_RESOURCES)
        self.assertEqual(self.files(), {})
        self.assertIs(self.receive(data_set("1.2.3")).status, Status.SUCCESS)

    def test_directory_cannot_be_synced(self) -> None:
        """A name that does not reach the disk, of a file that has a sync of its own, is taken back."""
        self.patch(storescp.store, "JOURNAL_BYTES", 0)
        self.directory.sync_together.close()  # one after the other
        with mock.patch.object(os, "fsync", failing(os.fsync, errno.EIO)):
            self.assertIs(self.receive(data_set("1.2.3")).status, Status.OUT_OF_RESOURCES)
        self.assertEqual(self.files(), {})
        self.assertIs(self.receive(data_set("1.2.3")).status, Status.SUCCESS)


class DigestTests(StoreTestCase):
    """Digests, computed while the pieces arrive."""

    def test_digest(self) -> None:
        """That of the whole file is in its row."""
        self.instances.digest = "sha256"
        data = data_set("1.2.3", pixels=bytes(range(256)) * 20_000)
        incoming = self.begin()
        for start in range(0, len(data), 300_000):
            incoming.write(memoryview(data)[start : start + 300_000])
            self.reactor.turn()
        outcome = incoming.finish()
        self.work()
        self.successResultOf(outcome)
        expected = hashlib.sha256((self.root / PATH).read_bytes()).hexdigest()
        self.assertEqual(self.index.commits[0][0].digest, f"sha256:{expected}")


class LowSpaceTests(StoreTestCase):
    """Less free than the limit."""

    def test_refused(self) -> None:
        """A700H, and nothing is written; without a word in the log, for the watch has its own."""
        told: list[bool] = []
        self.instances.space = FreeSpace(
            str(self.root), SpaceLimit(100, True), lambda enough, free: told.append(enough)
        )
        outcome = self.receive(data_set("1.2.3"))
        self.assertEqual(outcome[:2], (Status.OUT_OF_RESOURCES, "free space is below the limit"))
        self.assertEqual((self.files(), told), ({}, [False]))
