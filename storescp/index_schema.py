"""The life of the index's schema: how a database is recognised, made, and upgraded. Blocking; no Twisted.

What belongs here: everything that happens once to a database. The scripts are numbered: ``index_schema_2.sql``
makes schema 2, ``index_upgrade_2.sql`` makes it out of schema 1.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from importlib import resources
from urllib.parse import quote

from storescp.flushing import sync_path

#: The schema that is written. A database of a lower number is upgraded, one of a higher number is not touched.
SCHEMA_VERSION = 2

#: "dcmi": marks a SQLite database as this index, so that nobody else's is written into.
APPLICATION_ID = 0x64636D69

#: Seconds to wait for somebody else who upgrades the database, which is copied first.
UPGRADE_TIMEOUT = 60.0


class UnusableDatabase(sqlite3.DatabaseError):
    """The database is of another program or of a newer version of this one."""


def schema_of(connection: sqlite3.Connection) -> int:
    """The schema of the database, 0 when it is empty. Raises UnusableDatabase for what is no index of ours."""
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    if application != APPLICATION_ID:
        if version or application or connection.execute("SELECT 1 FROM sqlite_master").fetchone():
            raise UnusableDatabase("the database is of another program")
        return 0
    if not 1 <= version <= SCHEMA_VERSION:
        raise UnusableDatabase(
            f"the database has schema {version}, this program knows {SCHEMA_VERSION} (was it made by a newer one?)"
        )
    return int(version)


def create_or_upgrade(connection: sqlite3.Connection, path: str) -> None:
    """Give the database at *path* all of the present schema or nothing, whoever else is at it.

    One with an older schema is copied to ``PATH.schema-N.bak`` first. *connection* has no transaction open, and
    waits for UPGRADE_TIMEOUT from now on. Raises sqlite3.Error and OSError.
    """
    connection.execute(f"PRAGMA busy_timeout = {UPGRADE_TIMEOUT * 1000:.0f}")
    connection.execute("BEGIN IMMEDIATE")
    version = schema_of(connection)
    if version:
        scripts = [f"index_upgrade_{number}.sql" for number in range(version + 1, SCHEMA_VERSION + 1)]
    else:
        scripts = [f"index_schema_{SCHEMA_VERSION}.sql"]
    if version and scripts:
        _back_up(path, f"{path}.schema-{version}.bak")
    for script in scripts:
        for statement in resources.files("storescp").joinpath(script).read_text("utf-8").split(";\n"):
            connection.execute(statement)
    connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
    connection.execute("COMMIT")


def _back_up(path: str, target: str) -> None:
    """Copy the database at *path*, as it was last committed. The caller keeps others from writing."""
    new = target + ".new"
    with contextlib.suppress(FileNotFoundError):
        os.unlink(new)  # of a copy that was interrupted
    try:
        with (
            contextlib.closing(sqlite3.connect(f"file:{quote(path)}?mode=ro", uri=True)) as source,
            contextlib.closing(sqlite3.connect(new)) as copy,
        ):
            source.backup(copy)
            copy.execute("PRAGMA journal_mode = DELETE")  # one file, which may be moved
        sync_path(new)
        os.rename(new, target)
        sync_path(os.path.dirname(target))
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(new)
        raise
