"""The database of received instances: SQLite, one writer, any number of readers. Blocking; no Twisted.

What belongs here: the transactions that enter and remove instances, look-up, and the counts. The rows are those of
:mod:`storescp.index_rows`; whoever searches may open the file beside the running server.

Write-ahead logging makes a transaction one append, and leaves the database consistent whenever the process
dies. The writing of an instance is on the hot path of the server: three statements for a whole batch, one row
an instance, and one counter for each series concerned.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Any
from urllib.parse import quote

from storescp import tags
from storescp.flushing import sync_path
from storescp.index_rows import (
    COUNT,
    INSERT_INSTANCE,
    ROW,
    Counts,
    InstanceValues,
    ModalityCounts,
    ReceivedInstance,
    Row,
    Totals,
    prune,
    remove_instances,
    series_of,
)
from storescp.index_schema import SCHEMA_VERSION, create_or_upgrade, schema_of

#: Series whose number is remembered, so that their next instances need no look-up; some 2 MiB.
KNOWN_SERIES = 4096

#: Rows that are looked up or read at a time; SQLite takes 32766 values in a statement, the older ones 999.
BATCH = 500

# synchronous=NORMAL: the log is synced before it is copied back, so even a power cut only takes the last commits;
#   OFF could cost the database, and is no faster while no copying back is going on.
# wal_autocheckpoint: a thread commits, and every 2000 pages (8 MiB) copies back what changed since, each page
#   once: more seldom than by default (1000), as the same few pages change all the time; 10 ms at a time.
# cache_size: 16 MiB, the inner nodes of the indexes of some million instances.
_PRAGMAS = """
    PRAGMA journal_mode = WAL;
    PRAGMA synchronous = NORMAL;
    PRAGMA wal_autocheckpoint = 2000;
    PRAGMA journal_size_limit = 67108864;
    PRAGMA cache_size = -16384;
"""


class IndexUnavailable(Exception):
    """The database cannot be used at present. The message is one line for the operator."""


class Index:
    """The index at *path*, created if missing, with its directories.

    One of an older schema is upgraded, after a copy was made beside it: ``index.db.schema-1.bak``.
    *busy_timeout*: seconds to wait for another writer. Calls must come one at a time, from any thread. Raises
    IndexUnavailable, as every method does.
    """

    def __init__(self, path: str, *, busy_timeout: float = 5.0) -> None:
        self._path = os.path.abspath(path)
        self._busy_timeout = busy_timeout
        self._closed = False
        self._known: dict[tuple[bytes | None, bytes | None], int] = {}
        self._connection: sqlite3.Connection | None = None
        self._named = False  # whether the names of the database and its log are on the disk
        try:
            os.makedirs(os.path.dirname(self._path), exist_ok=True)
            self._connection = self._open("rwc")
        except (sqlite3.Error, OSError) as error:
            raise self._unavailable(error) from error

    def add(self, instances: Sequence[ReceivedInstance]) -> None:
        """Enter *instances*, all or none, in one transaction.

        An instance is known by its path: one that is there already is replaced. Of patient, study and series the
        attributes received first stay, and so does the patient of a study. Raises ValueError for an instance
        without Study or Series Instance UID.
        """
        self._add(instances, None)

    def add_if(
        self, instances: Sequence[ReceivedInstance], condition: Callable[[ReceivedInstance], bool]
    ) -> int:
        """As add(), without those that fail *condition*, which is asked while nobody else can write.

        Returns how many were entered.
        """
        return self._add(instances, condition)

    def _add(
        self, instances: Sequence[ReceivedInstance], condition: Callable[[ReceivedInstance], bool] | None
    ) -> int:
        if not instances:
            return 0
        chosen = instances
        try:
            connection = self._ready()
            try:
                for replace in (False, True):
                    connection.execute("BEGIN IMMEDIATE")
                    if condition is not None:
                        chosen = list(filter(condition, instances))
                    if not chosen or self._enter(connection, chosen, replace=replace):
                        return len(chosen)
                    # Seldom: some paths are there already, or somebody else has removed a series.
                    connection.execute("ROLLBACK")
                    self._known.clear()
                raise sqlite3.IntegrityError("its tables contradict each other")
            finally:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
        except (sqlite3.Error, OSError) as error:
            raise self._unavailable(error) from error

    def remove(self, paths: Iterable[str], condition: Callable[[str], bool] | None = None) -> int:
        """Take the rows of *paths* away, in one transaction, and the series, studies and patients that this empties.

        Those that fail *condition*, which is asked while nobody else can write, stay. Returns the rows removed.
        """
        try:
            connection = self._ready()
            try:
                connection.execute("BEGIN IMMEDIATE")
                removed = remove_instances(connection, filter(condition, paths))
                prune(connection, removed)
                connection.execute("COMMIT")
                self._known.clear()
            finally:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
        except (sqlite3.Error, OSError) as error:
            raise self._unavailable(error) from error
        return removed.total()

    def find(self, path: str) -> Row | None:
        """The row of *path*."""
        return self.find_all([path]).get(path)

    def find_all(self, paths: Sequence[str]) -> dict[str, Row]:
        """The rows of those of *paths* that have one, by path."""
        found = {}
        for start in range(0, len(paths), BATCH):
            part = paths[start : start + BATCH]
            marks = ", ".join("?" * len(part))
            for row in self._select(f"SELECT {ROW} FROM instances WHERE path IN ({marks})", *part):
                found[row[0]] = Row(*row)
        return found

    def find_instances(self, wanted: Collection[str]) -> Iterator[Row]:
        """The rows of instances by SOP Instance UID: several, where one was stored in several places.

        Those entered last come first, by generations (see the schema): when *wanted* is empty, because who looked has
        taken out what it has found, the older ones are not looked at, and the archive's size does not matter.
        """
        ((newest,),) = self._select("SELECT ifnull(max(id) >> 13, -1) FROM instances")
        for generation in range(newest, -1, -1):
            if not (uids := list(wanted)):
                return
            for start in range(0, len(uids), BATCH):
                part = uids[start : start + BATCH]
                marks = ", ".join("?" * len(part))
                where = f"id >> 13 = ? AND sop_instance_uid IN ({marks})"
                for row in self._select(f"SELECT {ROW} FROM instances WHERE {where}", generation, *part):
                    yield Row(*row)

    def rows(self) -> Iterator[list[Row]]:
        """All rows, in batches, between which nothing keeps the log from being copied back.

        What is entered or removed meanwhile may be among them or not.
        """
        last = -1
        while batch := self._select(
            f"SELECT {ROW}, id FROM instances WHERE id > ? ORDER BY id LIMIT {BATCH}", last
        ):
            last = batch[-1][-1]
            yield [Row(*row[:-1]) for row in batch]

    def make_durable(self) -> None:
        """Wait until all that was committed so far is on the disk."""
        # What was committed is in the log, or was copied back: then SQLite has synced the database before it used
        # the log anew. The database must not be opened here: closing it would end this process's locks (fcntl(2)).
        try:
            self._ready()
            with contextlib.suppress(FileNotFoundError):  # nobody has written since all was copied back
                sync_path(self._path + "-wal")
            if not self._named:
                sync_path(os.path.dirname(self._path))
                self._named = True
        except (sqlite3.Error, OSError) as error:
            raise self._unavailable(error) from error

    def totals(self) -> Totals:
        """What the index holds, from the counters of the series."""
        (row,) = self._select(
            "SELECT (SELECT count(*) FROM patients), (SELECT count(*) FROM studies), count(*),"
            " ifnull(sum(instances), 0), ifnull(sum(bytes), 0) FROM series"
        )
        return Totals(*row)

    def modalities(self) -> list[ModalityCounts]:
        """What the index holds, by modality."""
        rows = self._select(
            "SELECT modality, count(*), sum(instances), sum(bytes) FROM series GROUP BY modality"
        )
        return [ModalityCounts(*row) for row in rows]

    def received(self) -> tuple[float, float] | None:
        """When the first and the last of its instances were received, in POSIX seconds; None when it is empty.

        Every row is read for this.
        """
        ((first, last),) = self._select("SELECT min(received_at), max(received_at) FROM instances")
        return None if first is None else (first, last)

    def counts(self, study_instance_uid: str, series_instance_uid: str | None = None) -> Counts:
        """What belongs to a study, or to one of its series; all 0 when it is not known."""
        statement = (
            "SELECT count(*), ifnull(sum(instances), 0), ifnull(sum(bytes), 0) FROM series"
            " WHERE study = (SELECT id FROM studies WHERE study_instance_uid = ?)"
        )
        values = [study_instance_uid]
        if series_instance_uid is not None:
            statement += " AND series_instance_uid = ?"
            values.append(series_instance_uid)
        (row,) = self._select(statement, *values)
        return Counts(*row)

    def close(self) -> None:
        """Close the database: the log is copied back, and its file goes. Nothing happens the second time."""
        self._closed = True
        try:
            self._drop()
        except sqlite3.Error as error:
            raise self._unavailable(error) from error

    # -- the connection --

    def _open(self, mode: str) -> sqlite3.Connection:
        connection = sqlite3.connect(
            f"file:{quote(self._path)}?mode={mode}",
            uri=True,
            timeout=self._busy_timeout,
            isolation_level=None,  # transactions begin and end where this module says so
            check_same_thread=False,
        )
        try:
            version = schema_of(connection)
            if not version and mode != "rwc":
                raise sqlite3.DatabaseError("the database is empty")
            for pragma in _PRAGMAS.split(";"):
                connection.execute(pragma)
            if version != SCHEMA_VERSION:
                create_or_upgrade(connection, self._path)
                connection.execute(f"PRAGMA busy_timeout = {self._busy_timeout * 1000:.0f}")
            status = os.stat(self._path)
        except BaseException:
            connection.close()
            raise
        self._file = status.st_dev, status.st_ino
        self._named = False
        return connection

    def _select(self, statement: str, *values: str | int) -> list[Any]:
        """All that *statement* yields; no transaction stays open."""
        try:
            return self._ready().execute(statement, values).fetchall()
        except (sqlite3.Error, OSError) as error:
            raise self._unavailable(error) from error

    def _ready(self) -> sqlite3.Connection:
        """The connection. SQLite would go on with a file that has been removed or replaced: that is found out here."""
        if self._closed:
            raise IndexUnavailable(f"index {self._path}: closed")
        status = os.stat(self._path)
        if self._connection is not None and (status.st_dev, status.st_ino) != self._file:
            self._drop()
        if self._connection is None:
            self._connection = self._open("rw")  # never created anew: its rows would be missing
        return self._connection

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        self._known.clear()
        if connection is not None:
            connection.close()

    def _unavailable(self, error: Exception) -> IndexUnavailable:
        """What to raise for *error*. The next call begins with a new connection, whatever this one suffers from."""
        try:
            self._drop()
        except sqlite3.Error:
            pass
        what = error.strerror if isinstance(error, OSError) else None
        return IndexUnavailable(f"index {self._path}: {what or error}")

    # -- one transaction --

    def _enter(
        self, connection: sqlite3.Connection, instances: Sequence[ReceivedInstance], *, replace: bool
    ) -> bool:
        """Enter *instances* and commit; false, with the transaction open, when a row is not as it was thought to be."""
        known = self._known
        new: dict[tuple[bytes | None, bytes | None], int] = {}
        rows: list[InstanceValues] = []
        for (
            head,
            sop_class_uid,
            sop_instance_uid,
            syntax_uid,
            path,
            size,
            calling_ae_title,
            received_at,
            digest,
        ) in instances:
            raw, integer = head.raw, head.integer
            key = raw.get(tags.STUDY_INSTANCE_UID), raw.get(tags.SERIES_INSTANCE_UID)
            series = known.get(key) or new.get(key)
            if series is None:
                series = new[key] = series_of(connection, head)
            rows.append(
                (
                    series,
                    sop_instance_uid,
                    sop_class_uid,
                    syntax_uid,
                    integer(tags.INSTANCE_NUMBER),
                    integer(tags.NUMBER_OF_FRAMES),
                    integer(tags.ROWS),
                    integer(tags.COLUMNS),
                    size,
                    path,
                    calling_ae_title,
                    received_at,
                    digest,
                )
            )
        emptied: set[int] = set()
        if replace:
            emptied = {row[0] for row in rows}.union(remove_instances(connection, (row[9] for row in rows)))
            rows = list({row[9]: row for row in rows}.values())
        growth: dict[int, list[int]] = {}
        for row in rows:
            count = growth.setdefault(row[0], [0, 0, row[0]])
            count[0] += 1
            count[1] += row[8]
        if connection.executemany(INSERT_INSTANCE, rows).rowcount != len(rows):
            return False
        if connection.executemany(COUNT, growth.values()).rowcount != len(growth):
            return False
        prune(connection, emptied)
        connection.execute("COMMIT")
        if new:
            known.update(new)
            while len(known) > KNOWN_SERIES:
                del known[next(iter(known))]
        return True
