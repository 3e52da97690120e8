"""storescp.index: what the database holds after what has been added, and after what has gone wrong."""

from __future__ import annotations

import importlib.resources
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from typing import NamedTuple
from unittest import mock

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from storescp import index as index_module
from storescp import tags
from storescp.dataset_head import Head
from storescp.index import Index, IndexUnavailable
from storescp.index_rows import Counts, ReceivedInstance, Row, Totals
from storescp.index_schema import APPLICATION_ID, SCHEMA_VERSION, create_or_upgrade
from tests.strategies import steady

CT = "1.2.840.10008.5.1.4.1.1.2"
EXPLICIT = "1.2.840.10008.1.2.1"


def instance(
    path: str,
    *,
    study: str = "1.1",
    series: str = "1.1.1",
    size: int = 100,
    digest: str | None = None,
    **attributes: str,
) -> ReceivedInstance:
    """An instance at *path*; *attributes* by the names of dataset_head's tags in small letters."""
    raw = {getattr(tags, name.upper()): value.encode() for name, value in attributes.items()}
    raw |= {
        tags.SPECIFIC_CHARACTER_SET: b"ISO_IR 192",
        tags.STUDY_INSTANCE_UID: study.encode() + b"\0",
        tags.SERIES_INSTANCE_UID: series.encode() + b"\0",
    }
    return ReceivedInstance(Head(raw), CT, "1.9." + path, EXPLICIT, path, size, "SENDER", 1234.5, digest)


class IndexTestCase(SynchronousTestCase):
    """An index in a directory of its own."""

    def setUp(self) -> None:
        self.path = os.path.join(os.path.abspath(self.mktemp()), "deep", "index.db")
        self.index = self.open()

    def open(self, *, busy_timeout: float = 0) -> Index:
        """The index at the path of this test."""
        index = Index(self.path, busy_timeout=busy_timeout)
        self.addCleanup(index.close)
        return index

    def query(self, statement: str) -> list[tuple[object, ...]]:
        """What another reader of the database sees."""
        connection = sqlite3.connect(self.path)
        try:
            return connection.execute(statement).fetchall()
        finally:
            connection.close()

    def assertUnavailable(self, instances: Sequence[ReceivedInstance], message: str = "") -> None:
        """Adding raises IndexUnavailable, in one line that names the database."""
        with self.assertRaisesRegex(IndexUnavailable, message) as caught:
            self.index.add(instances)
        self.assertIn(self.path, str(caught.exception))
        self.assertNotIn("\n", str(caught.exception))


class AddTests(IndexTestCase):
    """What is entered."""

    def test_attributes(self) -> None:
        """All attributes of the four entities arrive, in their character set and as numbers where they are such."""
        head = Head(
            {
                tags.SPECIFIC_CHARACTER_SET: b"ISO_IR 144",
                tags.STUDY_DATE: b"20310203",
                tags.STUDY_TIME: b"101112.5 ",
                tags.ACCESSION_NUMBER: b"A1",
                tags.MODALITY: b"CT",
                tags.REFERRING_PHYSICIAN_NAME: b"\xbb\xee\xda^R ",
                tags.STATION_NAME: b"ROOM1 ",
                tags.STUDY_DESCRIPTION: b"Thorax",
                tags.SERIES_DESCRIPTION: b"Lung",
                tags.PATIENT_NAME: b"\xbb\xee\xda^P ",
                tags.PATIENT_ID: b"P1",
                tags.ISSUER_OF_PATIENT_ID: b"HOSP",
                tags.PATIENT_BIRTH_DATE: b"19600101",
                tags.PATIENT_SEX: b"F ",
                tags.BODY_PART_EXAMINED: b"CHEST ",
                tags.STUDY_INSTANCE_UID: b"1.1\0",
                tags.SERIES_INSTANCE_UID: b"1.1.1\0",
                tags.STUDY_ID: b"S1",
                tags.SERIES_NUMBER: b"4 ",
                tags.INSTANCE_NUMBER: b"17",
                tags.NUMBER_OF_FRAMES: b"3 ",
                tags.ROWS: b"\x00\x02",
                tags.COLUMNS: b"\x00\x01",
            }
        )
        self.index.add([ReceivedInstance(head, CT, "1.1.1.1", EXPLICIT, "a/b.dcm", 1000, "SENDER", 1234.5)])
        self.assertEqual(
            self.query(
                "SELECT patient_id, issuer_of_patient_id, patient_name, patient_birth_date, patient_sex FROM patients"
            ),
            [("P1", "HOSP", "Люк^P", "19600101", "F")],
        )
        self.assertEqual(
            self.query(
                "SELECT study_instance_uid, study_date, study_time, study_id, accession_number, study_description,"
                " referring_physician_name FROM studies JOIN patients ON patients.id = patient"
            ),
            [("1.1", "20310203", "101112.5", "S1", "A1", "Thorax", "Люк^R")],
        )
        self.assertEqual(
            self.query(
                "SELECT series_instance_uid, series_number, modality, series_description, body_part_examined,"
                " station_name, instances, bytes FROM series JOIN studies ON studies.id = study"
            ),
            [("1.1.1", 4, "CT", "Lung", "CHEST", "ROOM1", 1, 1000)],
        )
        self.assertEqual(
            self.query(
                "SELECT sop_instance_uid, sop_class_uid, transfer_syntax_uid, instance_number, number_of_frames,"
                ' "rows", "columns", size, path, calling_ae_title, received_at'
                " FROM instances JOIN series ON series.id = series"
            ),
            [("1.1.1.1", CT, EXPLICIT, 17, 3, 512, 256, 1000, "a/b.dcm", "SENDER", 1234.5)],
        )

    def test_absent_attributes(self) -> None:
        """What an instance does not say is NULL."""
        self.index.add([instance("a")])
        self.assertEqual(
            self.query(
                "SELECT patient_id, patient_name, study_date, modality FROM patients, studies, series"
            ),
            [(None,) * 4],
        )
        self.assertEqual(self.query('SELECT instance_number, "rows" FROM instances'), [(None, None)])

    def test_nothing(self) -> None:
        """An empty batch is no transaction."""
        self.index.add([])
        self.assertEqual(self.index.totals(), Totals(0, 0, 0, 0, 0))

    def test_first_wins(self) -> None:
        """Attributes of patient, study and series are those received first, within a batch and later."""

        def first(path: str) -> ReceivedInstance:
            return instance(path, patient_id="P", patient_name="First", study_date="20310101", modality="CT")

        def other(path: str) -> ReceivedInstance:
            return instance(path, patient_id="P", patient_name="Other", study_date="20320202", modality="MR")

        self.index.add([first("a"), other("b")])
        self.index.add([other("c")])
        self.index.close()
        self.index = self.open()
        self.index.add([other("d")])
        self.assertEqual(
            self.query("SELECT patient_name, study_date, modality, instances FROM patients, studies, series"),
            [("First", "20310101", "CT", 4)],
        )

    def test_patient_identity(self) -> None:
        """Patients are told apart by ID and issuer; without an ID each study has its own."""
        self.index.add(
            [
                instance("a", study="1", patient_id="P"),
                instance("b", study="2", patient_id="P"),
                instance("c", study="3", patient_id="P", issuer_of_patient_id="I"),
                instance("d", study="4", patient_id="P", issuer_of_patient_id="I"),
                instance("e", study="5", patient_name="Same"),
                instance("f", study="6", patient_name="Same"),
                instance("g", study="6", patient_name="Same", series="1.2"),
            ]
        )
        studies = self.query(
            "SELECT group_concat(study_instance_uid) FROM studies GROUP BY patient ORDER BY 1"
        )
        self.assertEqual(studies, [("1,2",), ("3,4",), ("5",), ("6",)])

    def test_study_under_another_patient(self) -> None:
        """A study stays with the patient it came with first; another one is not even entered."""
        self.index.add([instance("a", patient_id="P")])
        self.index.add([instance("b", patient_id="Q", series="1.2")])
        self.assertEqual(self.query("SELECT patient_id FROM patients"), [("P",)])
        self.assertEqual(self.index.totals(), Totals(1, 1, 2, 2, 200))

    def test_same_series_uid_in_two_studies(self) -> None:
        """A Series Instance UID counts within its study."""
        self.index.add([instance("a", study="1"), instance("b", study="2"), instance("c", study="2", size=5)])
        self.assertEqual(self.index.counts("1"), Counts(1, 1, 100))
        self.assertEqual(self.index.counts("2"), Counts(1, 2, 105))

    def test_counts(self) -> None:
        """Counts of series, study and all, in instances and bytes; of what is not known, 0."""
        self.index.add([instance("a", size=1), instance("b", size=20), instance("c", series="1.2", size=300)])
        self.assertEqual(self.index.counts("1.1"), Counts(2, 3, 321))
        self.assertEqual(self.index.counts("1.1", "1.1.1"), Counts(1, 2, 21))
        self.assertEqual(self.index.counts("1.1", "1.3"), Counts(0, 0, 0))
        self.assertEqual(self.index.counts("1.3"), Counts(0, 0, 0))
        self.assertEqual(self.index.totals(), Totals(1, 1, 2, 3, 321))

    def test_replaced(self) -> None:
        """A path that is there already is replaced, row and counters, together with new ones in a batch."""
        self.index.add([instance("a", size=1, instance_number="1"), instance("b", size=2)])
        self.index.add([instance("c", size=4), instance("a", size=8, instance_number="2")])
        self.assertEqual(
            self.query("SELECT path, size, instance_number FROM instances ORDER BY path"),
            [("a", 8, 2), ("b", 2, None), ("c", 4, None)],
        )
        self.assertEqual(self.index.totals(), Totals(1, 1, 1, 3, 14))

    def test_replaced_into_another_series(self) -> None:
        """What a replaced instance leaves empty goes, up to the patient, and comes back when needed."""
        self.index.add([instance("a", study="1", patient_id="P")])
        self.index.add([instance("a", study="2", patient_id="Q", size=7)])
        self.assertEqual(self.index.totals(), Totals(1, 1, 1, 1, 7))
        self.assertEqual(
            self.query("SELECT patient_id, study_instance_uid FROM patients, studies"), [("Q", "2")]
        )
        self.index.add([instance("b", study="1", patient_id="P")])
        self.assertEqual(self.index.totals(), Totals(2, 2, 2, 2, 107))

    def test_same_path_twice_in_a_batch(self) -> None:
        """The last one stays, and is counted once."""
        self.index.add([instance("a", size=1), instance("b", size=2), instance("a", size=4)])
        self.assertEqual(self.index.totals(), Totals(1, 1, 1, 2, 6))

    def test_uids_missing(self) -> None:
        """An instance without Study Instance UID is the caller's mistake, and leaves nothing of its batch."""
        self.assertRaises(ValueError, self.index.add, [instance("a"), instance("b", study="")])
        self.assertEqual(self.index.totals(), Totals(0, 0, 0, 0, 0))
        self.index.add([instance("a")])
        self.assertEqual(self.index.totals(), Totals(1, 1, 1, 1, 100))

    def test_known_series(self) -> None:
        """Of a known series, only the instance's own attributes are decoded."""
        self.index.add([instance("a")])
        with (
            mock.patch.object(Head, "text", side_effect=AssertionError),
            mock.patch.object(Head, "uid", new=None),
        ):
            self.index.add([instance("b", patient_name="X", instance_number="3")])
        self.assertEqual(self.query("SELECT instance_number FROM instances"), [(None,), (3,)])

    def test_known_series_are_bounded(self) -> None:
        """The memory of known series has a limit; forgotten ones are found again."""
        self.patch(index_module, "KNOWN_SERIES", 3)
        for turn in range(2):
            for number in range(5):
                self.index.add([instance(f"{turn}/{number}", series=f"1.{number}")])
                self.assertLessEqual(len(self.index._known), 3)
        self.assertEqual(self.index.totals(), Totals(1, 1, 5, 10, 1000))

    def test_series_removed_by_another(self) -> None:
        """A series that somebody else has removed is entered again, under a number that nobody had."""
        self.index.add([instance("a"), instance("b", series="1.2")])
        other = sqlite3.connect(self.path)
        other.execute("DELETE FROM instances")
        other.execute("DELETE FROM series")
        other.commit()
        other.close()
        self.index.add([instance("c", series="1.2"), instance("d", series="1.3")])
        self.assertEqual(self.index.totals(), Totals(1, 1, 2, 2, 200))
        self.assertEqual(self.query("SELECT min(id) FROM series"), [(3,)])

    def test_threads(self) -> None:
        """Calls may come from any thread, one at a time."""
        for number in range(3):
            thread = threading.Thread(target=self.index.add, args=([instance(str(number))],))
            thread.start()
            thread.join()
        self.assertEqual(self.index.totals().instances, 3)

    def test_readers_beside_the_writer(self) -> None:
        """Committed instances are seen at once, and an open reader does not hold the writer up."""
        reader = sqlite3.connect(self.path, isolation_level=None)
        self.addCleanup(reader.close)
        self.index.add([instance("a")])
        reader.execute("BEGIN")
        self.assertEqual(reader.execute("SELECT count(*) FROM instances").fetchall(), [(1,)])
        self.index.add([instance("b")])
        self.assertEqual(reader.execute("SELECT count(*) FROM instances").fetchall(), [(1,)])
        self.assertEqual(self.query("SELECT count(*) FROM instances"), [(2,)])

    def test_searches_use_indexes(self) -> None:
        """No search by what people know of an image reads a whole table."""
        for condition in (
            "patients WHERE patient_id = 'x'",
            "patients WHERE patient_name = 'x' COLLATE NOCASE",
            "studies WHERE study_instance_uid = 'x'",
            "studies WHERE study_date BETWEEN 'x' AND 'y'",
            "studies WHERE accession_number = 'x'",
            "studies WHERE patient = 1",
            "series WHERE study = 1",
            "instances WHERE series = 1",
            "instances WHERE sop_instance_uid = 'x'",
            "instances WHERE path = 'x'",
        ):
            plan = self.query(f"EXPLAIN QUERY PLAN SELECT * FROM {condition}")
            self.assertIn("SEARCH", str(plan[0][3]), condition)

    def test_generations(self) -> None:
        """An image is found by its SOP Instance UID alone, in whatever generation, and without reading the table."""
        for number in range(5):
            self.index.add([instance(f"{number}")])
            connection = sqlite3.connect(self.path)
            connection.execute(
                "UPDATE instances SET id = id + 20000 WHERE id = (SELECT max(id) FROM instances)"
            )
            connection.commit()
            connection.close()
        generations = self.query("SELECT count(DISTINCT id >> 13) FROM instances")
        self.assertEqual(generations, [(5,)])
        for number in range(5):
            search = f"SELECT path FROM instances WHERE sop_instance_uid = '1.9.{number}'"
            self.assertEqual(self.query(search), [(f"{number}",)])
            ((*_, plan),) = self.query(f"EXPLAIN QUERY PLAN {search}")
            self.assertIn("USING INDEX instances_by_sop_instance_uid", str(plan))
        # As the index looks itself: the last generation first, and no further than until all is found.
        wanted = {f"1.9.{number}" for number in range(3)}
        found = []
        for row in self.index.find_instances(wanted):
            found.append(row.path)
            if row.path == "1":
                wanted.clear()
        self.assertEqual(found, ["2", "1"])


class Operation(NamedTuple):
    """An instance in the model's terms."""

    path: str
    study: int
    series: int
    patient: int
    size: int


class ModelTests(SynchronousTestCase):
    """The database against dicts."""

    @settings(steady, max_examples=60)
    @given(
        st.lists(
            st.lists(
                st.builds(
                    Operation, st.sampled_from("abcdefgh"), *[st.integers(0, 2)] * 3, st.integers(1, 10_000)
                ),
                max_size=5,
            ),
            max_size=6,
        ),
        st.integers(1, 3),
    )
    def test_random_operations(self, batches: list[list[Operation]], known_series: int) -> None:
        """After any additions and replacements, in any batches, rows and counters are those of a dict by path."""
        directory = tempfile.mkdtemp()
        stored: dict[str, Operation] = {}
        patient_of: dict[int, int] = {}  # by study; patient 0 has no ID
        with mock.patch.object(index_module, "KNOWN_SERIES", known_series):
            index = Index(os.path.join(directory, "index.db"))
            try:
                for batch in batches:
                    for operation in batch:
                        patient_of.setdefault(operation.study, operation.patient)
                        stored[operation.path] = operation
                    index.add(
                        [
                            instance(
                                path,
                                study=f"1.{study}",
                                series=f"2.{series}",
                                size=size,
                                patient_id=str(patient or ""),
                            )
                            for path, study, series, patient, size in batch
                        ]
                    )
                    live = {operation.study for operation in stored.values()}
                    patient_of = {study: patient_of[study] for study in live}
                    patients = {patient or f"of {study}" for study, patient in patient_of.items()}
                    self.assertEqual(
                        index.totals(),
                        Totals(
                            len(patients),
                            len(live),
                            len({operation[1:3] for operation in stored.values()}),
                            len(stored),
                            sum(operation.size for operation in stored.values()),
                        ),
                    )
                    for study in range(3):
                        of_study = [operation for operation in stored.values() if operation.study == study]
                        for series in range(3):
                            sizes = [operation.size for operation in of_study if operation.series == series]
                            self.assertEqual(
                                index.counts(f"1.{study}", f"2.{series}"),
                                (bool(sizes), len(sizes), sum(sizes)),
                            )
                        self.assertEqual(index.counts(f"1.{study}").instances, len(of_study))
            finally:
                index.close()
                shutil.rmtree(directory)


class RemoveTests(IndexTestCase):
    """What is taken away."""

    def test_remove(self) -> None:
        """Rows go, the counters follow, and what is empty then goes too: series, study, patient, each by itself."""
        self.index.add(
            [
                instance("a", patient_id="P"),
                instance("b", patient_id="P", size=11),
                instance("c", patient_id="P", series="1.1.2"),
                instance("d", patient_id="P", study="1.2", series="1.2.1"),
                instance("e", patient_id="Q", study="1.3", series="1.3.1"),
            ]
        )
        for paths, removed, totals in (
            (["a", "nothing"], 1, Totals(2, 3, 4, 4, 311)),
            (["c"], 1, Totals(2, 3, 3, 3, 211)),
            (["b", "b"], 1, Totals(2, 2, 2, 2, 200)),
            (["e"], 1, Totals(1, 1, 1, 1, 100)),
            (["d"], 1, Totals(0, 0, 0, 0, 0)),
            (["d"], 0, Totals(0, 0, 0, 0, 0)),
        ):
            self.assertEqual(self.index.remove(paths), removed)
            self.assertEqual(self.index.totals(), totals, paths)

    def test_added_again(self) -> None:
        """A series that was emptied begins anew with its next instance, whose attributes are taken."""
        self.index.add([instance("a", modality="CT")])
        self.index.remove(["a"])
        self.index.add([instance("a", modality="MR")])
        self.assertEqual(self.query("SELECT modality, instances, bytes FROM series"), [("MR", 1, 100)])

    def test_condition(self) -> None:
        """What fails the condition stays; it is asked while no other connection can write."""
        self.index.add([instance("a"), instance("b")])
        other = sqlite3.connect(self.path, timeout=0)
        self.addCleanup(other.close)

        def condition(path: str) -> bool:
            self.assertRaisesRegex(sqlite3.OperationalError, "locked", other.execute, "DELETE FROM instances")
            return path == "b"

        self.assertEqual(self.index.remove(["a", "b"], condition), 1)
        self.assertEqual(self.query("SELECT path FROM instances"), [("a",)])
        self.assertEqual(self.index.totals(), Totals(1, 1, 1, 1, 100))

        def unknown(instance: ReceivedInstance) -> bool:
            return condition("b") and instance.path != "a"

        self.index.add_if([instance("a", size=5), instance("c")], unknown)
        self.assertEqual(self.query("SELECT path, size FROM instances"), [("a", 100), ("c", 100)])
        self.assertEqual(self.index.add_if([instance("e")], lambda instance: False), 0)
        self.assertEqual(self.index.add_if([instance("a", size=5), instance("d")], lambda instance: True), 2)
        self.assertEqual(self.index.totals(), Totals(1, 1, 1, 3, 205))

    def test_condition_is_asked_again(self) -> None:
        """Where entering takes a second attempt, what somebody else wrote in between is seen by the condition."""
        self.index.add([instance("a"), instance("b", size=1)])
        other = self.open()
        attempts: list[str] = []

        def condition(candidate: ReceivedInstance) -> bool:
            attempts.append(candidate.path)
            return len(attempts) < 3

        with mock.patch.object(Index, "_enter", autospec=True) as enter:
            enter.side_effect = lambda *_, **__: False
            self.index.add_if([instance("a", size=7), instance("b", size=7)], condition)
        self.assertEqual(attempts, ["a", "b", "a", "b"])
        self.assertEqual(other.totals(), Totals(1, 1, 1, 2, 101))

    def test_failure(self) -> None:
        """A failure takes back all of it."""
        self.index.add([instance("a"), instance("b", study="1.2")])
        other = sqlite3.connect(self.path)
        self.addCleanup(other.close)
        other.execute(
            "CREATE TRIGGER fault BEFORE DELETE ON studies BEGIN SELECT raise(ABORT, 'no more'); END"
        )
        other.commit()
        with self.assertRaisesRegex(IndexUnavailable, "no more"):
            self.index.remove(["a", "b"])
        self.assertEqual(self.index.totals(), Totals(2, 2, 2, 2, 200))


class FindTests(IndexTestCase):
    """What is found."""

    def test_find(self) -> None:
        """The row of a path has what was entered, the digest too; where there is none, the answer is None."""
        self.index.add([instance("a/b", digest="sha256:00ff"), instance("c", size=7)])
        self.assertEqual(
            self.index.find("a/b"), Row("a/b", CT, "1.9.a/b", EXPLICIT, 100, digest="sha256:00ff")
        )
        self.assertEqual(self.index.find("c"), Row("c", CT, "1.9.c", EXPLICIT, 7, None))
        self.assertIsNone(self.index.find("a"))

    def test_replaced(self) -> None:
        """The row that replaces another brings its own digest, or none."""
        self.index.add([instance("a", digest="md5:1")])
        self.index.add([instance("a", digest="md5:2")])
        row = self.index.find("a")
        assert row is not None
        self.assertEqual(row.digest, "md5:2")
        self.index.add([instance("a")])
        self.assertEqual(self.query("SELECT path, digest FROM instances"), [("a", None)])

    def test_many(self) -> None:
        """More paths than a statement takes are found, and all rows come in batches, each once."""
        paths = [f"p{number}" for number in range(1203)]
        self.index.add([instance(path) for path in paths])
        self.assertEqual(set(self.index.find_all([*paths, "nothing"])), set(paths))
        batches = list(self.index.rows())
        self.assertEqual([len(batch) for batch in batches], [500, 500, 203])
        self.assertEqual([row.path for batch in batches for row in batch], paths)

    def test_no_transaction_between_batches(self) -> None:
        """While somebody is at the rows, others write, the log can be copied back, and rows may go."""
        self.index.add([instance(f"p{number}") for number in range(600)])
        rows = self.index.rows()
        next(rows)
        other = self.open()
        other.add([instance("new")])
        other.remove(["p599"])
        ((busy, *_),) = self.query("PRAGMA wal_checkpoint(TRUNCATE)")
        self.assertEqual(busy, 0)
        self.assertEqual(
            [row.path for row in next(rows)], [f"p{number}" for number in range(500, 599)] + ["new"]
        )
        self.assertEqual(list(rows), [])


class StatisticsTests(IndexTestCase):
    """What it holds, in numbers."""

    def test_by_modality(self) -> None:
        """Series, instances and bytes of each modality, and of what does not say."""
        self.index.add(
            [
                instance("a", modality="CT"),
                instance("b", modality="CT", size=7),
                instance("c", modality="CT", series="1.1.2"),
                instance("d", modality="MR", series="1.1.3"),
                instance("e", series="1.1.4"),
            ]
        )
        self.assertEqual(self.index.modalities(), [(None, 1, 1, 100), ("CT", 2, 3, 207), ("MR", 1, 1, 100)])

    def test_received(self) -> None:
        """The first and the last time, None while there is nothing."""
        self.assertIsNone(self.index.received())
        self.index.add([instance("a")._replace(received_at=time) for time in (5.5, 3.5)])
        self.index.add([instance("b")._replace(received_at=9.0)])
        self.assertEqual(self.index.received(), (3.5, 9.0))


class DurabilityTests(IndexTestCase):
    """What is on the disk."""

    def synced(self) -> list[str]:
        """The names of what make_durable() has the kernel write."""
        names: list[str] = []
        fsync = os.fsync

        def sync(descriptor: int) -> None:
            names.append(os.readlink(f"/proc/self/fd/{descriptor}"))
            fsync(descriptor)

        with mock.patch.object(os, "fsync", sync):
            self.index.make_durable()
        return names

    def test_synced(self) -> None:
        """The log is synced each time, and once its name; synchronous=NORMAL alone does neither."""
        self.index.add([instance("a")])
        self.assertEqual(self.synced(), [self.path + "-wal", os.path.dirname(self.path)])
        self.index.add([instance("b")])
        self.assertEqual(self.synced(), [self.path + "-wal"])

    def test_locks_stay(self) -> None:
        """It leaves the locks alone: another process that closes the database does not take the log away from us."""
        self.index.add([instance("a")])
        self.index.make_durable()
        program = "import sys; from storescp.index import Index; print(Index(sys.argv[1]).totals().instances)"
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
        other = subprocess.run(
            [sys.executable, "-c", program, self.path], env=environment, capture_output=True, check=True
        )
        self.assertEqual(other.stdout, b"1\n")
        self.assertTrue(os.path.exists(self.path + "-wal"))
        self.index.add([instance("b")])
        self.assertEqual(self.index.totals().instances, 2)

    def test_fault(self) -> None:
        """What cannot be synced is unavailable, and so is a closed index."""
        self.index.add([instance("a")])
        with (
            mock.patch.object(os, "fsync", side_effect=OSError(5, "Input/output error")),
            self.assertRaisesRegex(IndexUnavailable, f"^index {self.path}: Input/output error$"),
        ):
            self.index.make_durable()
        self.index.make_durable()
        self.index.close()
        self.assertRaises(IndexUnavailable, self.index.make_durable)


class OpenTests(IndexTestCase):
    """The life of the database."""

    def test_settings(self) -> None:
        """Write-ahead log, not synced with every commit; the schema's number; marked as ours."""
        self.assertEqual(self.query("PRAGMA journal_mode"), [("wal",)])
        self.assertEqual(self.query("PRAGMA user_version"), [(SCHEMA_VERSION,)])
        self.assertEqual(self.query("PRAGMA application_id"), [(APPLICATION_ID,)])
        assert self.index._connection is not None
        self.assertEqual(self.index._connection.execute("PRAGMA synchronous").fetchall(), [(1,)])

    def test_reopened(self) -> None:
        """What was added is there after closing and opening, and closing leaves the database in one file."""
        self.index.add([instance("a")])
        self.index.close()
        self.assertEqual(os.listdir(os.path.dirname(self.path)), ["index.db"])
        self.index = self.open()
        self.assertEqual(self.index.totals(), Totals(1, 1, 1, 1, 100))

    def test_closed(self) -> None:
        """Closing twice is harmless; a closed index takes nothing."""
        self.index.close()
        self.index.close()
        self.assertUnavailable([instance("a")], "closed")

    def test_name_with_special_characters(self) -> None:
        """A path is taken literally, whatever an address would make of it."""
        path = os.path.join(self.mktemp(), "a?mode=ro#%41 ä", "index.db")
        index = Index(path)
        index.add([instance("a")])
        self.assertTrue(os.path.exists(path))
        index.close()

    def test_newer_schema(self) -> None:
        """A database of a newer schema is refused in one line, and left as it is."""
        self.index.close()
        connection = sqlite3.connect(self.path)
        connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
        connection.close()
        with self.assertRaisesRegex(
            IndexUnavailable, rf"^index {self.path}: .* schema {SCHEMA_VERSION + 1}.*newer"
        ):
            self.open()
        self.assertEqual(self.query("PRAGMA user_version"), [(SCHEMA_VERSION + 1,)])

    def test_foreign_database(self) -> None:
        """Another program's database, and a file that is none, are refused and left as they are."""
        directory = os.path.dirname(self.path)
        self.path = os.path.join(directory, "foreign.db")
        connection = sqlite3.connect(self.path)
        connection.execute("CREATE TABLE accounts (name TEXT)")
        connection.commit()
        connection.close()
        with self.assertRaisesRegex(IndexUnavailable, "another program"):
            self.open()
        self.assertEqual(self.query("SELECT name FROM sqlite_master"), [("accounts",)])
        self.assertEqual(self.query("PRAGMA journal_mode"), [("delete",)])
        self.path = os.path.join(directory, "text")
        with open(self.path, "w", encoding="ascii") as file:
            file.write("not a database, but a text " * 100)
        with self.assertRaisesRegex(IndexUnavailable, "not a database"):
            self.open()

    def test_no_place(self) -> None:
        """A path that cannot be had is one line."""
        directory = os.path.dirname(self.path)
        for path in (directory, os.path.join(self.path, "below"), "/proc/none/index.db"):
            with self.assertRaises(IndexUnavailable) as caught:
                Index(path)
            self.assertIn(path, str(caught.exception))
            self.assertNotIn("\n", str(caught.exception))

    def test_creation_interrupted(self) -> None:
        """A creation that fails leaves an empty database, which the next one completes."""
        self.index.close()
        os.unlink(self.path)
        with mock.patch.object(importlib.resources, "files") as files:
            joined = files.return_value.joinpath.return_value
            joined.read_text.return_value = "CREATE TABLE patients (id);\nCREATE NONSENSE;\n"
            self.assertRaises(IndexUnavailable, self.open)
        self.assertEqual(self.query("SELECT * FROM sqlite_master"), [])
        self.index = self.open()
        self.index.add([instance("a")])

    def test_created_twice_at_once(self) -> None:
        """Two that create the database at the same moment end with one schema."""
        self.index.close()
        os.unlink(self.path)

        def create(connection: sqlite3.Connection, path: str) -> None:
            """Another process is faster."""
            with mock.patch.object(index_module, "create_or_upgrade", create_or_upgrade):
                self.open().close()
            create_or_upgrade(connection, path)

        with mock.patch.object(index_module, "create_or_upgrade", create):
            self.index = self.open()
        self.index.add([instance("a")])
        self.assertEqual(self.index.totals().instances, 1)

    def test_killed(self) -> None:
        """After a kill in the middle of a transaction the committed ones are whole, and that one has not been."""
        self.index.close()
        program = (
            "import os, signal, sys\n"
            "from tests.test_index import instance\n"
            "from storescp import index\n"
            "database = index.Index(sys.argv[1])\n"
            "database.add([instance('a'), instance('b')])\n"
            "index.prune = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
            "database.add([instance('c'), instance('d', series='1.2')])\n"
        )
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
        killed = subprocess.run([sys.executable, "-c", program, self.path], env=environment, check=False)
        self.assertEqual(killed.returncode, -9)
        self.index = self.open()
        self.assertEqual(self.index.totals(), Totals(1, 1, 1, 2, 200))
        self.assertEqual(self.query("PRAGMA integrity_check"), [("ok",)])


class FaultTests(IndexTestCase):
    """What goes wrong while running."""

    def setUp(self) -> None:
        super().setUp()
        self.index.add([instance("a")])

    def test_locked(self) -> None:
        """While another writer holds the lock the index is unavailable, afterwards it goes on."""
        other = sqlite3.connect(self.path, isolation_level=None)
        self.addCleanup(other.close)
        other.execute("BEGIN IMMEDIATE")
        self.assertUnavailable([instance("b")], "locked")
        self.assertUnavailable([instance("b")], "locked")
        other.execute("ROLLBACK")
        self.index.add([instance("b")])
        self.assertEqual(self.index.totals(), Totals(1, 1, 1, 2, 200))

    def test_no_half_transaction(self) -> None:
        """A failure in any statement takes back the whole batch, new series included, and the next batch succeeds."""
        batch = [instance("b", series="1.2"), instance("c", study="2", patient_id="Q"), instance("d")]
        for event in ("INSERT ON instances", "UPDATE ON series", "INSERT ON series", "INSERT ON studies"):
            other = sqlite3.connect(self.path)
            other.execute(
                f"CREATE TRIGGER fault AFTER {event} BEGIN SELECT raise(ABORT, 'no more'); END"
                if event != "INSERT ON instances"
                else f"CREATE TRIGGER fault AFTER {event} WHEN NEW.path = 'd'"
                " BEGIN SELECT raise(ABORT, 'no more'); END"
            )
            other.commit()
            self.assertUnavailable(batch, "no more")
            self.assertEqual(self.index.totals(), Totals(1, 1, 1, 1, 100), event)
            other.execute("DROP TRIGGER fault")
            other.commit()
            other.close()
        self.index.add(batch)
        self.assertEqual(self.index.totals(), Totals(2, 2, 3, 4, 400))

    def test_full(self) -> None:
        """When there is no room for the database, nothing is entered; with room again it goes on."""
        assert self.index._connection is not None
        self.index._connection.execute("PRAGMA max_page_count = 1")  # becomes the present size
        batch = [instance(f"{number:0500}", study=str(number)) for number in range(100)]
        self.assertUnavailable(batch, "full")
        self.assertEqual(self.index.totals(), Totals(1, 1, 1, 1, 100))
        self.index.add(batch)
        self.assertEqual(self.index.totals().instances, 101)

    def test_removed(self) -> None:
        """A database whose file has been removed is not written to, nor made anew; put back, it goes on."""
        moved = self.path + ".moved"
        other = sqlite3.connect(self.path)
        other.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        other.close()
        os.rename(self.path, moved)
        self.assertUnavailable([instance("b")], "No such file")
        self.assertUnavailable([instance("b")], "No such file")
        self.assertRaises(IndexUnavailable, self.index.totals)
        self.assertRaises(IndexUnavailable, self.index.counts, "1.1")
        self.assertFalse(os.path.exists(self.path))
        os.rename(moved, self.path)
        self.index.add([instance("b")])
        self.assertEqual(self.index.totals(), Totals(1, 1, 1, 2, 200))

    def test_exchanged(self) -> None:
        """When another index has taken the place of the file, that one is gone on with; an empty file is refused."""
        self.index.add([instance("b", series="1.2")])
        other_path = self.path + ".other"
        other = Index(other_path)
        other.add([instance("x", series="1.2"), instance("y", series="1.7")])
        other.close()
        os.replace(other_path, self.path)
        for suffix in ("-wal", "-shm"):
            os.unlink(self.path + suffix)
        self.index.add([instance("c", series="1.2")])
        self.assertEqual(self.index.totals(), Totals(1, 1, 2, 3, 300))
        self.assertEqual(self.index.counts("1.1", "1.2"), Counts(1, 2, 200))
        with open(other_path, "wb"):
            pass
        os.replace(other_path, self.path)
        self.assertUnavailable([instance("d")], "empty")

    def test_corrupt(self) -> None:
        """A database overwritten with noise is unavailable to all calls, and to the next start."""
        other = sqlite3.connect(self.path)
        other.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        other.close()
        size = os.path.getsize(self.path)
        with open(self.path, "r+b") as file:
            file.write(b"\xa5" * size)
        assert self.index._connection is not None
        self.index._connection.execute("PRAGMA shrink_memory")
        self.assertUnavailable([instance("b")], "malformed|not a database")
        self.assertUnavailable([instance("b")], "not a database")
        self.assertRaises(IndexUnavailable, self.index.totals)
        self.assertRaises(IndexUnavailable, self.open)
