-- Storage commitment, schema 1: the transactions of which the requester has not had its report yet.
-- "references_text" is a line for each instance, SOP Class UID and SOP Instance UID. Times are in POSIX seconds.
-- A report is due from "due_at" on, once nobody is at it: "holder" is the process that is, by its number.
CREATE TABLE transactions (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    calling_ae_title TEXT NOT NULL,
    called_ae_title TEXT NOT NULL,
    transaction_uid TEXT NOT NULL,
    references_text TEXT NOT NULL,
    requested_at REAL NOT NULL,
    due_at REAL NOT NULL,
    attempts INTEGER NOT NULL DEFAULT 0,
    holder INTEGER,
    UNIQUE (calling_ae_title, transaction_uid)
);
CREATE INDEX transactions_by_due_at ON transactions (due_at);
