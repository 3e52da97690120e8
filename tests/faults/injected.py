"""System calls of the write path that fail, one after the other: strace(1) makes them, in the running server.

One good instance is traced to learn which calls there are; then each of them fails in turn with each error that it
may have, once, and each kind of call with all that follow. The answer must be a failure that leaves nothing behind,
or Success with everything there; the next instance on the same association must succeed.

In the same way the server is killed at each of these calls.
"""

from __future__ import annotations

import os
import pathlib
import random
import re
import signal
import subprocess
from collections import Counter

from twisted.trial.unittest import SynchronousTestCase

from storescp.beneath import MOST
from storescp.store import JOURNAL_BYTES
from tests.faults.load import (
    ABSENT,
    OUT_OF_RESOURCES,
    SUCCESS,
    FaultServer,
    Item,
    Ledger,
    Tally,
    Violation,
    check,
    check_hidden,
    check_index,
    content_digest,
    empty_directories,
    visible,
)
from tests.raw_scu import CT, EXPLICIT, EXPLICIT_CONTEXT, RawSCU
from tests.server import DEADLINE, temporary_directory

#: What may fail, and how. (write(2) is not there: the threads wake the reactor by it, files are written by writev.
#: Nor fcntl(2): a lock that cannot be let go is one that SQLite waits for, 10 seconds, to answer A700H then.)
ERRORS = {
    "openat": ("ENOSPC", "EIO", "EDQUOT", "EMFILE", "ENOMEM"),
    "writev": ("ENOSPC", "EIO", "EDQUOT", "EFBIG"),
    "pwrite64": ("ENOSPC", "EIO"),
    "pwritev2": ("ENOSPC", "EIO", "EDQUOT"),
    "sync_file_range": ("EIO", "ENOSPC"),
    "io_submit": ("EAGAIN", "EINVAL"),
    "io_getevents": ("EINVAL",),
    "pread64": ("EIO",),
    "fdatasync": ("ENOSPC", "EIO", "EDQUOT"),
    "fsync": ("ENOSPC", "EIO", "EDQUOT"),
    "ftruncate": ("ENOSPC", "EIO"),
    "linkat": ("ENOSPC", "EIO", "EDQUOT"),
    "link": ("ENOSPC", "EIO", "EDQUOT"),
    "rename": ("ENOSPC", "EIO"),
    "mkdir": ("ENOSPC", "EIO", "EDQUOT"),
    "unlink": ("EIO",),
    "newfstatat": ("EIO",),
    "mmap": ("ENOMEM",),
    "close": ("EIO",),
}


class Strace:
    """strace on the threads of a server while the context lasts; on the reactor's only if that is asked for."""

    def __init__(self, pid: int, output: pathlib.Path, *options: str, reactor: bool = False) -> None:
        threads = [name for name in os.listdir(f"/proc/{pid}/task") if reactor or int(name) != pid]
        self.until_death = False  # it cannot let go of what is just dying
        self._output = output
        self._process = subprocess.Popen(
            ["strace", "-o", output, *options, *(word for thread in threads for word in ("-p", thread))],
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self._process.stderr is not None
        said = [self._process.stderr.readline() for _ in threads]
        if not all(line.endswith(" attached\n") for line in said):
            self.__exit__()
            raise AssertionError(f"strace: {''.join(said)}")

    def __enter__(self) -> Strace:
        return self

    def __exit__(self, *error: object) -> None:
        if not self.until_death:
            self._process.send_signal(signal.SIGINT)
        try:
            self._process.communicate(timeout=DEADLINE)
        finally:
            self._process.kill()

    # -- to be asked for after the end of the context --

    def calls(self) -> Counter[str]:
        """How often each call was made by the thread that made it most often."""
        found = re.findall(r"^(\d+) +(\w+)\(", self.text, re.MULTILINE)
        most: Counter[str] = Counter()
        for (_, call), count in Counter(found).items():
            most[call] = max(most[call], count)
        return most

    @property
    def text(self) -> str:
        """All that it wrote."""
        return self._output.read_text("utf-8", "replace")


class _Victim:
    """A server, an association with it, and what it has stored."""

    def __init__(self, case: SynchronousTestCase, seed: int, duplicate: str, *, index: bool) -> None:
        self.index = index
        self.storage = temporary_directory(case) / "received"
        self.incoming = self.storage / ".storescp" / "incoming"
        self.trace = temporary_directory(case) / "trace"
        self.options = ["--duplicate", duplicate, *([] if index else ["--no-index"])]
        self.ledger = Ledger(duplicate, "hierarchical")
        self._case = case
        self._seed = seed
        self._number = 0
        self.start()

    def start(self) -> None:
        """Start the server, and an association with it."""
        self.server = FaultServer(self._case, self.storage, *self.options)
        self._scu = RawSCU(self.server.address)
        self._case.addCleanup(self._scu.socket.close)
        self._scu.associate(((CT, EXPLICIT),) * 2)

    def new(self, size: int) -> Item:
        """An instance of another study than all before."""
        self._number += 1
        return Item(f"1.2.{self._seed}.{self._number}", self._seed * 100_000 + self._number, size)

    def attempt(self, item: Item) -> int | None:
        """Send it; its status, or None if there was no answer."""
        content = item.data_set
        self.ledger.sending(item, content)
        status = self._scu.store(item.uid, content, EXPLICIT_CONTEXT)
        if not isinstance(status, int):
            return None
        self.ledger.answered(item, content, status)
        return status

    def send(self, item: Item) -> int:
        """Send it; its status."""
        status = self.attempt(item)
        if status is None:
            raise Violation(f"the association has ended\n{self.server.output}\n{self.server.stderr}")
        return status

    def release(self) -> None:
        """End the association in good order."""
        self._scu.release()

    def strace(self, *options: str, reactor: bool = False) -> Strace:
        return Strace(self.server.process.pid, self.trace, *options, reactor=reactor)

    def descriptors(self) -> int:
        """How many the server has open."""
        return len(os.listdir(f"/proc/{self.server.process.pid}/fd"))

    def check(self, item: Item, status: int, call: str) -> None:
        """What *status* says of *item* is so."""
        if status not in (SUCCESS, OUT_OF_RESOURCES):
            raise Violation(f"answered {status:04X}H\n{self.server.output[-3000:]}")
        path = item.path("hierarchical")
        file = self.storage / path
        self.ledger.found(path, content_digest(file) if file.exists() else ABSENT)
        names = set(visible(self.storage))
        expected = {name for name, possible in self.ledger.possible.items() if ABSENT not in possible}
        if names != expected:
            raise Violation(f"visible: {names ^ expected}")
        if empty := empty_directories(self.storage):
            raise Violation(f"empty directories: {empty}")
        if call in ("unlink", "close"):
            for left in self.incoming.iterdir():  # hidden until the next start: it could not be let go
                left.unlink()
        check_hidden(self.storage)
        if self.index:
            check_index(self.storage, self.storage / ".storescp" / "index.db")


def injected_errors(
    case: SynchronousTestCase,
    seed: int,
    *,
    index: bool = True,
    replace: bool = False,
    size: int = 20_000,
    limit: int | None = None,
) -> Tally:
    """Send instances with *size* bytes of pixels, the first ones of their study, while a system call fails.

    With *replace* each takes the place of a stored one. Of all errors a sample of *limit* is tried.
    """
    source = random.Random(seed)
    victim = _Victim(case, seed, "replace" if replace else "reject", index=index)
    tally = Tally()

    def prepared() -> Item:
        item = victim.new(size)
        if replace:
            case.assertEqual(victim.send(item), SUCCESS)
            item = item._replace(version=1)
        return item

    case.assertEqual(victim.send(victim.new(size)), SUCCESS)
    item = prepared()
    with victim.strace() as strace:
        case.assertEqual(victim.send(item), SUCCESS)
    counts = strace.calls()
    faults = [
        (call, error, when)
        for call, errors in ERRORS.items()
        for error in errors
        for when in [*map(str, range(1, counts[call] + 1)), "1+"]
        if counts[call]
    ]
    syncs = {"fdatasync"} if size <= JOURNAL_BYTES else {"sync_file_range", "io_submit", "io_getevents"}
    case.assertLessEqual({"openat", "writev", "pwritev2", *syncs}, {call for call, _, _ in faults})
    if limit is not None:
        faults = sorted(source.sample(faults, min(limit, len(faults))))
    descriptors = victim.descriptors()
    for call, error, when in faults:
        item = prepared()
        try:
            with victim.strace(
                "-e", f"trace={call}", "-e", f"inject={call}:error={error}:when={when}"
            ) as strace:
                status = victim.send(item)
            injected = strace.text.count("(INJECTED)")
            tally.injected_errors += injected
            if call == "close":
                descriptors += injected  # the call was never made
            victim.check(item, status, call)
            if (after := victim.send(victim.new(1024))) != SUCCESS:
                raise Violation(f"the next instance gets {after:04X}H")
        except Violation as violation:
            raise Violation(
                f"seed {seed}, {call}, {error}, when {when}: {violation}\n{strace.text}"
            ) from None
    tally.instances_checked = check(victim.storage, victim.ledger)
    if victim.descriptors() > descriptors + MOST + 2:  # directories are kept open for a moment
        raise Violation(f"the server keeps {victim.descriptors() - descriptors} descriptors")
    victim.release()
    victim.server.stop()
    with FaultServer(case, victim.storage, *victim.options) as server:
        check_hidden(victim.storage)
        tally.instances_checked += check(victim.storage, victim.ledger)
        server.stop()
    tally.instances_acknowledged = victim.ledger.acknowledged
    return tally


def killed_at_calls(
    case: SynchronousTestCase,
    seed: int,
    *,
    index: bool = True,
    duplicate: str = "reject",
    limit: int | None = None,
) -> Tally:
    """SIGKILL at a system call, those of the answer among them, at a sample of *limit* of them all.

    After the next start everything agrees, and the instance sent again gets Success, whatever became of it before.
    Under --duplicate replace it was to take the place of another one.
    """
    source = random.Random(seed)
    victim = _Victim(case, seed, duplicate, index=index)

    def prepared() -> Item:
        item = victim.new(20_000)
        if duplicate == "replace":
            case.assertEqual(victim.send(item), SUCCESS)
            item = item._replace(version=1)
        return item

    item = prepared()
    with victim.strace(reactor=True) as strace:
        case.assertEqual(victim.send(item), SUCCESS)
    deadly = {*ERRORS, "sendto", "write"}
    moments = [
        (call, when) for call, n in strace.calls().items() if call in deadly for when in range(1, n + 1)
    ]
    case.assertLessEqual({"writev", "pwritev2", "fdatasync", "sendto"}, {call for call, _ in moments})
    if limit is not None:
        moments = sorted(source.sample(moments, min(limit, len(moments))))
    tally = Tally()
    for call, when in moments:
        item = prepared()
        try:
            with victim.strace(
                "-e", f"trace={call}", "-e", f"inject={call}:signal=KILL:when={when}", reactor=True
            ) as strace:
                status = victim.attempt(item)
                strace.until_death = status is None
            victim.server.kill()  # it is dead, unless this time it got by without that call
            victim.server.wait()
            tally.kills += 1
            tally.instances_checked += check(victim.storage, victim.ledger.copy())
            victim.start()
            tally.instances_checked += check(victim.storage, victim.ledger)
            check_hidden(victim.storage)
            if index:
                check_index(victim.storage, victim.storage / ".storescp" / "index.db")
            if status is None and (again := victim.send(item)) != SUCCESS:
                raise Violation(f"sent again it gets {again:04X}H")
        except Violation as violation:
            raise Violation(f"seed {seed}, killed at {call} {when}: {violation}\n{strace.text}") from None
    victim.release()
    victim.server.stop()
    tally.instances_checked += check(victim.storage, victim.ledger)
    tally.instances_acknowledged = victim.ledger.acknowledged
    return tally
