"""storescp.door: who gets which connection, with real channels, and workers played by the tests."""

from __future__ import annotations

import os
import socket
from typing import IO

from twisted.internet import reactor as _reactor
from twisted.internet.base import ReactorBase
from twisted.trial.unittest import SynchronousTestCase

from storescp.channel import Channel, Kind
from storescp.door import hand_over, make_room
from storescp.shared import SharedCounts
from storescp.worker_process import Accepted, WorkerProcess


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
                counted=self.fail,
                ended=lambda worker, how, left: self.fail(how),
            )
            ours, theirs = Channel.pair()
            self.addCleanup(ours.close)
            self.addCleanup(theirs.close)
            self.addCleanup(self.close, number)
            worker.attach(ours)
            worker.is_ready = True
            theirs.set_blocking(False)
            self.workers.append(worker)
            self.ends.append(theirs)

    def credentials(self) -> IO[bytes]:
        """A file such as workers are given for TLS."""
        file = os.fdopen(os.memfd_create("credentials"), "wb", buffering=0)
        self.addCleanup(file.close)
        return file

    def give(self, count: int = 1, max_pending: int = 1000) -> list[bool]:
        taken = []
        for _ in range(count):
            connection = self.connection.dup()
            taken.append(hand_over(Accepted(connection), self.workers, max_pending) is not None)
            if not taken[-1]:
                connection.close()
        return taken

    def close(self, number: int) -> None:
        for accepted in self.workers[number].close():
            accepted.connection.close()

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
                self.slots[number].taken += message.kind in (Kind.CONNECTION, Kind.SECURE)

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
                slot.settled = slot.handed
        self.assertEqual([slot.taken for slot in self.slots], [2, 2, 2])

    def test_least_busy(self) -> None:
        """Associations count, and so do connections that have none yet, read or not."""
        self.slots[0].associations = 5
        self.slots[1].settled = -3
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
        self.slots[1].settled = -4
        self.slots[0].associations = self.slots[2].associations = 10
        self.give(3, max_pending=4)
        # It is not counted twice, what is yet to be dropped.
        drop, take = Kind.DROP, Kind.CONNECTION
        self.assertEqual(self.read(1), [drop, take, drop, take, drop, take])
        self.slots[1].settled += 2  # two have got associations
        self.slots[1].associations += 2
        self.give(2, max_pending=4)
        self.assertEqual([self.read(number) for number in range(3)], [[], [take, take], []])

    def test_make_room(self) -> None:
        """Too many that came otherwise are dropped by whoever has the most of them, each once."""
        for slot, waiting in zip(self.slots, (1, 4, 3), strict=True):
            slot.settled = -waiting
        for _ in range(2):
            make_room(self.workers, 5)
        self.assertEqual([self.read(number) for number in range(3)], [[], [Kind.DROP] * 2, [Kind.DROP]])
        make_room(self.workers, 4)
        self.assertEqual([self.read(number) for number in range(3)], [[], [Kind.DROP], []])

    def test_make_room_in_vain(self) -> None:
        """Where there is no room for the message nothing is dropped, and nobody waits for it."""
        self.slots[1].settled = -4
        self.ends[1].close()
        make_room(self.workers, 3)
        self.assertEqual(self.workers[1].waiting, 4)

    def test_left(self) -> None:
        """Connections stay open here until they are taken; of a worker that ends, those are left that were not.

        With TLS or without: and which they are is not forgotten.
        """
        credentials = self.credentials()
        peers = []
        for secure in (False, True, False, True):
            connection, peer = socket.socketpair()
            self.addCleanup(peer.close)
            peer.setblocking(False)
            self.assertTrue(self.workers[0].take(Accepted(connection, secure), credentials))
            peers.append(peer)
        for kind in (Kind.CONNECTION, Kind.CREDENTIALS, Kind.SECURE):
            message = self.ends[0].receive()
            assert message is not None
            self.assertIs(message.kind, kind)
            os.close(message.descriptor)
            self.slots[0].taken += kind is not Kind.CREDENTIALS
        self.assertEqual(self.slots[0].waiting, 4)
        self.assertRaises(BlockingIOError, peers[0].recv, 1)
        self.assertTrue(self.workers[0].take(Accepted(self.connection.dup())))
        self.assertEqual([peer.recv(1) for peer in peers[:2]], [b""] * 2)
        self.ends[0].close()
        left = self.workers[0].close()
        for connection, _, _ in left:
            self.addCleanup(connection.close)
        self.assertEqual([accepted.secure for accepted in left], [False, True, False])
        for (connection, _, _), peer in zip(left, peers[2:], strict=False):
            connection.sendall(b"x")
            self.assertEqual(peer.recv(2), b"x")

    def test_credentials(self) -> None:
        """A worker gets the credentials for TLS before the first connection that needs them, and when they change."""

        def give(*secures: bool, credentials: IO[bytes]) -> list[Kind]:
            for secure in secures:
                self.assertTrue(self.workers[0].take(Accepted(self.connection.dup(), secure), credentials))
            return self.read(0)

        one, other = self.credentials(), self.credentials()
        plain, secure, file = Kind.CONNECTION, Kind.SECURE, Kind.CREDENTIALS
        self.assertEqual(give(False, True, True, credentials=one), [plain, file, secure, secure])
        self.assertEqual(give(False, True, credentials=other), [plain, file, secure])
        self.assertEqual((self.slots[0].handed, self.slots[0].taken), (5, 5))
        self.close(0)
        ours, theirs = Channel.pair()
        self.addCleanup(ours.close)
        self.addCleanup(theirs.close)
        theirs.set_blocking(False)
        self.workers[0].attach(ours)
        self.ends[0] = theirs
        self.assertEqual(give(True, credentials=other), [file, secure])

    def test_configuration(self) -> None:
        """New settings reach a worker before the next connection, also when there was no room for them at first."""
        settings, connection = Kind.CONFIGURATION, Kind.CONNECTION
        self.workers[0].configure(self.credentials())
        self.assertEqual(self.read(0), [settings])
        while self.workers[0].drop_oldest():
            pass
        self.workers[0].configure(self.credentials())
        self.assertFalse(self.workers[0].take(Accepted(self.connection)))
        self.assertEqual(set(self.read(0)), {Kind.DROP})
        self.assertTrue(self.workers[0].take(Accepted(self.connection.dup())))
        self.assertTrue(self.workers[0].take(Accepted(self.connection.dup())))
        self.assertEqual(self.read(0), [settings, connection, connection])
        self.close(0)
        self.workers[0].configure(self.credentials())  # there is no process: the next one starts with them

    def test_replaced(self) -> None:
        """A new process in a place begins with nothing."""
        self.give(3)
        self.close(0)
        ours, theirs = Channel.pair()
        self.addCleanup(ours.close)
        self.addCleanup(theirs.close)
        self.workers[0].attach(ours)
        self.assertFalse(self.workers[0].is_ready)
        self.assertEqual((self.workers[0].load[0], self.workers[0].waiting), (0, 0))
