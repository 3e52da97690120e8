"""Who gets which connection: with real channels, and workers played by the tests."""

from __future__ import annotations

import os
import pathlib
import socket
import sys

from twisted.internet import reactor as _reactor
from twisted.internet.base import ReactorBase
from twisted.trial.unittest import SynchronousTestCase

from storescp.archive import CannotOpen
from storescp.channel import Channel, Kind
from storescp.shared import SharedCounts
from storescp.supervisor import hand_over
from storescp.worker_process import WorkerProcess


class HandOverTests(SynchronousTestCase):
    """hand_over()."""

    def setUp(self) -> None:
        counts = SharedCounts.create(3)
        self.addCleanup(os.close, counts.descriptor)
        self.slots = counts.slots
        self.workers: list[WorkerProcess] = []
        self.ends: list[Channel] = []
        self.connection, peer = socket.socketpair()
        self.addCleanup(self.connection.close)
        self.addCleanup(peer.close)
        assert isinstance(_reactor, ReactorBase)
        for number, slot in enumerate(counts.slots):
            worker = WorkerProcess(
                _reactor,
                number,
                slot,
                relay=self.fail,
                ready=self.fail,
                ended=lambda worker, how: self.fail(how),
            )
            ours, theirs = Channel.pair()
            self.addCleanup(ours.close)
            self.addCleanup(theirs.close)
            worker.attach(ours)
            worker.is_ready = True
            theirs.set_blocking(False)
            self.workers.append(worker)
            self.ends.append(theirs)

    def give(self, count: int = 1, max_pending: int = 1000) -> list[bool]:
        return [hand_over(self.connection, self.workers, max_pending) is not None for _ in range(count)]

    def read(self, number: int) -> list[Kind]:
        """What a worker has got, and not read yet; it takes the connections."""
        kinds: list[Kind] = []
        while True:
            try:
                message = self.ends[number].receive()
            except BlockingIOError:
                return kinds
            assert message is not None
            kinds.append(message.kind)
            if message.descriptor >= 0:
                os.close(message.descriptor)
                self.slots[number].taken += 1
                self.slots[number].waiting += 1

    def counts(self) -> list[int]:
        return [len(self.read(number)) for number in range(3)]

    def test_even(self) -> None:
        """Connections that come faster than workers look at them are spread evenly, and so are those that follow."""
        self.give(8)
        self.assertEqual(self.counts(), [3, 3, 2])
        self.give(4)
        self.assertEqual(self.counts(), [1, 1, 2])

    def test_short_ones(self) -> None:
        """Connections that end before the next one comes go to everybody in turn."""
        for _ in range(6):
            self.give()
            self.counts()
            for slot in self.slots:
                slot.waiting = 0
        self.assertEqual([slot.taken for slot in self.slots], [2, 2, 2])

    def test_least_busy(self) -> None:
        """Associations count, and so do connections that have none yet, read or not."""
        self.slots[0].associations = 5
        self.slots[1].waiting = 3
        self.give(3)
        self.assertEqual(self.counts(), [0, 0, 3])
        self.slots[0].associations = 0
        self.give(3)
        self.assertEqual(self.counts(), [3, 0, 0])

    def test_not_ready(self) -> None:
        """A worker that is not ready gets nothing, and if none is, the connection is not taken."""
        self.workers[0].is_ready = self.workers[2].is_ready = False
        self.give(3)
        self.assertEqual(self.counts(), [0, 3, 0])
        self.workers[1].is_ready = False
        self.assertEqual(self.give(), [False])

    def test_full(self) -> None:
        """When one has no room or has gone, the next one gets it; when nobody has, it is not taken."""
        self.ends[0].close()
        self.assertEqual(self.give(3), [True] * 3)
        while all(self.give()):
            pass
        taken = [len(self.read(number)) for number in (1, 2)]
        self.assertGreater(min(taken), 50)
        self.assertEqual(self.give(), [True])

    def test_too_many_waiting(self) -> None:
        """Beyond the limit the worker with the most connections without an association drops one for each new one."""
        self.slots[1].waiting = 4
        self.slots[0].associations = self.slots[2].associations = 10
        self.give(3, max_pending=4)
        # It is not counted twice, what is yet to be dropped.
        drop, take = Kind.DROP, Kind.CONNECTION
        self.assertEqual(self.read(1), [drop, take, drop, take, drop, take])
        self.slots[1].dropped, self.slots[1].waiting = 3, 4
        self.slots[1].associations, self.slots[1].waiting = 2, 2
        self.give(2, max_pending=4)
        self.assertEqual([self.read(number) for number in range(3)], [[], [take, take], []])

    def test_replaced(self) -> None:
        """A new process in a place begins with nothing."""
        self.give(3)
        ours, theirs = Channel.pair()
        self.addCleanup(ours.close)
        self.addCleanup(theirs.close)
        self.workers[0].attach(ours)
        self.assertFalse(self.workers[0].is_ready)
        self.assertEqual((self.workers[0].load[0], self.workers[0].waiting), (0, 0))


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
            ended=lambda worker, how: self.fail(how),
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
