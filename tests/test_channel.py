"""The channel between a server and a worker, on real sockets."""

from __future__ import annotations

import os
import resource
import socket

from twisted.trial.unittest import SynchronousTestCase

from storescp.channel import Channel, Kind, Message


class ChannelTests(SynchronousTestCase):
    """Both ends in one process."""

    def setUp(self) -> None:
        self.one, self.other = Channel.pair()
        self.addCleanup(self.one.close)
        self.addCleanup(self.other.close)

    def connection(self) -> tuple[socket.socket, socket.socket]:
        pair = socket.socketpair()
        for end in pair:
            self.addCleanup(end.close)
        return pair

    def test_messages(self) -> None:
        """Messages arrive one by one, in their order, in both directions."""
        self.assertTrue(self.one.send(Kind.DROP))
        self.assertTrue(self.one.send(Kind.STOP))
        self.assertTrue(self.other.send(Kind.FAILED, "kein Platz für das Verzeichnis"))
        self.assertEqual(self.other.receive(), Message(Kind.DROP, "", -1))
        self.assertEqual(self.other.receive(), Message(Kind.STOP, "", -1))
        self.assertEqual(self.one.receive(), Message(Kind.FAILED, "kein Platz für das Verzeichnis", -1))

    def test_long_text(self) -> None:
        """A text of any length is cut to what a message may hold."""
        self.assertTrue(self.one.send(Kind.FAILED, "x" * 1_000_000))
        message = self.other.receive()
        assert message is not None
        self.assertEqual(message.text, "x" * 4095)

    def test_connection(self) -> None:
        """A connection lives on with the receiver, with what was sent before, when the sender has closed its own."""
        peer, connection = self.connection()
        peer.sendall(b"early")
        self.assertTrue(self.one.send(Kind.CONNECTION, connection=connection))
        connection.close()
        message = self.other.receive()
        assert message is not None
        self.assertIs(message.kind, Kind.CONNECTION)
        with socket.socket(fileno=message.descriptor) as received:
            self.assertFalse(os.get_inheritable(message.descriptor))
            self.assertEqual(received.recv(10), b"early")
            received.sendall(b"answer")
        self.assertEqual((peer.recv(10), peer.recv(10)), (b"answer", b""))

    def test_too_many_files(self) -> None:
        """A connection for which the receiver has no descriptor left arrives without, and is closed."""
        peer, connection = self.connection()
        self.assertTrue(self.one.send(Kind.CONNECTION, connection=connection))
        connection.close()
        lowest = os.dup(0)
        os.close(lowest)
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, limits[1]))
        try:
            message = self.other.receive()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        self.assertEqual(message, Message(Kind.CONNECTION, "", -1))
        self.assertEqual(peer.recv(10), b"")

    def test_nothing_to_receive(self) -> None:
        """Without a message receiving does not wait, if so wanted."""
        self.one.set_blocking(False)
        self.assertRaises(BlockingIOError, self.one.receive)

    def test_full(self) -> None:
        """Who does not read is not waited for; when it has read, there is room again."""
        sent = 0
        while self.one.send(Kind.DROP):
            sent += 1
        self.assertGreater(sent, 50)
        self.assertFalse(self.one.send(Kind.STOP))
        self.one.end()
        for _ in range(sent):
            self.assertEqual(self.other.receive(), Message(Kind.DROP, "", -1))
        self.assertIsNone(self.other.receive())

    def test_gone(self) -> None:
        """Of a side that has gone, the other receives what it had sent, and then None; sending does not raise."""
        self.one.send(Kind.READY)
        self.one.close()
        self.assertEqual(self.other.receive(), Message(Kind.READY, "", -1))
        self.assertIsNone(self.other.receive())
        self.assertFalse(self.other.send(Kind.STOP))
        self.other.end()

    def test_gone_without_reading(self) -> None:
        """The same when it has left something unread."""
        self.other.send(Kind.STOP)
        self.one.close()
        self.assertIsNone(self.other.receive())
