"""storescp.worker_process: processes that do not become ready."""

from __future__ import annotations

import os
import pathlib
import sys

from twisted.internet import reactor as _reactor
from twisted.internet.base import ReactorBase
from twisted.trial.unittest import SynchronousTestCase

from storescp.archive import CannotOpen
from storescp.shared import SharedCounts
from storescp.worker_process import WorkerProcess


class StartTests(SynchronousTestCase):
    """Processes that do not become ready."""

    def setUp(self) -> None:
        counts = SharedCounts.create(1)
        self.addCleanup(os.close, counts.descriptor)
        assert isinstance(_reactor, ReactorBase)
        self.worker = WorkerProcess(
            _reactor,
            0,
            counts.slots[0],
            relay=self.fail,
            ready=self.fail,
            counted=self.fail,
            ended=lambda worker, how, left: self.fail(how),
        )
        self.addCleanup(self.worker.close)
        self.counts = counts.descriptor

    def why(self) -> str:
        with open(os.devnull) as nothing:
            self.worker.spawn(1, nothing.fileno(), self.counts, self.counts)
            return str(self.assertRaises(CannotOpen, self.worker.wait_until_ready))

    def test_error(self) -> None:
        """Whatever goes wrong in it becomes one line."""
        self.assertEqual(self.why(), "worker 0 cannot start: EOFError: Ran out of input")

    def test_no_word(self) -> None:
        """Of one that ends without a word of its own, the end and the last line that it wrote are told."""
        program = pathlib.Path(self.mktemp()).absolute()
        program.write_text("#!/bin/sh\necho ImportError: no luck; exit 3\n")
        program.chmod(0o755)
        self.patch(sys, "executable", str(program))
        self.assertEqual(
            self.why(), "worker 0 ended with exit code 3 before it was ready: ImportError: no luck"
        )

    def test_killed(self) -> None:
        """The same for one that is killed."""
        program = pathlib.Path(self.mktemp()).absolute()
        program.write_text("#!/bin/sh\nkill -9 $$\n")
        program.chmod(0o755)
        self.patch(sys, "executable", str(program))
        self.assertEqual(self.why(), "worker 0 was ended by SIGKILL before it was ready: it said nothing")
