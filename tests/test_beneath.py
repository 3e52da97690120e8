"""storescp.beneath: directories are reached without following a link, with the system call for that and without."""

from __future__ import annotations

import os
import pathlib
import stat
import time

from twisted.trial.unittest import SynchronousTestCase

from storescp import beneath
from storescp.beneath import KEPT, MOST, Beneath, Modes, Recent, SymbolicLink, make_directory
from tests.server import descriptors


def opened(*roots: pathlib.Path) -> int:
    """How many files and directories below *roots* this process has open; other tests may leave and close others."""
    return sum(path.startswith(tuple(map(str, roots))) for path in descriptors(os.getpid()))


class BeneathTests(SynchronousTestCase):
    """By openat2."""

    has_call = True
    modes = Modes()

    def setUp(self) -> None:
        self.root = pathlib.Path(self.mktemp()).absolute()
        (self.root / "a/b").mkdir(parents=True)
        (self.root / "a/b/file").write_bytes(b"here")
        self.elsewhere = pathlib.Path(self.mktemp()).absolute()
        (self.elsewhere / "b").mkdir(parents=True)
        (self.elsewhere / "b/file").write_bytes(b"elsewhere")
        (self.root / "link").symlink_to(self.elsewhere)
        (self.root / "a/inside").symlink_to("b")
        (self.root / "a/b/linked").symlink_to("file")
        self.beneath = Beneath(str(self.root), self.modes)
        self.beneath._has_call = self.has_call
        self.addCleanup(self.beneath.close)

    def path(self, descriptor: int) -> str:
        """Of what *descriptor*, which is closed, has open."""
        path = os.path.relpath(os.readlink(f"/proc/self/fd/{descriptor}"), self.root)
        os.close(descriptor)
        return path

    def test_open(self) -> None:
        """What is there can be opened, down from the root itself."""
        self.assertEqual([self.path(self.beneath.open(path)) for path in ("", "a", "a/b")], [".", "a", "a/b"])
        self.assertEqual(self.path(self.beneath.open_file("a/b/file")), "a/b/file")
        self.assertEqual(self.path(self.beneath.make("a/b/c/d")), "a/b/c/d")
        self.assertEqual(self.path(self.beneath.make("a/b/c/d")), "a/b/c/d")

    def test_absent(self) -> None:
        """What is not there is FileNotFoundError, and a file is no directory."""
        for path in ("x", "a/x", "a/x/y"):
            self.assertRaises(FileNotFoundError, self.beneath.open, path)
            self.assertRaises(FileNotFoundError, self.beneath.open_file, path)
            self.assertFalse(self.beneath.has(path))
        for ask in (self.beneath.open, self.beneath.make, self.beneath.open_file, self.beneath.has):
            error = self.assertRaises(NotADirectoryError, ask, "a/b/file/x")
            self.assertIn("a/b/file", error.filename)
        self.assertRaises(NotADirectoryError, self.beneath.open, "a/b/file")

    def test_links(self) -> None:
        """A link is not followed, wherever it is and leads to, and is named; nothing is made behind it."""
        for path, link in (("link/b", "link"), ("a/inside", "a/inside"), ("link/new/er", "link")):
            for ask in (self.beneath.open, self.beneath.make):
                error = self.assertRaises(SymbolicLink, ask, path)
                self.assertEqual(error.filename, str(self.root / link))
        for path, link in (
            ("link/b/file", "link"),
            ("a/inside/file", "a/inside"),
            ("a/b/linked", "a/b/linked"),
        ):
            error = self.assertRaises(SymbolicLink, self.beneath.open_file, path)
            self.assertEqual(error.filename, str(self.root / link))
        self.assertEqual(sorted(os.listdir(self.elsewhere)), ["b"])

    def test_has(self) -> None:
        """A name is taken by a file, a directory or a link; what is behind a link is not looked at."""
        self.assertTrue(all(map(self.beneath.has, ("a", "a/b/file", "link", "a/b/linked", "a/inside"))))
        for path in ("link/b/file", "link/x", "a/inside/file"):
            self.assertRaises(SymbolicLink, self.beneath.has, path)

    def test_upwards(self) -> None:
        """Nothing leads out of the root."""
        self.assertRaises(OSError, self.beneath.open, "/etc")

    def test_root(self) -> None:
        """The root may be reached by links."""
        (self.elsewhere / "root").symlink_to(self.root)
        other = Beneath(str(self.elsewhere / "root"))
        self.addCleanup(other.close)
        self.assertEqual(self.path(other.open("a/b")), "a/b")

    def test_descriptors(self) -> None:
        """None is left open, whatever the outcome."""
        before = opened(self.root, self.elsewhere)
        for path in ("a/b", "x", "x/y", "link", "link/b", "a/b/file/x", "a/inside/file", "a/b/file"):
            for ask in (self.beneath.open, self.beneath.open_file, self.beneath.has):
                try:
                    found = ask(path)
                except OSError:
                    continue
                if not isinstance(found, bool):
                    os.close(found)
        self.assertEqual(opened(self.root, self.elsewhere), before)

    def test_swapped(self) -> None:
        """A directory that was opened is the one that it was, and another try finds the link."""
        descriptor = self.beneath.open("a/b")
        (self.root / "a").rename(self.root / "c")
        (self.root / "a").symlink_to(self.elsewhere)
        self.assertEqual(self.path(descriptor), "c/b")
        self.assertRaises(SymbolicLink, self.beneath.open, "a/b")


class WalkTests(BeneathTests):
    """Component by component, where the system has no openat2."""

    has_call = False

    def test_upwards(self) -> None:
        """Only a path of the server's own could: those have no such components."""


class FilteredTests(SynchronousTestCase):
    """Where openat2 is missing."""

    def test_found_out(self) -> None:
        """That the call does not exist is found out by the first try, which succeeds all the same."""
        root = pathlib.Path(self.mktemp())
        (root / "a").mkdir(parents=True)
        self.patch(beneath, "_OPENAT2", 100_000)  # ENOSYS, of the real system
        below = Beneath(str(root))
        self.addCleanup(below.close)
        os.close(below.open("a"))
        self.assertEqual((below._has_call, below.has("a"), below.has("b")), (False, True, False))


class ModesTests(SynchronousTestCase):
    """Permissions of directories."""

    def test_exact(self) -> None:
        """Those that are made have the mode, whatever the umask is; those that are there keep theirs."""
        for umask in (0, 0o22, 0o77):
            root = pathlib.Path(self.mktemp())
            (root / "a").mkdir(parents=True)
            (root / "a").chmod(0o705)
            before = os.umask(umask)
            try:
                below = Beneath(str(root), Modes(directory=0o2751))
                self.addCleanup(below.close)
                os.close(below.make("a/b/c"))
                os.close(make_directory(str(root / "d"), 0o700))
            finally:
                os.umask(before)
            modes = [stat.S_IMODE((root / path).stat().st_mode) for path in ("a", "a/b", "a/b/c", "d")]
            self.assertEqual(modes, [0o705, 0o2751, 0o2751, 0o700])


class RecentTests(SynchronousTestCase):
    """Directories that are kept open."""

    def setUp(self) -> None:
        self.root = pathlib.Path(self.mktemp()).absolute()
        for number in range(MOST + 1):
            (self.root / str(number)).mkdir(parents=True)
        below = Beneath(str(self.root))
        self.addCleanup(below.close)
        self.recent = Recent(below)
        self.addCleanup(self.recent.close)
        self.now = 100.0
        self.patch(time, "monotonic", lambda: self.now)

    def test_for_a_moment(self) -> None:
        """One is opened once, and again when the moment is over: it may be another one then."""
        first = self.recent.open("1")
        inode = os.fstat(first).st_ino
        (self.root / "1").rename(self.root / "moved")
        (self.root / "1").mkdir()
        self.now += KEPT * 0.99
        self.assertEqual(self.recent.open("1"), first)
        self.now += KEPT
        self.assertNotEqual(os.fstat(self.recent.open("1")).st_ino, inode)

    def test_bound(self) -> None:
        """Not many are open, and none when it is closed."""
        before = opened(self.root)
        for number in range(MOST + 1):
            self.recent.open(str(number))
        self.assertEqual(opened(self.root), before + MOST)
        self.recent.close()
        self.assertEqual(opened(self.root), before)
