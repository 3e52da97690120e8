"""What is owed: the transactions of storage commitment whose report the requester has not had. Blocking; no Twisted.

What belongs here: a small SQLite database of its own, which all processes of a server share and which outlives them.
A transaction is committed and synced before the requester is told that it was taken; it goes when the requester has
confirmed the report, or when its time is over. Whoever is at one holds it, so that nobody else is.
"""

from __future__ import annotations

import contextlib
import enum
import os
import sqlite3
from collections.abc import Iterator
from importlib import resources
from typing import Any, NamedTuple
from urllib.parse import quote

from storescp.commitment_data import Reference, Request
from storescp.flushing import sync_path

#: Where it is, below the server's own directory.
NAME = "commitment.db"

#: "dcmc": marks a SQLite database as this one.
APPLICATION_ID = 0x64636D63
SCHEMA_VERSION = 1

#: The holder of what is being reported on an association of our own; others are called by the IDs of their processes.
REPORTER = -1

#: Seconds to wait for another process that writes.
BUSY_TIMEOUT = 10.0

_ROW = "id, transaction_uid, references_text, calling_ae_title, called_ae_title, requested_at, attempts"


class CommitmentsUnavailable(Exception):
    """The database cannot be used at present. The message is one line for the operator."""


class Owed(NamedTuple):
    """A transaction, and who asked for it, by which called AE title. ``attempts`` to report it have failed."""

    id: int
    request: Request
    calling_ae_title: str
    called_ae_title: str
    requested_at: float
    attempts: int


class Taken(enum.Enum):
    """What became of a request."""

    NEW = "new"
    """It is owed now."""
    AGAIN = "again"
    """It was owed already: the requester has not had our answer, and repeats it."""
    IN_USE = "in use"
    """Its Transaction UID is that of another request that is owed to the same requester."""
    TOO_MANY = "too many"
    """So many are owed to this requester that there is no room for more."""


class CommitmentStore:
    """The database at *path*, made if missing. Calls come one at a time, from any thread.

    All methods raise CommitmentsUnavailable.
    """

    def __init__(self, path: str) -> None:
        self._path = os.path.abspath(path)
        self._connection: sqlite3.Connection | None = None

    @property
    def exists(self) -> bool:
        """Whether anything has ever been asked for. Blocks, as all here does."""
        return os.path.exists(self._path)

    def take(
        self, request: Request, calling: str, called: str, *, now: float, holder: int, most: int
    ) -> tuple[Taken, Owed | None]:
        """Owe *request* to *calling*, unless *most* are owed to it already.

        Returns what the *holder* has to report from now on, too: nothing if somebody else is at it already.
        """
        with self._transaction() as connection:
            found = connection.execute(
                f"SELECT {_ROW}, holder FROM transactions WHERE calling_ae_title = ? AND transaction_uid = ?",
                (calling, request.transaction_uid),
            ).fetchone()
            if found is not None:
                owed = _owed(found)
                if owed.request != request:
                    return Taken.IN_USE, None
                if found["holder"] is not None:
                    return Taken.AGAIN, None
                connection.execute("UPDATE transactions SET holder = ? WHERE id = ?", (holder, owed.id))
                return Taken.AGAIN, owed
            (count,) = connection.execute(
                "SELECT count(*) FROM transactions WHERE calling_ae_title = ?", (calling,)
            ).fetchone()
            if count >= most:
                return Taken.TOO_MANY, None
            number = connection.execute(
                "INSERT INTO transactions (calling_ae_title, called_ae_title, transaction_uid, references_text,"
                " requested_at, due_at, holder) VALUES (?, ?, ?, ?, ?, ?, ?)",
                (calling, called, request.transaction_uid, _text(request), now, now, holder),
            ).lastrowid
            assert number is not None
            return Taken.NEW, Owed(number, request, calling, called, now, 0)

    def claim(self, now: float, most: int) -> list[Owed]:
        """Hold, as the REPORTER, up to *most* of what is due and nobody is at."""
        with self._transaction() as connection:
            rows = connection.execute(
                f"SELECT {_ROW} FROM transactions WHERE holder IS NULL AND due_at <= ? ORDER BY due_at, id LIMIT ?",
                (now, most),
            ).fetchall()
            connection.executemany(
                "UPDATE transactions SET holder = ? WHERE id = ?", [(REPORTER, row["id"]) for row in rows]
            )
            return [_owed(row) for row in rows]

    def next_due(self) -> float | None:
        """When something is due that nobody is at; None when there is nothing."""
        with self._transaction() as connection:
            (due,) = connection.execute(
                "SELECT min(due_at) FROM transactions WHERE holder IS NULL"
            ).fetchone()
            return None if due is None else float(due)

    def planned(self) -> list[tuple[Owed, float | None]]:
        """All that is owed, the oldest first, and when it is due: None for what somebody is at."""
        with self._transaction() as connection:
            rows = connection.execute(
                f"SELECT {_ROW}, due_at, holder FROM transactions ORDER BY requested_at, id"
            ).fetchall()
            return [(_owed(row), row["due_at"] if row["holder"] is None else None) for row in rows]

    def settle(self, number: int) -> None:
        """The requester has had the report, or never will."""
        with self._transaction() as connection:
            connection.execute("DELETE FROM transactions WHERE id = ?", (number,))

    def let_go(self, number: int, due_at: float, *, failed: bool = False) -> None:
        """Whoever held it does not any more; it is due at *due_at*, after one more attempt if that has *failed*."""
        with self._transaction() as connection:
            connection.execute(
                "UPDATE transactions SET holder = NULL, due_at = ?, attempts = attempts + ? WHERE id = ?",
                (due_at, failed, number),
            )

    def free(self, holder: int, now: float) -> None:
        """The process with the ID *holder* is no more: what it held is due. Makes no database."""
        if not self.exists:
            return
        with self._transaction() as connection:
            connection.execute(
                "UPDATE transactions SET holder = NULL, due_at = ? WHERE holder = ?", (now, holder)
            )

    def hasten(self, now: float) -> None:
        """What nobody is at is due. Makes no database."""
        if not self.exists:
            return
        with self._transaction() as connection:
            connection.execute("UPDATE transactions SET due_at = ? WHERE holder IS NULL", (now,))

    def begin(self, now: float) -> int:
        """No other process is at it, as a server starts: everything is due. Returns how many there are."""
        with self._transaction() as connection:
            return connection.execute("UPDATE transactions SET holder = NULL, due_at = ?", (now,)).rowcount

    def expire(self, before: float) -> list[Owed]:
        """Forget what was asked for *before*, unless somebody is at it; and return it."""
        with self._transaction() as connection:
            rows = connection.execute(
                f"DELETE FROM transactions WHERE holder IS NULL AND requested_at < ? RETURNING {_ROW}",
                (before,),
            ).fetchall()
            return [_owed(row) for row in rows]

    def close(self) -> None:
        """Close the database; the next call opens it again."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    # -- the connection --

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        try:
            if self._connection is None:
                self._connection = self._open()
            connection = self._connection
            try:
                connection.execute("BEGIN IMMEDIATE")
                yield connection
                connection.execute("COMMIT")
            finally:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
        except (sqlite3.Error, OSError) as error:
            with contextlib.suppress(sqlite3.Error):
                self.close()
            what = error.strerror if isinstance(error, OSError) else None
            raise CommitmentsUnavailable(f"storage commitment {self._path}: {what or error}") from error

    def _open(self) -> sqlite3.Connection:
        os.makedirs(os.path.dirname(self._path), exist_ok=True)
        connection = sqlite3.connect(
            f"file:{quote(self._path)}?mode=rwc",
            uri=True,
            timeout=BUSY_TIMEOUT,
            isolation_level=None,  # transactions begin and end where this module says so
            check_same_thread=False,
        )
        try:
            connection.row_factory = sqlite3.Row
            _is_made(connection)
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = FULL")  # each transaction is synced
            connection.execute("BEGIN IMMEDIATE")
            if not _is_made(connection):
                script = resources.files("storescp").joinpath("commitment_schema.sql").read_text("utf-8")
                for statement in script.split(";\n"):
                    connection.execute(statement)
                connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
                connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
            connection.execute("COMMIT")
            sync_path(os.path.dirname(self._path))
        except BaseException:
            connection.close()
            raise
        return connection


def _is_made(connection: sqlite3.Connection) -> bool:
    """Whether the database has its tables; else it is empty. Raises sqlite3.DatabaseError for any other."""
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if application == APPLICATION_ID and version == SCHEMA_VERSION:
        return True
    if application or version or connection.execute("SELECT 1 FROM sqlite_master").fetchone():
        raise sqlite3.DatabaseError("the database is of another program, or of a newer one")
    return False


def _text(request: Request) -> str:
    return "\n".join(f"{sop_class} {instance}" for sop_class, instance in request.references)


def _owed(row: Any) -> Owed:
    references = tuple(Reference(*line.split(" ")) for line in row["references_text"].split("\n"))
    return Owed(
        row["id"],
        Request(row["transaction_uid"], references),
        row["calling_ae_title"],
        row["called_ae_title"],
        row["requested_at"],
        row["attempts"],
    )
