"""What the server has told the system to put on the disk before it says Success, as strace(1) sees it."""

from __future__ import annotations

import os
import re
import shutil
import threading

from twisted.trial.unittest import SynchronousTestCase

from storescp.store import JOURNAL_BYTES
from tests.faults.injected import Strace
from tests.faults.load import FaultServer
from tests.raw_scu import RawSCU, instance, store, store_command
from tests.server import Server, run, run_twistd, temporary_directory

_CALLS = "trace=openat,pwrite64,pwritev2,pwritev,sync_file_range,"
_CALLS += "fdatasync,fsync,io_submit,io_getevents,link,linkat,sendto"
_FINISHED = re.compile(r"(\d+) +(\w+)\((.*)\) += \d+(?:<[^>]*>)?$")
_UNFINISHED = re.compile(r"(\d+) +(\w+)\((.*) <unfinished \.\.\.>$")
_RESUMED = re.compile(r"(\d+) +<\.\.\. (\w+) resumed>(.*)\) += \d+(?:<[^>]*>)?$")


class _Disk:
    """What is durable, by the calls of a server: ``answers`` never outgrow the instances that ``are_safe``."""

    def __init__(self, case: SynchronousTestCase) -> None:
        self.case = case
        self.answers = 0
        self.are_safe = 0
        self.small = 0  # of which the journal has the content
        self.large = 0  # of which it has but the name
        self._begun: set[str] = set()  # hidden names of files that the disk has begun with,
        self._content: set[str] = set()  # and those whose content is synced
        self._written: dict[str, set[str]] = {"+": set(), "*": set()}  # paths that the journal was told of,
        self._journal: dict[str, set[str]] = {
            "+": set(),
            "*": set(),
        }  # and those that a power cut leaves in it
        self._named: list[str] = []  # paths without their row
        self._hidden: set[str] = set()  # hidden names that a power cut would take
        self._submitted: dict[str, dict[str, set[str]]] = {}  # by thread: what is being synced

    def begins(self, thread: str, call: str, arguments: str) -> None:
        """A call begins."""
        where = _where(arguments)
        if call == "sendto" and ', "\\4\\0' in arguments:
            self.answers += 1
            self.case.assertLessEqual(self.answers, self.are_safe, "an answer came too early")
        elif call in ("fsync", "fdatasync", "io_submit"):
            files = re.findall(r"aio_fildes=\d+<([^>]*)>", arguments) if call == "io_submit" else [where]
            for file in files:
                if "/incoming/" in file:
                    self.case.assertIn(
                        file, self._begun, "the disk was waited for before it had anything to do"
                    )
            # What comes later than the beginning may not be included.
            self._submitted[thread] = {
                file: set(self._hidden) if file.endswith("/incoming") else set() for file in files
            }
            self._submitted[thread].update(
                (kind, set(paths)) for kind, paths in self._written.items() if any(map(_is_journal, files))
            )
        elif _is_journal(where):
            for kind, paths in self._written.items():
                paths.update(re.findall(rf"\{kind}([0-9./]+dcm)\\t", arguments))
        elif where.endswith("index.db-wal"):
            self.are_safe += len(self._named)
            self._named.clear()

    def ends(self, thread: str, call: str, arguments: str) -> None:
        """A call has ended well."""
        if call in ("fsync", "fdatasync", "io_getevents"):
            for where, durable in self._submitted.pop(thread).items():
                if where in self._journal:
                    self._journal[where] |= durable
                elif where.endswith("/incoming"):
                    self._hidden -= durable
                self._content.add(where)
        elif call == "sync_file_range":
            self._begun.add(_where(arguments))
        elif call == "openat" and "O_CREAT" in arguments and "/incoming" in arguments:
            self._hidden.update(_paths(arguments))
        elif call in ("link", "linkat"):
            hidden, target = _paths(arguments)
            path = target.partition("/received/")[2]
            self._named.append(target)
            if path in self._journal["*"]:
                self.small += 1  # content and name
                return
            self.case.assertIn(hidden, self._content, "a name was given before the content was durable")
            self.case.assertNotIn(hidden, self._hidden, "a name was given before the hidden one was durable")
            self.case.assertIn(path, self._journal["+"], "a name was given before the journal was durable")
            self.large += 1


def _is_journal(where: str) -> bool:
    return where.endswith(("/journal", "/journal.2"))


def _paths(arguments: str) -> list[str]:
    """The paths among the arguments, each with the directory whose descriptor stands before it."""
    found = re.findall(r'(?:<([^>]*)>, )?"([^"]*)"', arguments)
    return [os.path.join(directory, name) for directory, name in found]


def _where(arguments: str) -> str:
    """The path of the descriptor that is the first of the arguments."""
    match = re.match(r"\d+<([^>]*)>", arguments)
    return match[1] if match else ""


class OrderTests(SynchronousTestCase):
    """No C-STORE-RSP leaves before the syncs that it stands for."""

    def trace(self, threads: int, each: int, *, window: int = 1) -> _Disk:
        """Associations at once, which send so many instances each, every third one a large one; all at a time if there
        is a *window*.
        """
        server = Server(self, "--sync", "always")
        # The first one makes directories, the journal and the log of the index.
        self.assertEqual(store(server.address, [("1.9", instance("1.9", pixels=bytes(JOURNAL_BYTES)))]), [0])
        output = temporary_directory(self) / "trace"
        statuses: list[object] = []

        def send(number: int) -> None:
            uids = [f"1.2.{number}.{count}" for count in range(each)]
            instances = [
                (uid, instance(uid, pixels=bytes(0 if n % 3 else JOURNAL_BYTES)))
                for n, uid in enumerate(uids)
            ]
            if window == 1:
                statuses.extend(store(server.address, instances))
                return
            with RawSCU(server.address) as scu:
                scu.associate(window=window)
                for message_id, (uid, data) in enumerate(instances, 1):
                    scu.send_command(store_command(uid, message_id=message_id))
                    scu.send_data_set(data)
                statuses.extend(scu.status() for _ in instances)
                scu.release()

        with Strace(server.process.pid, output, "-y", "-s", "8192", "-e", _CALLS, reactor=True) as strace:
            senders = [threading.Thread(target=send, args=(number,)) for number in range(threads)]
            for sender in senders:
                sender.start()
            for sender in senders:
                sender.join()
        self.assertEqual(statuses, [0] * threads * each)
        disk = _Disk(self)
        under_way: dict[str, str] = {}
        for line in strace.text.splitlines():
            if match := _FINISHED.match(line):
                thread, call, arguments = match.groups()
                disk.begins(thread, call, arguments)
                disk.ends(thread, call, arguments)
            elif match := _UNFINISHED.match(line):
                thread, call, arguments = match.groups()
                under_way[thread] = arguments
                disk.begins(thread, call, arguments)
            elif match := _RESUMED.match(line):
                thread, call, rest = match.groups()
                disk.ends(thread, call, under_way.pop(thread) + rest)
        return disk

    def test_one_sender(self) -> None:
        """The journal, and where that has but the name the content with its hidden name; then the name, the row, the
        answer: for each instance.
        """
        disk = self.trace(1, 5)
        self.assertEqual((disk.answers, disk.are_safe, disk.small, disk.large), (5, 5, 3, 2))

    def test_many_senders(self) -> None:
        """However instances share the syncs, none is answered before its own."""
        disk = self.trace(6, 6)
        self.assertEqual((disk.answers, disk.are_safe, disk.small, disk.large), (36, 36, 24, 12))

    def test_window(self) -> None:
        """Of instances that are outstanding on one association none is answered before its own syncs."""
        disk = self.trace(1, 30, window=64)
        self.assertEqual((disk.answers, disk.are_safe, disk.small, disk.large), (30, 30, 20, 10))


class OperatorTests(SynchronousTestCase):
    """What an operator sees of it, with the real server."""

    def test_answer_lost_in_a_crash(self) -> None:
        """Who sends the same again after the server's death gets through, and the next one is a duplicate again."""
        storage = temporary_directory(self) / "received"
        server = FaultServer(self, storage)
        self.assertEqual(store(server.address, [("1.2.3.1", instance("1.2.3.1"))]), [0])
        scu = RawSCU(server.address)
        self.addCleanup(scu.socket.close)
        scu.associate()
        self.assertEqual(scu.store("1.2.3.2", instance("1.2.3.2")), 0)
        server.kill()
        server.wait()
        server = FaultServer(self, storage)
        for uid, data, status in (
            ("1.2.3.2", instance("1.2.3.2", pixels=b"\1\1"), 0x0111),
            ("1.2.3.2", instance("1.2.3.2"), 0),
            ("1.2.3.2", instance("1.2.3.2"), 0x0111),
            ("1.2.3.1", instance("1.2.3.1"), 0x0111),
        ):
            self.assertEqual(store(server.address, [(uid, data)]), [status])
        server.stop()

    def test_row_lost(self) -> None:
        """A start after a crash enters what the index has not, and says so."""
        storage = temporary_directory(self) / "received"
        server = FaultServer(self, storage)
        self.assertEqual(store(server.address, [("1.2.3.1", instance("1.2.3.1"))]), [0])
        server.kill()
        server.wait()
        for path in (storage / ".storescp").glob("index.db*"):
            path.unlink()
        server = FaultServer(self, storage)
        self.assertIn("recovery: 1 instance was stored but not in the index: entered now", server.output)
        server.stop()
        self.assertEqual(
            [path for (path,) in server.rows("SELECT path FROM instances")], list(server.files())
        )

    def test_digest(self) -> None:
        """--digest sha256: the index has what sha256sum(1) says of the file."""
        server = Server(self, "--digest", "sha256")
        self.assertEqual(
            store(server.address, [("1.2.3.1", instance("1.2.3.1", pixels=bytes(3_000_000)))]), [0]
        )
        ((path, digest),) = server.rows("SELECT path, digest FROM instances")
        self.assertEqual(run("sha256sum", server.storage / str(path)).stdout.split()[0], str(digest)[7:])

    def test_min_free(self) -> None:
        """--min-free: A700H for all, one line about it in the log, at the start, and nothing on the disk."""
        server = Server(self, "--min-free", "100%")
        server.wait_for("no images are taken")
        uids = [f"1.2.3.{number}" for number in range(5)]
        self.assertEqual(store(server.address, [(uid, instance(uid)) for uid in uids]), [0xA700] * 5)
        server.stop()
        self.assertEqual(server.output.count("no images are taken"), 1)
        self.assertEqual((server.files(), server.litter()), ({}, []))

    def test_index_removed(self) -> None:
        """An index that is taken away means A700H; when it is back, instances are stored again."""
        server = Server(self)
        with RawSCU(server.address) as scu:
            scu.associate()
            self.assertEqual(scu.store("1.2.3.1", instance("1.2.3.1")), 0)
            index = server.storage / ".storescp" / "index.db"
            index.rename(index.with_suffix(".away"))
            self.assertEqual(scu.store("1.2.3.2", instance("1.2.3.2")), 0xA700)
            self.assertEqual(list(server.files()), ["1.2.3/1.2.3.4/1.2.3.1.dcm"])
            index.with_suffix(".away").rename(index)
            self.assertEqual(scu.store("1.2.3.2", instance("1.2.3.2")), 0)
            scu.release()
        server.wait_for("cannot store: index .*: No such file or directory")
        rows = server.rows("SELECT path FROM instances ORDER BY path")
        self.assertEqual([path for (path,) in rows], list(server.files()))

    def test_restored(self) -> None:
        """An archive without its index, as from a backup: the start says what to do, and after that no more."""
        storage = temporary_directory(self) / "received"
        line = "the index is new, and knows nothing of the files that are there: storescp reindex enters them"
        for number, expected in ((1, False), (2, True), (3, False)):
            server = FaultServer(self, storage)
            self.assertEqual(line in server.output, expected)
            uid = f"1.2.3.{number}"
            self.assertEqual(store(server.address, [(uid, instance(uid))]), [0])
            server.stop()
            if number == 1:
                shutil.rmtree(storage / ".storescp")

    def test_in_use(self) -> None:
        """A second server on the same storage directory ends at once with one line, and the first goes on."""
        server = Server(self)
        ended = run_twistd("--listen", "tcp:0:interface=127.0.0.1", "-d", server.storage, cwd=server.home)
        self.assertEqual(ended.returncode, 1)
        self.assertEqual(
            ended.stderr, f"storescp: the storage directory '{server.storage}' is in use by another server\n"
        )
        self.assertEqual(store(server.address, [("1.2.3.1", instance("1.2.3.1"))]), [0])
