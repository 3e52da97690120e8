-- The index of received instances, schema 1: the information model of PS3.3 §A.1.2, one table an entity.
-- Text is as received, without padding; dates are YYYYMMDD, times HHMMSS.FFFFFF. What an instance did not say is NULL.

-- A patient is known by ID and issuer. Without an ID nothing tells patients apart, so each study has its own.
CREATE TABLE patients (
    id INTEGER PRIMARY KEY,
    patient_id TEXT,
    issuer_of_patient_id TEXT NOT NULL DEFAULT '',
    patient_name TEXT,
    patient_birth_date TEXT,
    patient_sex TEXT,
    UNIQUE (patient_id, issuer_of_patient_id)
);
CREATE INDEX patients_by_name ON patients (patient_name COLLATE NOCASE);

CREATE TABLE studies (
    id INTEGER PRIMARY KEY,
    patient INTEGER NOT NULL REFERENCES patients,
    study_instance_uid TEXT NOT NULL UNIQUE,
    study_date TEXT,
    study_time TEXT,
    study_id TEXT,
    accession_number TEXT,
    study_description TEXT,
    referring_physician_name TEXT
);
CREATE INDEX studies_by_patient ON studies (patient);
CREATE INDEX studies_by_date ON studies (study_date);
CREATE INDEX studies_by_accession_number ON studies (accession_number);

-- "instances" and "bytes" count what belongs to the series; the sums over series are the counts of a study.
-- AUTOINCREMENT: the number of a series that is gone never means another one.
CREATE TABLE series (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    study INTEGER NOT NULL REFERENCES studies,
    series_instance_uid TEXT NOT NULL,
    series_number INTEGER,
    modality TEXT,
    series_description TEXT,
    body_part_examined TEXT,
    station_name TEXT,
    instances INTEGER NOT NULL DEFAULT 0,
    bytes INTEGER NOT NULL DEFAULT 0,
    UNIQUE (study, series_instance_uid)
);

-- A file is an instance: "path" is relative to the storage directory, "size" its length in bytes, "received_at" in
-- POSIX seconds. Every index here is paid for with each image: path, SOP Instance UID and series, no more.
CREATE TABLE instances (
    id INTEGER PRIMARY KEY,
    series INTEGER NOT NULL REFERENCES series,
    sop_instance_uid TEXT NOT NULL,
    sop_class_uid TEXT NOT NULL,
    transfer_syntax_uid TEXT NOT NULL,
    instance_number INTEGER,
    number_of_frames INTEGER,
    "rows" INTEGER,
    "columns" INTEGER,
    size INTEGER NOT NULL,
    path TEXT NOT NULL UNIQUE,
    calling_ae_title TEXT NOT NULL,
    received_at REAL NOT NULL
);
CREATE INDEX instances_by_sop_instance_uid ON instances (sop_instance_uid);
CREATE INDEX instances_by_series ON instances (series);
