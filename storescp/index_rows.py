"""The rows of the index: values, and the statements that enter and remove them. Blocking; no Twisted.

What belongs here: what stands in which table. Whose connection it is, and when a transaction begins and ends, is the
business of :mod:`storescp.index`. The tables are described in ``index_schema_2.sql``.
"""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

from storescp import tags
from storescp.dataset_head import Head

INSERT_INSTANCE = """
    INSERT INTO instances (
        series, sop_instance_uid, sop_class_uid, transfer_syntax_uid, instance_number, number_of_frames,
        "rows", "columns", size, path, calling_ae_title, received_at, digest
    ) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (path) DO NOTHING
"""
ROW = "path, sop_class_uid, sop_instance_uid, transfer_syntax_uid, size, digest"
COUNT = "UPDATE series SET instances = instances + ?, bytes = bytes + ? WHERE id = ?"

InstanceValues = tuple[
    int, str, str, str, int | None, int | None, int | None, int | None, int, str, str, float, str | None
]
"""Those of an instance, as INSERT_INSTANCE has them."""


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


def series_of(connection: sqlite3.Connection, head: Head) -> int:
    """The number of the series that *head* belongs to; it is entered if new, and so are study and patient."""
    study_instance_uid, series_instance_uid = (
        head.uid(tags.STUDY_INSTANCE_UID),
        head.uid(tags.SERIES_INSTANCE_UID),
    )
    if study_instance_uid is None or series_instance_uid is None:
        raise ValueError("an instance without Study or Series Instance UID cannot be indexed")
    text = head.text
    study = find_number(connection, "SELECT id FROM studies WHERE study_instance_uid = ?", study_instance_uid)
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
    series = find_number(
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
        patient = find_number(
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


def remove_instances(connection: sqlite3.Connection, paths: Iterable[str]) -> Counter[int]:
    """Remove the instances at *paths*; returns how many, by series."""
    removed: Counter[int] = Counter()
    for path in paths:
        for series, size in connection.execute(
            "DELETE FROM instances WHERE path = ? RETURNING series, size", (path,)
        ).fetchall():
            connection.execute(COUNT, (-1, -size, series))
            removed[series] += 1
    return removed


def prune(connection: sqlite3.Connection, series: Iterable[int]) -> None:
    """Remove those of *series* that nothing is left of, and the study and the patient above likewise."""
    for number in series:
        study = find_number(
            connection, "DELETE FROM series WHERE id = ? AND instances = 0 RETURNING study", number
        )
        if study is not None:
            patient = find_number(
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


def find_number(connection: sqlite3.Connection, statement: str, *values: str | int) -> int | None:
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
