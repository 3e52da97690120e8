"""Power cuts, at the level of blocks.

The server stores on a file system whose disk is :mod:`tests.faults.recorder`. A power cut at any moment leaves what
was written before the last flush that was through, and of what was written later any part: all of it, none, some,
some of the sectors of the last one. Each such disk can be made from the record, and is mounted as after a cut: what
had been acknowledged at that moment must be there.
"""

from __future__ import annotations

import functools
import mmap
import pathlib
import random
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence

from twisted.trial.unittest import SynchronousTestCase

from storescp.archive import ServerArchive
from storescp.config import load
from tests.faults.disks import Mount, command, make_image, tmpfs
from tests.faults.kill import kill_beyond
from tests.faults.load import (
    DUPLICATE,
    SUCCESS,
    FaultServer,
    Ledger,
    Load,
    Tally,
    Violation,
    check,
    check_hidden,
    check_index,
    plans,
)
from tests.faults.recorder import Entry, entries
from tests.server import DEADLINE, ROOT, environment

#: Bytes that a disk writes all or nothing of. A superblock must never be torn: only that of XFS has 512.
SECTORS = {"xfs": 512}
SECTOR = 4096


class RecordedDisk:
    """A disk with a file system of *kind*, mounted at ``directory``, all in the directory *home*."""

    def __init__(self, case: SynchronousTestCase, home: pathlib.Path, kind: str) -> None:
        self.base = home / "before.img"
        self._log = home / "log"
        disk, counter, served = home / "disk", home / "counter", home / "disk.img"
        make_image(self.base, kind)
        command("cp", "--sparse=always", self.base, disk)
        served.touch()
        counter.write_bytes(bytes(8))
        self._recorder = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.recorder", disk, self._log, counter, served],
            cwd=ROOT,
            env=environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._served = served
        self._on = True
        assert self._recorder.stdout is not None
        with open(counter, "rb") as file:
            self._counter = mmap.mmap(file.fileno(), 8, prot=mmap.PROT_READ)
        case.addCleanup(self._off)
        case.assertEqual(self._recorder.stdout.readline(), "ready\n")
        self._mount = Mount(case, home / "mounted", "-o", "loop", served)
        self.directory = self._mount.directory

    def count(self) -> int:
        """Writes and flushes until now."""
        return int.from_bytes(self._counter[:8], "little")

    def close(self) -> list[Entry]:
        """Unmount it; all its writes and flushes."""
        self._mount.unmount()
        self._off()
        with open(self._log, "rb") as log:
            return list(entries(log))

    def _off(self) -> None:
        if self._on:
            self._on = False
            self._counter.close()
            command("umount", self._served, ok=(0, 32))  # 32: it never got mounted
            try:
                self._recorder.wait(DEADLINE)
            finally:
                self._recorder.kill()
                assert self._recorder.stdout is not None
                self._recorder.stdout.close()
                self._recorder.wait()


class Replay:
    """The disk as a power cut may have left it. Cuts must be asked for in their order."""

    def __init__(self, record: Sequence[Entry], base: pathlib.Path) -> None:
        self._record = record
        self._base = base
        self._done = 0

    def cut(self, at: int, survives: Callable[[int], bytes], image: pathlib.Path) -> None:
        """Make *image* the disk of a cut after *at* entries. Of the writes that no flush has followed *survives*
        tells, by their number, what has reached the disk.
        """
        flushed = max((n + 1 for n in range(self._done, at) if not self._record[n].data), default=self._done)
        _write(self._base, ((entry.offset, entry.data) for entry in self._record[self._done : flushed]))
        self._done = flushed
        command("cp", "--sparse=always", self._base, image)
        _write(image, ((self._record[n].offset, survives(n)) for n in range(flushed, at)))

    def unflushed(self, at: int) -> int:
        """How many writes a cut there puts in doubt."""
        number = at
        while number and self._record[number - 1].data:
            number -= 1
        return at - number


def _write(path: pathlib.Path, writes: Iterator[tuple[int, bytes]]) -> None:
    with open(path, "r+b") as file:
        for offset, data in writes:
            file.seek(offset)
            file.write(data)


def survivors(
    source: random.Random, record: Sequence[Entry], sector: int
) -> Iterator[tuple[str, Callable[[int], bytes]]]:
    """Ways in which writes in doubt may end."""

    def torn(number: int) -> bytes:
        data = record[number].data
        return data[: source.randrange(len(data) // sector + 1) * sector] if data else b""

    yield "none", lambda number: b""
    yield "all", lambda number: record[number].data
    yield "some", lambda number: record[number].data if source.random() < 0.5 else b""
    yield "torn", torn


def power_cuts(
    case: SynchronousTestCase,
    seed: int,
    *,
    kind: str,
    cuts: int,
    starts: int = 1,
    sync: str = "always",
    duplicate: str = "reject",
    naming: str = "hierarchical",
    instances: int = 10,
    index: bool = True,
    kills: int = 0,
    window: int = 1,
) -> Tally:
    """Record a load of four associations, of *window* instances at a time, on a file system of *kind*, then look at
    *cuts* moments, in four ways each.

    Without an *index*, whose syncs may do for more than itself, the files have but their own. The server is killed
    *kills* times meanwhile: what it had named and not synced, the next one must not take for stored. In *starts* of
    the disks thus made the server is started, and index and files must agree.
    """
    source = random.Random(seed)
    home = tmpfs(case, "size=4g")
    disk = RecordedDisk(case, home, kind)
    options = ["--naming", naming, "--duplicate", duplicate, *([] if index else ["--no-index"])]
    ledger = Ledger(duplicate, naming, disk.count)
    sent = plans(source, associations=4, instances=instances, prefix=str(seed), largest=512 * 1024)
    load = Load(ledger, sent, window)
    volume = sum(item.size for todo in load.todo for item in todo)
    for limit in [*sorted(source.randrange(volume) for _ in range(kills)), None]:
        with FaultServer(case, disk.directory / "received", "--sync", sync, *options) as server:
            load.run(server.address, functools.partial(kill_beyond, server, limit))
            end = disk.count()
    case.assertEqual(load.left, 0)
    case.assertLessEqual(load.statuses.keys(), {SUCCESS, DUPLICATE})
    record = disk.close()
    tally = Tally(kills=kills, instances_acknowledged=ledger.acknowledged)
    replay = Replay(record, disk.base)
    boundaries = [n for n in range(1, end) if not record[n].data]
    # At the end of each interval between flushes most is in doubt; right after a flush nothing is.
    moments = [
        *source.sample(boundaries, min(cuts // 2, len(boundaries))),
        *(n + 1 for n in source.sample(boundaries, min(cuts // 4, len(boundaries)))),
    ]
    moments += [source.randrange(1, end) for _ in range(cuts - len(moments) - 1)]
    chosen = sorted((moment, way) for moment in [*moments, end] for way in range(4))
    started = set(source.sample(range(len(chosen)), min(starts, len(chosen))))
    ways = list(survivors(source, record, SECTORS.get(kind, SECTOR)))
    image = home / "after.img"
    for number, (at, way) in enumerate(chosen):
        if way and not replay.unflushed(at):
            continue  # all the same
        name, survives = ways[way]
        try:
            replay.cut(at, survives, image)
            tally += after_cut(case, home, image, kind, ledger.at(at), options, start=number in started)
        except Violation as violation:
            raise Violation(
                f"{kind}, --sync {sync}, seed {seed}, cut after {at} of {end} writes and flushes,"
                f" of {replay.unflushed(at)} in doubt {name}: {violation}"
            ) from None
    return tally


def after_cut(
    case: SynchronousTestCase,
    home: pathlib.Path,
    image: pathlib.Path,
    kind: str,
    ledger: Ledger,
    options: Sequence[str],
    *,
    start: bool,
) -> Tally:
    """Look at the disk *image* as one does after a power cut, or *start* the server on it, with these *options*."""
    if kind == "ext4 without journal":
        command("e2fsck", "-f", "-y", image, ok=(0, 1))
    mount = Mount(case, home / "after", "-o", "loop", image)
    try:
        storage = mount.directory / "received"
        if storage.exists():  # else the server had not even begun
            # What a start does first: what the journal has the content of comes back.
            ServerArchive(
                load(None, {"storage-dir": str(storage), "no-index": "--no-index" in options})
            ).close()
        tally = Tally(power_cuts=1, instances_checked=check(storage, ledger))
        if start:
            with FaultServer(case, storage, *options) as server:
                tally.instances_checked += check(storage, ledger)
                check_hidden(storage)
                if "--no-index" not in options:
                    check_index(storage, storage / ".storescp" / "index.db")
                server.stop()
        return tally
    finally:
        mount.unmount()
