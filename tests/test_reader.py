"""Descriptors that the reactor watches for us."""

from __future__ import annotations

import os

from twisted.internet import reactor as _reactor
from twisted.internet.base import ReactorBase
from twisted.internet.defer import Deferred
from twisted.trial.unittest import TestCase

from storescp.reader import Reader


class ReaderTests(TestCase):
    """Reader, with the real reactor and a pipe."""

    def setUp(self) -> None:
        assert isinstance(_reactor, ReactorBase)
        reading, self.writing = os.pipe()
        self.file = os.fdopen(reading, "rb", buffering=0)
        self.addCleanup(self.file.close)
        self.addCleanup(os.close, self.writing)
        self.reads = 0
        self.done: Deferred[None] = Deferred()
        self.reader = Reader(_reactor, self.file, self.read)
        self.addCleanup(self.reader.stop)

    def read(self) -> None:
        self.reads += 1
        self.file.read(1)
        if self.reads == 3:
            self.reader.stop()
            self.done.callback(None)
        else:
            raise RuntimeError("a fault")

    def test_life(self) -> Deferred[None]:
        """It is called as long as there is something to read and it was not stopped, whatever it raises."""
        os.write(self.writing, b"abcdef")
        self.reader.start()
        self.reader.start()

        def check(_: None) -> None:
            self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 2)
            self.assertEqual(self.file.read(10), b"def")
            self.reader.stop()

        self.done.addCallback(check)
        return self.done
