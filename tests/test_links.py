"""Symbolic links below the storage directory, with the real server: nothing is stored, replaced or read behind one."""

from __future__ import annotations

import os
import pathlib
import shutil
import stat
from collections.abc import Sequence

from twisted.trial.unittest import SynchronousTestCase

from storescp.commitment_check import Judge
from storescp.commitment_data import FailureReason, Reference, Request
from storescp.index import Index
from storescp.store import JOURNAL_BYTES
from tests.raw_scu import CT, EXPLICIT, RawSCU, instance
from tests.server import Server, run_twistd, temporary_directory

OUT_OF_RESOURCES = 0xA700
NOT_FOLLOWED = "cannot store: .*symbolic links are not followed"


def content(directory: pathlib.Path) -> dict[str, bytes]:
    """All that there is below *directory*."""
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file() and not path.is_symlink()
    }


class AttackTests(SynchronousTestCase):
    """Directories become links while images come."""

    def replace(self, directory: pathlib.Path, elsewhere: pathlib.Path, *, take: bool) -> None:
        """Put a link in the place of *directory*: to where it has been moved, or to another one."""
        if take:
            directory.rename(elsewhere)
        else:
            shutil.rmtree(directory)
        directory.symlink_to(elsewhere)

    def attack(self, *options: str, size: int = 0) -> None:
        server = Server(self, *options)
        outside = temporary_directory(self)
        with RawSCU(server.address) as scu:
            scu.associate([(CT, EXPLICIT)])
            numbers = iter(range(1, 1000))

            def store() -> tuple[str, object]:
                uid = f"1.2.7.{next(numbers)}"
                return uid, scu.store(uid, instance(uid, pixels=bytes(size)), 1)

            uid, status = store()
            self.assertEqual(status, 0)
            (path,) = (pathlib.Path(path) for path in server.files())
            refused = 0
            for take in (True, False):
                for above in path.parents[:-1]:
                    directory = server.storage / above
                    elsewhere = outside / f"{take}-{len(above.parts)}"
                    if not take:
                        shutil.copytree(directory, elsewhere)
                    self.replace(directory, elsewhere, take=take)
                    before = content(outside)
                    refused += 1
                    self.assertEqual(store()[1], OUT_OF_RESOURCES)
                    # And one that is there already, behind the link.
                    self.assertEqual(
                        scu.store(uid, instance(uid, pixels=bytes(size + 2)), 1), OUT_OF_RESOURCES
                    )
                    self.assertEqual(content(outside), before)
                    self.assertIn(str(directory), server.wait_for(f"{NOT_FOLLOWED}: .*")[0])
                    directory.unlink()
                    uid, status = store()
                    self.assertEqual(status, 0)
                    self.assertIn(f"{path.parent}/{uid}.dcm", server.files())
                    self.assertEqual(content(outside), before)
            self.assertEqual(refused, 4)
            scu.release()
        server.stop()
        self.assertEqual(server.litter(), [])

    def test_small(self) -> None:
        """Small images, with a sync: by way of the journal."""
        self.attack()

    def test_large(self) -> None:
        """Large images, with a sync of their own and a hidden name; nothing that stands behind a link is replaced."""
        self.attack("--duplicate", "replace", size=JOURNAL_BYTES)

    def test_workers(self) -> None:
        """Several processes, without syncs, ignoring duplicates: none counts as stored that is behind a link."""
        self.attack("--workers", "2", "--sync", "never", "--duplicate", "ignore")


class LinkedFileTests(SynchronousTestCase):
    """A link in the place of a stored file."""

    def test_never_followed(self) -> None:
        """It is neither read for a comparison nor written; to replace means to replace the link."""
        for duplicate, status in (("same", 0x0111), ("ignore", OUT_OF_RESOURCES), ("replace", 0)):
            server = Server(self, "--duplicate", duplicate)
            outside = temporary_directory(self) / "outside.dcm"
            data = instance("1.2.3")
            with RawSCU(server.address) as scu:
                scu.associate([(CT, EXPLICIT)])
                self.assertEqual(scu.store("1.2.3", data, 1), 0)
                (path,) = server.files().values()
                path.rename(outside)
                path.symlink_to(outside)
                before = outside.read_bytes()
                self.assertEqual(scu.store("1.2.3", data, 1), status, duplicate)
                scu.release()
            self.assertEqual(outside.read_bytes(), before)
            self.assertEqual(path.is_symlink(), duplicate != "replace")
            server.stop()


class CommitmentTests(SynchronousTestCase):
    """A link in the place of a file that storage commitment is asked for."""

    def test_not_committed(self) -> None:
        """What is behind a link is not the archive's: it is no longer vouched for."""
        server = Server(self)
        with RawSCU(server.address) as scu:
            scu.associate([(CT, EXPLICIT)])
            self.assertEqual(scu.store("1.2.3", instance("1.2.3"), 1), 0)
            scu.release()
        server.stop()
        index = Index(str(server.storage / ".storescp" / "index.db"))
        judge = Judge(str(server.storage), index, lambda uid: True, is_synced=True)
        self.addCleanup(judge.close)
        reference = Reference(CT, "1.2.3")
        request = Request("1.2.9", (reference,))
        self.assertEqual(judge.report(request).committed, (reference,))
        (path,) = server.files().values()
        outside = temporary_directory(self) / "study"
        path.parent.rename(outside)
        path.parent.symlink_to(outside)
        failed = ((reference, FailureReason.PROCESSING_FAILURE),)
        self.assertEqual((judge.report(request).committed, judge.report(request).failed), ((), failed))


class StartTests(SynchronousTestCase):
    """What is found at the start."""

    def test_private_directory(self) -> None:
        """That .storescp is a link is a reason not to start, in one line."""
        home = temporary_directory(self)
        (home / "received").mkdir()
        (home / "elsewhere").mkdir()
        (home / "received/.storescp").symlink_to(home / "elsewhere")
        done = run_twistd("--listen", "tcp:0", cwd=home)
        self.assertEqual(done.returncode, 1)
        self.assertIn(f"symbolic links are not followed: '{home}/received/.storescp'", done.stderr)
        self.assertEqual(len(done.stderr.splitlines()), 1)
        self.assertEqual(os.listdir(home / "elsewhere"), [])

    def test_storage_directory(self) -> None:
        """The storage directory itself may be a link."""
        elsewhere = temporary_directory(self)
        link = temporary_directory(self) / "link"
        link.symlink_to(elsewhere)
        server = Server(self, "--storage-dir", link)
        server.storage = elsewhere
        with RawSCU(server.address) as scu:
            scu.associate([(CT, EXPLICIT)])
            self.assertEqual(scu.store("1.2.3", instance("1.2.3"), 1), 0)
            scu.release()
        self.assertEqual(len(server.files()), 1)
        server.stop()


class ModeTests(SynchronousTestCase):
    """Permissions of what is stored."""

    def modes(self, umask: int, *options: object) -> dict[str, int]:
        """Of all that is below the storage directory after one image of each size, and of that itself."""
        before = os.umask(umask)
        try:
            server = Server(self, *options)
        finally:
            os.umask(before)
        with RawSCU(server.address) as scu:
            scu.associate([(CT, EXPLICIT)])
            for uid, size in (("1.2.1", 0), ("1.2.2", JOURNAL_BYTES)):
                self.assertEqual(scu.store(uid, instance(uid, pixels=bytes(size)), 1), 0)
            scu.release()
        modes = {"": stat.S_IMODE(server.storage.stat().st_mode)}
        for path in server.storage.rglob("*"):
            name = path.relative_to(server.storage)
            if len(name.parts) == 1 or name.parts[0] != ".storescp":
                modes[str(name)] = stat.S_IMODE(path.stat().st_mode)
        server.stop()
        return modes

    def check(self, modes: dict[str, int], file: int, directory: int) -> None:
        expected = {
            name: file
            if name.endswith(".dcm")
            else 0o700 | directory & 0o2000
            if name == ".storescp"
            else directory
            for name in modes
        }
        self.assertEqual(modes, expected)
        self.assertEqual(sum(name.endswith(".dcm") for name in modes), 2)

    def test_exact(self) -> None:
        """They are those of the options, whatever the umask is, with one process and with several."""
        options: Sequence[object] = ("--file-mode", "0640", "--directory-mode", "2750")
        self.check(self.modes(0o77, *options), 0o640, 0o2750)
        self.check(self.modes(0o00, *options, "--sync", "never", "--workers", "2"), 0o640, 0o2750)

    def test_group(self) -> None:
        """Where the storage directory hands its group on, directories and files of every size have that group."""
        storage = temporary_directory(self) / "received"
        storage.mkdir()
        os.chown(storage, -1, 12345)
        storage.chmod(0o2750)
        for options in ((), ("--directory-mode", "2750")):
            server = Server(self, "--storage-dir", storage, *options)
            with RawSCU(server.address) as scu:
                scu.associate([(CT, EXPLICIT)])
                for uid, size in ((f"1.2.{len(options)}1", 0), (f"1.2.{len(options)}2", JOURNAL_BYTES)):
                    self.assertEqual(scu.store(uid, instance(uid, pixels=bytes(size)), 1), 0)
                scu.release()
            server.stop()
        paths = [path for path in storage.rglob("*") if ".storescp" not in path.parts]
        self.assertEqual(len([path for path in paths if path.is_file()]), 4)
        self.assertEqual({path.stat().st_gid for path in paths}, {12345})

    def test_umask(self) -> None:
        """Without options the umask decides, but nobody else is let into .storescp, which has the index."""
        self.check(self.modes(0o22), 0o644, 0o755)
