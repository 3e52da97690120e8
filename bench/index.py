"""The index when it is large: how fast rows go in, and how long the server takes to start with it.

An index of a million instances and one of ten thousand take turns, in transactions as the server makes them with
eight senders. The rows are like real ones: series of some hundred instances, four in a study, and UIDs without
any order.
"""

from __future__ import annotations

import pathlib
import random
import re
import statistics
import subprocess
import time
from collections.abc import Iterator

from bench.check import Check
from bench.measure import Report
from bench.objects import (
    CT_IMAGE_STORAGE,
    EXPLICIT_VR_LITTLE_ENDIAN,
    SMALLEST_SIZE,
    ObjectStream,
    object_template,
)
from bench.peers import Peer, PeerFailed, Place, environment, free_port
from bench.storage import Storage
from storescp import tags
from storescp.dataset_head import Head, HeadReader
from storescp.index import Index
from storescp.index_rows import ReceivedInstance

FEW, MANY = 10_000, 1_000_000
_SENDERS = 8
_ROUND, _TURN = 4_000, 400  # rows
_BULK = 1_000  # rows of a transaction when only the result matters
_SERIES_OF_STUDY = 4
_START_SECONDS = 30.0
_RECEIVED_AT = 1_700_000_000.0


class Rows:
    """Instances as ``senders`` modalities would send them at the same time, one after the other from each.

    The same for the same ``seed``.
    """

    def __init__(self, seed: int, senders: int = _SENDERS) -> None:
        self._random = random.Random(seed)
        stream = ObjectStream("1" * 20, 0)
        stream.use(object_template(SMALLEST_SIZE, 0))
        stream.advance(1)
        reader = HeadReader(EXPLICIT_VR_LITTLE_ENDIAN)
        reader.feed(stream.data_set())
        self._raw = reader.finish().raw
        self._senders = [self._send() for _ in range(senders)]

    def take(self, count: int) -> list[ReceivedInstance]:
        """The next ``count``."""
        senders = self._senders
        return [next(senders[number % len(senders)]) for number in range(count)]

    def _uid(self) -> str:
        return f"2.25.{self._random.getrandbits(128)}"

    def _send(self) -> Iterator[ReceivedInstance]:
        while True:
            study, patient = self._uid(), b"%010d" % self._random.randrange(10**10)
            for series_number in range(1, _SERIES_OF_STUDY + 1):
                series = self._uid()
                raw = self._raw | {
                    tags.STUDY_INSTANCE_UID: study.encode(),
                    tags.SERIES_INSTANCE_UID: series.encode(),
                    tags.SERIES_NUMBER: b"%d" % series_number,
                    tags.PATIENT_ID: patient,
                    tags.PATIENT_NAME: b"Phantom^" + patient,
                    tags.ACCESSION_NUMBER: patient,
                }
                for number in range(1, self._random.randrange(50, 151)):
                    head = Head(raw | {tags.INSTANCE_NUMBER: b"%d" % number})
                    instance = self._uid()
                    yield ReceivedInstance(
                        head,
                        CT_IMAGE_STORAGE,
                        instance,
                        EXPLICIT_VR_LITTLE_ENDIAN,
                        f"{study}/{series}/{instance}.dcm",
                        526_336,
                        "MODALITY",
                        _RECEIVED_AT,
                    )


def fill(index: Index, rows: Rows, count: int) -> None:
    """Adds ``count`` instances."""
    for start in range(0, count, _BULK):
        index.add(rows.take(min(_BULK, count - start)))


def _seconds(index: Index, rows: Rows, count: int) -> float:
    """How long ``count`` rows take, in transactions as the server makes them."""
    batches = [rows.take(_SENDERS) for _ in range(count // _SENDERS)]
    start = time.perf_counter()
    for batch in batches:
        index.add(batch)
    return time.perf_counter() - start


def insert_rates(
    large: Index, directory: pathlib.Path, rows: Rows, rounds: int, *, few: int = FEW
) -> list[tuple[float, float]]:
    """For each round the rate of an index of ``few`` rows, made for it in ``directory``, and of the ``large`` one.

    They take short turns, so that whatever else the machine does is shared.
    """
    rates = []
    for turn in range(rounds):
        path = directory / f"few-{turn}.db"
        small = Index(str(path))
        fill(small, rows, few)
        seconds = [0.0, 0.0]
        for _ in range(_ROUND // _TURN):
            seconds[0] += _seconds(small, rows, _TURN)
            seconds[1] += _seconds(large, rows, _TURN)
        rates.append((_ROUND / seconds[0], _ROUND / seconds[1]))
        small.close()
        path.unlink()
    return rates


def start_seconds(peer: Peer, storage: Storage, path: pathlib.Path) -> float:
    """From the execution of the server to its line "listening", with the index at ``path``. PeerFailed if it ends."""
    directory = storage.new_directory("start")
    place = Place(directory / "storage", directory, free_port())
    command = peer.with_arguments(["--index-db", str(path)]).command(place)
    line, seconds = "", 0.0
    began = time.perf_counter()
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        cwd=directory,
        env=environment(peer),
        text=True,
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if re.search(r"\blistening on\b", line):
                seconds = time.perf_counter() - began
                process.terminate()
                process.communicate()
                break
    storage.remove(directory)
    if process.returncode or not seconds:
        raise PeerFailed(f"{peer.name} did not start: {line.strip() or 'no output'}")
    return seconds


def measure_index(
    peer: Peer, storages: list[Storage], rounds: int, report: Report, many: int = MANY
) -> list[Check]:
    """The rates on every storage, and the start of the server."""
    checks = []
    for storage in storages:
        directory = storage.new_directory("index")
        path = directory / "index.db"
        rows = Rows(seed=1)  # each is new to the index to the end
        report(f"index, {storage.name}, {many:,} instances ...")
        index = Index(str(path))
        fill(index, rows, many)
        rates = insert_rates(index, directory, rows, rounds)
        index.close()
        few, large = (statistics.median(column) for column in zip(*rates, strict=True))
        checks.append(
            Check(
                f"index, {storage.name}",
                f"index, {storage.name}: rows/s with {many:,} instances by those with {FEW:,}",
                statistics.median(b / a for a, b in rates),
                least=0.9,
                detail=f"{large:,.0f} by {few:,.0f}",
            )
        )
        checks.append(_start(peer, storage, path, rounds, report, many))
        storage.remove(directory)
    return checks


def _start(peer: Peer, storage: Storage, path: pathlib.Path, rounds: int, report: Report, many: int) -> Check:
    report(f"start, {storage.name}, {many:,} instances ...")
    value, detail = None, ""
    try:
        empty = statistics.median(
            start_seconds(peer, storage, path.with_name("empty.db")) for _ in range(rounds)
        )
        value = statistics.median(start_seconds(peer, storage, path) for _ in range(rounds))
        detail = f"{empty:.2f} s with none"
    except PeerFailed as failed:
        detail = str(failed)
    title = f"start, {storage.name}: from exec to listening with {many:,} instances in the index"
    return Check(f"start, {storage.name}", title, value, below=2.0, unit="s", detail=detail)
