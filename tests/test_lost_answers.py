"""storescp.lost_answers: a set that outlives its process."""

from __future__ import annotations

import os
from unittest import mock

from twisted.trial.unittest import SynchronousTestCase

from storescp import lost_answers
from storescp.config_callers import MAX_DIRECTORY
from storescp.lost_answers import LostAnswers

PATH = f"2026/11/25/{'1' * 64}/{'2' * 64}.dcm"


class LostAnswersTests(SynchronousTestCase):
    """Sets in a directory of their own."""

    def open(self, *, sync: bool = False) -> LostAnswers:
        return LostAnswers("lost", sync=sync)

    def setUp(self) -> None:
        directory = self.mktemp()
        os.makedirs(directory)
        self.addCleanup(os.chdir, os.getcwd())
        os.chdir(directory)

    def test_set(self) -> None:
        """What was added is in it, for others and for those who come later, until it is taken out."""
        lost, other = self.open(), self.open()
        self.assertNotIn(PATH, lost)
        for _ in range(2):
            lost.add(PATH)
            self.assertIn(PATH, other)
        self.assertIn(PATH, self.open())
        self.assertNotIn(PATH.replace("2", "3"), other)
        for _ in range(2):
            other.discard(PATH)
            self.assertNotIn(PATH, lost)

    def test_longest(self) -> None:
        """The longest path of the longest UIDs in the longest sub-directory can be remembered."""
        directory = "/".join(("a" * 64, "b" * 64, "c" * 64, "d" * (MAX_DIRECTORY - 3 * 65)))
        self.assertEqual(len(directory), MAX_DIRECTORY)
        path = f"{directory}/{'1' * 64}/{'2' * 64}/{'3' * 64}.dcm"
        lost = self.open()
        lost.add(path)
        self.assertIn(path, lost)
        self.assertNotIn(path.replace("3", "4"), lost)

    def test_exact(self) -> None:
        """No path is taken for another one, whatever characters it has."""
        paths = ["a/b/c", "a,b/c", "a,b,c", "a/b,c", "a%2Fb/c", "a/b/c/", "a\tb", "a\nb", "a\udcffb"]
        for path in paths:
            lost = self.open()
            self.assertEqual([other for other in paths if other in lost], [])
            lost.add(path)
            self.assertEqual([other for other in paths if other in lost], [path])
            lost.discard(path)

    def test_bound(self) -> None:
        """Above the bound nothing is added, until others have taken something out."""
        with mock.patch.object(lost_answers, "MAXIMUM", 3):
            lost, other = self.open(), self.open()
            for path in "abcd":
                lost.add(path)
            self.assertEqual([path in lost for path in "abcd"], [True, True, True, False])
            other.discard("a")
            lost.add("d")
            self.assertIn("d", lost)

    def test_sync(self) -> None:
        """What is added reaches the disk if that is wanted."""
        synced: list[str] = []
        record = lambda descriptor: synced.append(os.readlink(f"/proc/self/fd/{descriptor}"))  # noqa: E731
        with mock.patch.object(os, "fsync", record):
            self.open().add("a")
            self.assertEqual(synced, [])
            self.open(sync=True).add("b")
        self.assertEqual(synced, [os.path.abspath("lost")])
