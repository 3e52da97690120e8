"""The database of received instances: SQLite, one writer, any number of readers. Blocking; no Twisted.

What belongs here: the transactions that enter and remove instances, look-up, and the counts. The tables are
described in ``index_schema_2.sql``; whoever searches may open the file beside the running server.

Write-ahead logging makes a transaction one append, and leaves the database consistent whenever the process
dies. The writing of an instance is on the hot path of the server: three statements for a whole batch, one row
an instance, and one counter for each series concerned.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Any, NamedTuple
from urllib.parse import quote

from storescp import dataset_head as tags
from storescp.dataset_head import Head
from storescp.flushing import sync_path
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

_INSERT_INSTANCE = """
    INSERT INTO instances (
        series, sop_instance_uid, sop_class_uid, transfer_syntax_uid, instance_number, number_of_frames,
        "rows", "columns", size, path, calling_ae_title, received_at, digest
    ) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (path) DO NOTHING
"""
_ROW = "path, sop_class_uid, sop_instance_uid, transfer_syntax_uid, size, digest"
_COUNT = "UPDATE series SET instances = instances + ?, bytes = bytes + ? WHERE id = ?"

_Row = tuple[
    int, str, str, str, int | None, int | None, int | None, int | None, int, str, str, float, str | None
]  # of instances, as _INSERT_INSTANCE has it


class IndexUnavailable(Exception):
    """The database cannot be used at present. The message is one line for the operator."""


class ReceivedInstance(NamedTuple):
    """One stored instance: ``path`` with "/" under the storage directory, ``size`` of the file in bytes,
    ``received_at`` in POSIX seconds, ``digest`` of the file as "algorithm:hexadecimal".
    """

    head: Head
    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str
    path: str
    size: int
    calling_ae_title: str
    received_at: float
    digest: str | None = None


class Row(NamedTuple):
    """What the index knows of one file."""

    path: str
    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str
    size: int
    digest: str | None


class Totals(NamedTuple):
    """How much there is in the index."""

    patients: int
    studies: int
    series: int
    instances: int
    bytes: int


class ModalityCounts(NamedTuple):
    """How much there is of a modality; None for series that do not name theirs."""

    modality: str | None
    series: int
    instances: int
    bytes: int


class Counts(NamedTuple):
    """How much there is in a study or series."""

    series: int
    instances: int
    bytes: int


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
                removed = _remove(connection, filter(condition, paths))
                _prune(connection, removed)
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
            for row in self._select(f"SELECT {_ROW} FROM instances WHERE path IN ({marks})", *part):
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
                for row in self._select(f"SELECT {_ROW} FROM instances WHERE {where}", generation, *part):
                    yield Row(*row)

    def rows(self) -> Iterator[list[Row]]:
        """All rows, in batches, between which nothing keeps the log from being copied back.

        What is entered or removed meanwhile may be among them or not.
        """
        last = -1
        while batch := self._select(
            f"SELECT {_ROW}, id FROM instances WHERE id > ? ORDER BY id LIMIT {BATCH}", last
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
        rows: list[_Row] = []
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
                series = new[key] = _series(connection, head)
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
            emptied = {row[0] for row in rows}.union(_remove(connection, (row[9] for row in rows)))
            rows = list({row[9]: row for row in rows}.values())
        growth: dict[int, list[int]] = {}
        for row in rows:
            count = growth.setdefault(row[0], [0, 0, row[0]])
            count[0] += 1
            count[1] += row[8]
        if connection.executemany(_INSERT_INSTANCE, rows).rowcount != len(rows):
            return False
        if connection.executemany(_COUNT, growth.values()).rowcount != len(growth):
            return False
        _prune(connection, emptied)
        connection.execute("COMMIT")
        if new:
            known.update(new)
            while len(known) > KNOWN_SERIES:
                del known[next(iter(known))]
        return True


def _series(connection: sqlite3.Connection, head: Head) -> int:
    """The number of the series that *head* belongs to; it is entered if new, and so are study and patient."""
    study_instance_uid, series_instance_uid = (
        head.uid(tags.STUDY_INSTANCE_UID),
        head.uid(tags.SERIES_INSTANCE_UID),
    )
    if study_instance_uid is None or series_instance_uid is None:
        raise ValueError("an instance without Study or Series Instance UID cannot be indexed")
    text = head.text
    study = _find(connection, "SELECT id FROM studies WHERE study_instance_uid = ?", study_instance_uid)
    if study is None:
        study = _insert(
            connection,
            "studies",
            patient=_patient(connection, head),
            study_instance_uid=study_instance_uid,
            study_date=text(tags.STUDY_DATE),
            study_time=text(tags.STUDY_TIME),
            study_id=text(tags.STUDY_ID),
            accession_number=text(tags.ACCESSION_NUMBER),
            study_description=text(tags.STUDY_DESCRIPTION),
            referring_physician_name=text(tags.REFERRING_PHYSICIAN_NAME),
        )
    series = _find(
        connection,
        "SELECT id FROM series WHERE study = ? AND series_instance_uid = ?",
        study,
        series_instance_uid,
    )
    if series is None:
        series = _insert(
            connection,
            "series",
            study=study,
            series_instance_uid=series_instance_uid,
            series_number=head.integer(tags.SERIES_NUMBER),
            modality=text(tags.MODALITY),
            series_description=text(tags.SERIES_DESCRIPTION),
            body_part_examined=text(tags.BODY_PART_EXAMINED),
            station_name=text(tags.STATION_NAME),
        )
    return series


def _patient(connection: sqlite3.Connection, head: Head) -> int:
    patient_id = head.text(tags.PATIENT_ID)
    issuer = head.text(tags.ISSUER_OF_PATIENT_ID) or ""
    patient = None
    if patient_id is not None:
        patient = _find(
            connection,
            "SELECT id FROM patients WHERE patient_id = ? AND issuer_of_patient_id = ?",
            patient_id,
            issuer,
        )
    if patient is None:
        patient = _insert(
            connection,
            "patients",
            patient_id=patient_id,
            issuer_of_patient_id=issuer,
            patient_name=head.text(tags.PATIENT_NAME),
            patient_birth_date=head.text(tags.PATIENT_BIRTH_DATE),
            patient_sex=head.text(tags.PATIENT_SEX),
        )
    return patient


def _remove(connection: sqlite3.Connection, paths: Iterable[str]) -> Counter[int]:
    """Remove the instances at *paths*; returns how many, by series."""
    removed: Counter[int] = Counter()
    for path in paths:
        for series, size in connection.execute(
            "DELETE FROM instances WHERE path = ? RETURNING series, size", (path,)
        ).fetchall():
            connection.execute(_COUNT, (-1, -size, series))
            removed[series] += 1
    return removed


def _prune(connection: sqlite3.Connection, series: Iterable[int]) -> None:
    """Remove those of *series* that nothing is left of, and the study and the patient above likewise."""
    for number in series:
        study = _find(connection, "DELETE FROM series WHERE id = ? AND instances = 0 RETURNING study", number)
        if study is not None:
            patient = _find(
                connection,
                "DELETE FROM studies WHERE id = ?"
                " AND NOT EXISTS (SELECT 1 FROM series WHERE study = studies.id) RETURNING patient",
                study,
            )
            connection.execute(
                "DELETE FROM patients WHERE id = ?"
                " AND NOT EXISTS (SELECT 1 FROM studies WHERE patient = patients.id)",
                (patient,),
            )


def _find(connection: sqlite3.Connection, statement: str, *values: str | int) -> int | None:
    """The only number that *statement* yields, if any."""
    rows: list[tuple[int]] = connection.execute(statement, values).fetchall()
    return rows[0][0] if rows else None


def _insert(connection: sqlite3.Connection, table: str, **values: str | int | None) -> int:
    """Insert a row, and return its number."""
    names, marks = ", ".join(values), ", ".join("?" * len(values))
    statement = f"INSERT INTO {table} ({names}) VALUES ({marks})"  # the names are this module's own
    number = connection.execute(statement, tuple(values.values())).lastrowid
    assert number is not None
    return number
