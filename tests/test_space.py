"""storescp.space: below the limit nothing is taken, and what was found is told."""

from __future__ import annotations

import os
from types import SimpleNamespace

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from storescp.space import INTERVAL, FreeSpace, LowSpace, Space, SpaceLimit, SpaceWatch


class FreeSpaceTests(SynchronousTestCase):
    """A file system of 1000 blocks of 4096 bytes."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.free = 500
        self.looks = 0
        self.told: list[tuple[bool, int]] = []
        self.patch(os, "statvfs", self.statvfs)

    def statvfs(self, path: str) -> SimpleNamespace:
        self.looks += 1
        return SimpleNamespace(f_bavail=self.free, f_frsize=4096, f_blocks=1000)

    def watch(self, limit: SpaceLimit) -> FreeSpace:
        return FreeSpace(
            ".", limit, lambda enough, free: self.told.append((enough, free)), self.clock.seconds
        )

    def later(self, space: FreeSpace, free: int) -> bool:
        """Whether there is enough when *free* blocks are."""
        self.free = free
        self.clock.advance(INTERVAL)
        try:
            space.check()
        except LowSpace:
            return False
        return True

    def test_bytes(self) -> None:
        """At the limit there is enough; below it not, until the limit is reached again. Each look is told."""
        space = self.watch(SpaceLimit(409_600, False))
        blocks = (500, 100, 99, 0, 99, 100, 500)
        found = [self.later(space, free) for free in blocks]
        self.assertEqual(found, [True, True, False, False, False, True, True])
        self.assertEqual(
            self.told, [(enough, free * 4096) for enough, free in zip(found, blocks, strict=True)]
        )

    def test_percent(self) -> None:
        """A limit in percent is one of the whole file system."""
        space = self.watch(SpaceLimit(12.5, True))
        self.assertEqual([self.later(space, free) for free in (125, 124)], [True, False])

    def test_none(self) -> None:
        """Without a limit nobody looks."""
        self.assertTrue(self.later(self.watch(SpaceLimit(0, False)), 0))
        self.assertEqual(self.looks, 0)

    def test_other_limit(self) -> None:
        """Another limit counts from the next check on; no limit at all ends a shortage that was told."""
        space = self.watch(SpaceLimit(0, False))
        self.assertTrue(self.later(space, 50))
        space.set_limit(SpaceLimit(10, True))
        self.assertRaises(LowSpace, space.check)
        space.set_limit(SpaceLimit(5, True))
        space.check()
        space.set_limit(SpaceLimit(10, True))
        self.assertRaises(LowSpace, space.check)
        space.set_limit(SpaceLimit(0, False))
        space.check()
        self.assertEqual([enough for enough, _ in self.told], [False, True, False, True])
        space.check()
        self.assertEqual(self.looks, 4)

    def test_interval(self) -> None:
        """A look is good for a while, whatever it has found."""
        space = self.watch(SpaceLimit(409_600, False))
        self.assertFalse(self.later(space, 0))
        for _ in range(10):
            self.assertRaises(LowSpace, space.check)
        self.assertEqual(self.looks, 1)

    def test_as_text(self) -> None:
        """As an operator reads it."""
        self.assertEqual([str(SpaceLimit(1000, False)), str(SpaceLimit(2.5, True))], ["1 kB", "2.5%"])


class SpaceWatchTests(SynchronousTestCase):
    """Who asks has what was found last."""

    def test_look(self) -> None:
        """That is numbers or words, and how long ago."""
        clock = Clock()
        directory = self.mktemp()
        watch = SpaceWatch(directory, clock.seconds)
        self.assertEqual((watch.space, watch.trouble), (None, ""))
        clock.advance(3)
        self.assertEqual(watch.silence, 3)
        os.mkdir(directory)
        watch.look()
        found = os.statvfs(directory)
        assert isinstance(watch.space, Space)
        self.assertEqual(watch.space.total, found.f_blocks * found.f_frsize)
        self.assertEqual((watch.trouble, watch.silence), ("", 0))
        os.rmdir(directory)
        watch.look()
        self.assertEqual((watch.space, watch.trouble), (None, "No such file or directory"))
