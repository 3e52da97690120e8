-- From schema 1 to 2: the digest of a file, unknown for what is there already, and another index of SOP Instance UIDs.
ALTER TABLE instances ADD COLUMN digest TEXT;
DROP INDEX instances_by_sop_instance_uid;
-- UIDs have no order: an index of them all would have each image change another page, and read it first, the more so
-- the larger it is. So it is one of generations of 8192 images: only the last is written to, however many there are.
CREATE INDEX instances_by_sop_instance_uid ON instances (id >> 13, sop_instance_uid);
-- "WHERE sop_instance_uid = ?" uses it as it stands, a search in each generation (a skip-scan), once SQLite has been
-- told that there are few: rows in all, in a generation, with the same UID.
ANALYZE sqlite_schema;
INSERT INTO sqlite_stat1 VALUES ('instances', 'instances_by_sop_instance_uid', '1000000 8192 1');
