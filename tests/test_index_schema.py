"""storescp.index_schema: databases of older versions, of newer ones, and of others."""

from __future__ import annotations

import importlib.resources
import os
import sqlite3
import subprocess
import sys
from unittest import mock

from storescp.index import IndexUnavailable
from storescp.index_rows import Totals
from storescp.index_schema import APPLICATION_ID, SCHEMA_VERSION
from tests.test_index import CT, EXPLICIT, IndexTestCase, instance


class UpgradeTests(IndexTestCase):
    """A database of schema 1."""

    def setUp(self) -> None:
        super().setUp()
        self.index.close()
        self.current = self.query("SELECT type, name, tbl_name FROM sqlite_master ORDER BY name")
        self.columns = self.query("SELECT * FROM pragma_table_info('instances')")
        os.unlink(self.path)
        connection = sqlite3.connect(self.path)
        with open(os.path.join(os.path.dirname(__file__), "index_schema_1.sql"), encoding="utf-8") as file:
            connection.executescript("PRAGMA journal_mode = WAL;" + file.read())
        connection.executescript(
            f"""PRAGMA application_id = {APPLICATION_ID};
            PRAGMA user_version = 1;
            INSERT INTO patients VALUES (1, 'P', '', 'Doe', NULL, NULL);
            INSERT INTO studies (id, patient, study_instance_uid) VALUES (1, 1, '1.1');
            INSERT INTO series (id, study, series_instance_uid, instances, bytes) VALUES (1, 1, '1.1.1', 2, 300);
            INSERT INTO instances VALUES (1, 1, '1.9.a', '{CT}', '{EXPLICIT}', 1, 1, 2, 2, 100, 'a', 'X', 1.5);
            INSERT INTO instances VALUES (2, 1, '1.9.b', '{CT}', '{EXPLICIT}', 2, 1, 2, 2, 200, 'b', 'X', 2.5);
            """
        )
        connection.close()

    def backup(self) -> list[tuple[object, ...]]:
        """Version and rows of the copy."""
        connection = sqlite3.connect(f"file:{self.path}.schema-1.bak?mode=ro", uri=True)
        try:
            self.assertEqual(connection.execute("PRAGMA integrity_check").fetchall(), [("ok",)])
            (version,) = connection.execute("PRAGMA user_version").fetchone()
            return [version, *connection.execute("SELECT * FROM instances").fetchall()]
        finally:
            connection.close()

    def test_upgraded(self) -> None:
        """Rows and counts stay, without digests; the tables are those of a new database; the copy is as it was."""
        before = self.query("SELECT * FROM instances")
        self.index = self.open()
        self.assertEqual(self.index.totals(), Totals(1, 1, 1, 2, 300))
        self.assertEqual(self.query("SELECT * FROM instances"), [(*row, None) for row in before])
        self.assertEqual(
            self.query("SELECT type, name, tbl_name FROM sqlite_master ORDER BY name"), self.current
        )
        self.assertEqual(self.query("SELECT * FROM pragma_table_info('instances')"), self.columns)
        self.assertEqual(self.query("PRAGMA user_version"), [(SCHEMA_VERSION,)])
        self.index.add([instance("c", digest="md5:1")])
        self.index.close()
        self.assertEqual(
            sorted(os.listdir(os.path.dirname(self.path))), ["index.db", "index.db.schema-1.bak"]
        )
        self.assertEqual(self.backup(), [1, *before])

    def test_fails_half_way(self) -> None:
        """An upgrade that fails leaves schema 1 and its rows; the next one succeeds."""
        with mock.patch.object(importlib.resources, "files") as files:
            joined = files.return_value.joinpath.return_value
            joined.read_text.return_value = (
                "ALTER TABLE instances ADD COLUMN digest TEXT;\nCREATE NONSENSE;\n"
            )
            self.assertRaisesRegex(IndexUnavailable, "NONSENSE", self.open)
        self.assertEqual(self.query("PRAGMA user_version"), [(1,)])
        self.assertEqual(
            len(self.query("SELECT * FROM pragma_table_info('instances')")), len(self.columns) - 1
        )
        self.assertEqual(self.backup()[0], 1)
        self.index = self.open()
        self.assertEqual(self.index.totals(), Totals(1, 1, 1, 2, 300))

    def test_no_room_for_the_copy(self) -> None:
        """Without a copy there is no upgrade, and what there was of the copy is gone."""
        with mock.patch.object(os, "fsync", side_effect=OSError(28, "No space left on device")):
            self.assertRaisesRegex(IndexUnavailable, "No space left", self.open)
        self.assertEqual(self.query("PRAGMA user_version"), [(1,)])
        self.assertEqual([name for name in os.listdir(os.path.dirname(self.path)) if "bak" in name], [])

    def test_interrupted_copy(self) -> None:
        """The rest of a copy that was killed is replaced."""
        with open(self.path + ".schema-1.bak.new", "wb") as file:
            file.write(b"half a copy")
        self.index = self.open()
        self.assertEqual(self.backup()[0], 1)
        self.assertFalse(os.path.exists(self.path + ".schema-1.bak.new"))

    def test_two_processes(self) -> None:
        """Processes that open it at once all find the new schema, and one of them has made it."""
        program = (
            "import sys\n"
            "from storescp.index import Index\n"
            "print('ready', flush=True)\n"
            "sys.stdin.readline()\n"
            "print(Index(sys.argv[1]).totals().instances)\n"
        )
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
        others = [
            subprocess.Popen(
                [sys.executable, "-c", program, self.path],
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for _ in range(3)
        ]
        for other in others:
            assert other.stdout is not None
            self.assertEqual(other.stdout.readline(), "ready\n")
        for other in others:
            assert other.stdin is not None
            other.stdin.write("\n")
            other.stdin.flush()
        self.assertEqual([other.communicate()[0] for other in others], ["2\n"] * 3)
        self.assertEqual(self.backup()[0], 1)
        self.assertEqual(self.query("SELECT * FROM pragma_table_info('instances')"), self.columns)
