"""A new server in the place of an old one, behind a socket that outlives both, under load."""

from __future__ import annotations

import itertools
import socket
import threading

from twisted.trial.unittest import SynchronousTestCase

from storescp.pdu import AAssociateAC
from tests.raw_scu import RawSCU, instance
from tests.server import Server, temporary_directory

SENDERS = 4
UPGRADES = 2


class Sender(threading.Thread):
    """Stores one image after the other, each on an association of its own, until it is told to stop."""

    def __init__(self, address: tuple[str, int], name: int) -> None:
        super().__init__(daemon=True)
        self.address = address
        self.number = name
        self.stored: list[str] = []
        self.trouble: list[object] = []
        self.stopped = threading.Event()
        self.one_more = threading.Semaphore(0)
        self.start()

    def run(self) -> None:
        """See Thread."""
        for count in itertools.count(1):
            if self.stopped.is_set():
                return
            uid = f"1.2.{self.number}.{count}"
            try:
                with RawSCU(self.address) as scu:
                    answer = scu.associate()
                    if not isinstance(answer, AAssociateAC):
                        self.trouble.append(answer)
                    elif (status := scu.store(uid, instance(uid))) != 0:
                        self.trouble.append(status)
                    else:
                        self.stored.append(uid)
                        self.one_more.release()
                        scu.release()
            except OSError as error:
                self.trouble.append(error)


class UpgradeTests(SynchronousTestCase):
    """Socket activation: systemd keeps the socket, and what connects waits for the server that comes."""

    def upgrade(self, *options: object) -> None:
        storage = temporary_directory(self) / "received"
        arguments = (*options, "--storage-dir", storage, "--listen", "systemd:domain=INET:index=0")
        with socket.create_server(("127.0.0.1", 0), backlog=128) as listener:
            server = Server(self, *arguments, listen=False, activated=listener)
            senders = [Sender(server.address, number) for number in range(SENDERS)]
            counted = 0
            for _ in range(UPGRADES):
                for sender in senders:
                    sender.one_more.acquire()
                counted += server.stop()["stored"]
                server = Server(self, *arguments, listen=False, activated=listener)
            for sender in senders:
                sender.one_more.acquire()
                sender.stopped.set()
            for sender in senders:
                sender.join()
        counted += server.stop()["stored"]
        self.assertEqual([sender.trouble for sender in senders], [[]] * SENDERS)
        stored = sorted(uid for sender in senders for uid in sender.stored)
        self.assertEqual(sorted(path.stem for path in storage.rglob("*.dcm")), stored)
        self.assertEqual(counted, len(stored))

    def test_one_process(self) -> None:
        """No sender is refused, aborted or told of a failure while one server stops and the next one starts."""
        self.upgrade()

    def test_workers(self) -> None:
        """The same with several processes."""
        self.upgrade("--workers", 2)
