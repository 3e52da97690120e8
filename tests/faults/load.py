"""Associations under load that remember what they sent and what was answered, and the check against the disk.

What belongs here: what every fault has in common. A :class:`Ledger` knows what may be stored by all that was sent
and answered; :func:`check` compares it with a storage directory and raises :class:`Violation`.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import pathlib
import random
import signal
import sqlite3
import subprocess
import threading
import time
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

from twisted.trial.unittest import SynchronousTestCase

from storescp.dimse import MESSAGE_ID_BEING_RESPONDED_TO, STATUS, Command
from storescp.pdu import AAssociateAC, AReleaseRQ
from tests.raw_scu import CT, EXPLICIT, RawSCU, element, p_data, store_command
from tests.server import DEADLINE, Server, data_set_offset, file_meta_elements, links

SUCCESS, DUPLICATE, OUT_OF_RESOURCES = 0x0000, 0x0111, 0xA700

#: Bytes of one PDV: a fault can come between any two.
PIECE = 64 * 1024

#: Pixels come from here, so that neither zeros nor bytes of another place pass for them.
_POOL = random.Random(1).randbytes(6 * 1024 * 1024)


class Violation(AssertionError):
    """The promise is broken: something acknowledged is lost, or something is there that must not be."""


@dataclass
class Tally:
    """What was survived."""

    kills: int = 0
    power_cuts: int = 0
    injected_errors: int = 0
    full_disks: int = 0
    instances_acknowledged: int = 0
    instances_checked: int = 0

    def __iadd__(self, other: Tally) -> Tally:
        for each in fields(self):
            setattr(self, each.name, getattr(self, each.name) + getattr(other, each.name))
        return self

    def __str__(self) -> str:
        counts = ((each.name.replace("_", " "), getattr(self, each.name)) for each in fields(self))
        return ", ".join(f"{count} {name}" for name, count in counts if count) or "nothing yet"


class Item(NamedTuple):
    """One version of an instance, with ``size`` bytes of pixels. All versions have the same path."""

    uid: str
    study: int
    size: int
    version: int = 0

    @property
    def data_set(self) -> bytes:
        """In Explicit VR Little Endian."""
        study = f"1.2.840.{self.study}"
        start = zlib.crc32(f"{self.uid} {self.version}".encode()) % (len(_POOL) - self.size)
        return b"".join(
            (
                element(0x00080016, "UI", CT),
                element(0x00080018, "UI", self.uid),
                element(0x00080020, "DA", self._date),
                element(0x00080060, "CS", "CT"),
                element(0x00100020, "LO", f"PATIENT {self.study}"),
                element(0x0020000D, "UI", study),
                element(0x0020000E, "UI", f"{study}.1"),
                element(0x00200013, "IS", str(self.version)),
                element(0x7FE00010, "OW", _POOL[start : start + self.size]),
            )
        )

    @property
    def _date(self) -> str:
        return f"2024{self.study % 12 + 1:02}01"

    def path(self, naming: str) -> str:
        """Below the storage directory."""
        study = f"1.2.840.{self.study}"
        if naming == "flat":
            return f"{self.uid}.dcm"
        if naming == "date":
            return f"{self._date[:4]}/{self._date[4:6]}/{self._date[6:]}/{study}/{self.uid}.dcm"
        return f"{study}/{study}.1/{self.uid}.dcm"


def digest(data: bytes) -> bytes:
    """What versions are told apart by."""
    return hashlib.blake2b(data, digest_size=16).digest()


#: In place of a digest: no file.
ABSENT = b""


class _Event(NamedTuple):
    mark: int
    item: Item
    digest: bytes
    status: int | None  # None: it is about to be sent to its end


class Ledger:
    """What may be stored, by what was sent and answered under the policy *duplicate*.

    ``mark`` dates the events, so that :meth:`at` can tell what was known at an earlier time. Each instance must be
    in the hands of one thread at a time; the ledger may be in those of many.
    """

    def __init__(self, duplicate: str, naming: str, mark: Callable[[], int] = lambda: 0) -> None:
        self.duplicate = duplicate
        self.naming = naming
        self.mark = mark
        self.acknowledged = 0
        self.possible: dict[str, set[bytes]] = {}
        """Path to the digests that its file may have now."""
        self._before: dict[str, set[bytes]] = {}
        self._answered: set[tuple[str, bytes]] = set()
        self._events: list[_Event] = []

    def sending(self, item: Item, content: bytes) -> None:
        """To be called before the last piece of *item* is sent."""
        self._enter(_Event(self.mark(), item, digest(content), None))

    def answered(self, item: Item, content: bytes, status: int) -> None:
        """To be called once the answer is there."""
        self._enter(_Event(self.mark(), item, digest(content), status))

    def at(self, mark: int) -> Ledger:
        """The ledger as it was at *mark*. What was sent then may be stored, what was answered must be."""
        past = Ledger(self.duplicate, self.naming)
        for event in self._events:
            if event.mark <= mark:
                past._enter(event)
        return past

    def copy(self) -> Ledger:
        """One to look at a dead server's files with: what was not answered the next start may yet put there."""
        other = Ledger(self.duplicate, self.naming)
        other.possible = dict(self.possible)
        return other

    def found(self, path: str, content: bytes) -> None:
        """This is what the file has, *content* is a digest or ABSENT. Raises Violation unless it may be so."""
        possible = self.possible.get(path)
        if possible is None:
            raise Violation(f"{path} was never sent")
        if content not in possible:
            if content == ABSENT:
                raise Violation(f"{path} was acknowledged, and is lost")
            raise Violation(f"{path} is not what was acknowledged or sent to its end")
        self.possible[path] = {content}

    def _enter(self, event: _Event) -> None:
        self._events.append(event)
        path, new = event.item.path(self.naming), event.digest
        if event.status is None:
            before = self._before[path] = self.possible.setdefault(path, {ABSENT})
            if self.duplicate == "replace" or ABSENT in before:
                self.possible[path] = before | {new}
            return
        before = self._before[path]
        if event.status == SUCCESS:
            self.acknowledged += 1
            match self.duplicate:
                case "replace":
                    after = {new}
                case "ignore":  # the one that is there stays, whichever that is
                    after = {old or new for old in before}
                case _:
                    after = {new} if before & {ABSENT, new} else set()
            self._answered.add((path, new))
        elif event.status == DUPLICATE:
            after = before - {ABSENT}
            # It is no duplicate where the first answer was lost, and under "same" it never is.
            if self.duplicate == "same" or (path, new) not in self._answered:
                after -= {new}
        else:
            after = before  # a failure leaves nothing behind
        if not after:
            raise Violation(f"{path}: answered {event.status:04X}H under --duplicate {self.duplicate}")
        self.possible[path] = after


class Load:
    """Associations that send *plans*, one a plan, each instance until it is answered, *window* of them at a time.

    Of a connection that ends, what was not answered is sent again by the next :meth:`run`. ``on_bytes`` is told
    from the sending threads of all bytes sent so far.
    """

    def __init__(self, ledger: Ledger, plans: Iterable[Sequence[Item]], window: int = 1) -> None:
        self.ledger = ledger
        self.window = window
        self.todo = [deque(plan) for plan in plans]
        self.statuses: dict[int, int] = {}
        self.sent = 0
        self._lock = threading.Lock()

    @property
    def left(self) -> int:
        """Instances not answered yet."""
        return sum(map(len, self.todo))

    def run(self, address: tuple[str, int], on_bytes: Callable[[int], object] = lambda sent: None) -> None:
        """Send until all is answered or every connection has ended. Raises what a thread raised."""
        errors: list[BaseException] = []

        def work(todo: deque[Item], number: int) -> None:
            try:
                with contextlib.suppress(ConnectionError):  # the server died
                    self._send(todo, RawSCU(address), f"LOAD{number}", on_bytes)
            except BaseException as error:  # noqa: BLE001 - raised below, on the caller's thread
                errors.append(error)

        threads = [threading.Thread(target=work, args=(todo, n)) for n, todo in enumerate(self.todo) if todo]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if errors:
            raise errors[0]

    def _send(self, todo: deque[Item], scu: RawSCU, title: str, on_bytes: Callable[[int], object]) -> None:
        with scu:
            answer = scu.associate(((CT, EXPLICIT),), calling=title, window=self.window)
            if not isinstance(answer, AAssociateAC):
                return
            waiting, outstanding, message_id = deque(todo), dict[int, tuple[Item, bytes]](), 0
            while todo:
                if waiting and len(outstanding) < self.window and not _has(outstanding, waiting[0].uid):
                    item, message_id = waiting.popleft(), message_id + 1
                    content = item.data_set
                    outstanding[message_id] = item, content
                    self._send_item(scu, item, content, message_id, on_bytes)
                    continue
                response = scu.receive()
                if not isinstance(response, Command):
                    return
                item, content = outstanding.pop(response.integer(MESSAGE_ID_BEING_RESPONDED_TO))
                status = response.integer(STATUS)
                self.ledger.answered(item, content, status)
                with self._lock:
                    self.statuses[status] = self.statuses.get(status, 0) + 1
                todo.remove(item)
            scu.send(AReleaseRQ().encode())
            scu.receive()

    def _send_item(
        self, scu: RawSCU, item: Item, content: bytes, message_id: int, on_bytes: Callable[[int], object]
    ) -> None:
        scu.send_command(store_command(item.uid, message_id=message_id), 1)
        for start in range(0, len(content), PIECE):
            last = start + PIECE >= len(content)
            if last:
                self.ledger.sending(item, content)
            scu.send(p_data(1, False, last, content[start : start + PIECE]))
            with self._lock:
                self.sent += PIECE
                sent = self.sent
            on_bytes(sent)


def _has(outstanding: Mapping[int, tuple[Item, bytes]], uid: str) -> bool:
    """Whether a version of the instance is outstanding: the ledger knows of one at a time."""
    return any(item.uid == uid for item, _ in outstanding.values())


def plans(
    source: random.Random, *, associations: int, instances: int, prefix: str, largest: int = 4 << 20
) -> list[list[Item]]:
    """For each association a list of new instances of 1 KiB to *largest* bytes, most of them small, duplicates in
    between: the same content again, and another one.
    """
    result = []
    for association in range(associations):
        plan: list[Item] = []
        for number in range(instances):
            if plan and source.random() < 0.25:
                old = source.choice(plan)
                plan.append(old._replace(version=old.version + source.randrange(2)))
                continue
            size = int(1024 * (largest / 1024) ** (source.random() ** 2)) & ~1
            study = int(prefix) * 10 + source.randrange(4)
            plan.append(Item(f"1.2.{prefix}.{association}.{number}", study, size))
        result.append(plan)
    return result


class FaultServer(Server):
    """A server on a storage directory that outlives it. As a context it ends with that."""

    def __init__(self, case: SynchronousTestCase, storage: pathlib.Path, *options: object) -> None:
        super().__init__(case, "--storage-dir", storage, "--min-free", "0", *options)
        self.storage = storage

    def kill(self) -> None:
        """Have it die at once, with its workers. To be called from any thread."""
        self._stopped = True
        kill_group(self.process)

    def wait(self) -> int:
        """See Server; the workers have ended, too."""
        code = super().wait()
        wait_until_unused(self.storage)
        return code

    def __enter__(self) -> FaultServer:
        return self

    def __exit__(self, *error: object) -> None:
        if self.process.poll() is None:
            self.kill()
            self.wait()


def kill_group(process: subprocess.Popen[Any]) -> None:
    """Kill a process and all that it has started, which are a group."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def wait_until_unused(storage: pathlib.Path) -> None:
    """Wait until no process has the archive any more."""
    with contextlib.suppress(FileNotFoundError), open(storage / ".storescp" / "lock", "rb") as file:
        fcntl.flock(file, fcntl.LOCK_SH)


def check(storage: pathlib.Path, ledger: Ledger) -> int:
    """Every visible file is a whole instance that may be there, and what was acknowledged is there.

    Returns how many files were looked at; raises Violation.
    """
    missing = set(ledger.possible)
    files = visible(storage)
    for name, path in files.items():
        ledger.found(name, content_digest(path))
        missing.discard(name)
    for name in sorted(missing):
        ledger.found(name, ABSENT)
    return len(files)


def content_digest(path: pathlib.Path) -> bytes:
    """That of the data set in a file that must be a whole instance, named as it is. Raises Violation."""
    content = path.read_bytes()
    try:
        offset = data_set_offset(content)
        meta = {number: value for _, number, value in file_meta_elements(content)}
        whole = meta[3].decode() == path.stem
    except (AssertionError, LookupError, ValueError):
        whole = False
    if not whole:
        raise Violation(f"{path.name}, {len(content)} bytes, has no whole File Meta Information")
    return digest(content[offset:])


def visible(storage: pathlib.Path) -> dict[str, pathlib.Path]:
    """What a visitor of the storage directory sees, but for directories: relative path -> path."""
    found = {}
    for directory, directories, names in os.walk(storage):
        if pathlib.Path(directory) == storage and ".storescp" in directories:
            directories.remove(".storescp")
        for name in names:
            path = pathlib.Path(directory, name)
            found[str(path.relative_to(storage))] = path
    return found


def empty_directories(storage: pathlib.Path) -> list[str]:
    """Those that a visitor sees: a crash may leave some, a failure must not."""
    hidden = str(storage / ".storescp")
    return [
        directory
        for directory, directories, names in os.walk(storage)
        if not directories and not names and not directory.startswith(hidden)
    ]


def check_hidden(storage: pathlib.Path) -> None:
    """Nothing is left of what was not finished. Raises Violation.

    What has its other name, too, is finished. Where that was given to another instance meanwhile a living server keeps
    the hidden one until its next checkpoint.
    """
    hidden = storage / ".storescp" / "incoming"
    deadline = time.monotonic() + DEADLINE
    while litter := [name for name in hidden.rglob("*") if not name.is_dir() and links(name) == 1]:
        if time.monotonic() > deadline:
            raise Violation(f"left in .storescp/incoming: {list(map(str, litter))}")
        time.sleep(0.1)


def check_index(storage: pathlib.Path, database: pathlib.Path) -> None:
    """The rows of the index are the files, and the counters of the series count them. Raises Violation."""
    with contextlib.closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as connection:
        rows = dict(connection.execute("SELECT path, size FROM instances"))
        counted = connection.execute("SELECT total(instances), total(bytes) FROM series").fetchone()
        (verdict,) = connection.execute("PRAGMA integrity_check").fetchone()
    files = {name: path.stat().st_size for name, path in visible(storage).items()}
    if verdict != "ok":
        raise Violation(f"the index is damaged: {verdict}")
    if missing := sorted(files.keys() - rows.keys()):
        raise Violation(
            f"{len(missing)} of {len(files)} files have no row in the index, such as {missing[0]}"
        )
    if left := sorted(rows.keys() - files.keys()):
        raise Violation(f"{len(left)} rows of the index have no file, such as {left[0]}")
    if differing := [name for name in files if files[name] != rows[name]]:
        raise Violation(f"the index has another size of {differing}")
    if counted != (len(files), sum(files.values())):
        raise Violation(f"the series count {counted}, there are {(len(files), sum(files.values()))}")
