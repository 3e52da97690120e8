"""The audit trail: which event is reported, and to whom. See PS3.15 §A.5, and :mod:`storescp.audit_messages`.

What belongs here: what a process reports of itself and of its associations. Nothing waits for it, and no image fails
for it.
"""

from __future__ import annotations

import datetime
import os
import socket
from typing import Final, NamedTuple, Protocol

from twisted.internet.base import ReactorBase
from twisted.internet.defer import Deferred

from storescp import tags
from storescp.access import Caller, Refused
from storescp.audit_messages import (
    Peer,
    Reporter,
    Study,
    application_activity,
    begin_transferring,
    instances_transferred,
    node_rejected,
    user_authentication,
)
from storescp.audit_settings import AuditSettings
from storescp.dimse import Status
from storescp.interfaces import Outcome
from storescp.naming import Duplicate
from storescp.pdu import AAssociateRQ
from storescp.syslog import syslog_to
from storescp.syslog_format import syslog_message

#: Seconds that a stop waits for the receiver.
PATIENCE: Final = 5.0

#: Studies that are counted of one association, and SOP classes and statuses of each: before there are more, all of
#: them are reported.
STUDIES: Final = 64
KINDS: Final = 64

#: Characters of anything that comes from a peer or a data set: DICOM allows 64, broken ones may have more.
LONGEST: Final = 100

# What a node has been refused for as one that may not come in, and not for what it asked or because we were full.
_OF_NODES = frozenset(("rejected_titles", "rejected_addresses", "rejected_certificates", "rejected_called"))


class Association(Protocol):
    """Whom a report is about."""

    host: str
    calling_ae_title: str
    called_ae_title: str
    caller: Caller
    user: str
    """Who has been authenticated; or nobody."""


class Audit:
    """What one process has to report. Raises ValueError, in one line, for what TLS needs and does not find."""

    def __init__(self, settings: AuditSettings, ae_title: str, reactor: ReactorBase) -> None:
        process, host = str(os.getpid()), socket.gethostname()
        self._reporter = Reporter(settings.source or ae_title, settings.site, process, host)
        self._ae_title = ae_title
        self._syslog = syslog_to(settings, reactor)

    def start(self) -> None:
        """Connect to the receiver."""
        self._syslog.start()

    def stop(self) -> Deferred[None]:
        """Send what waits, as far as that goes; fires when it is over."""
        return self._syslog.stop(PATIENCE)

    def started(self) -> None:
        """The server takes associations."""
        when = _now()
        self._send(when, application_activity(self._reporter, self._ae_title, when, stopped=False))

    def stopped(self) -> None:
        """The server takes no more associations, and has none."""
        when = _now()
        self._send(when, application_activity(self._reporter, self._ae_title, when, stopped=True))

    def rejected(self, request: AAssociateRQ, host: str, refused: Refused) -> None:
        """An association was rejected: it is reported if the node, or its user, may not come in."""
        peer = Peer(request.calling_ae_title, request.called_ae_title, host, _user_of(request))
        if refused.counter in _OF_NODES:
            self._node_rejected(peer, refused.why)
        elif refused.counter == "rejected_users":
            self._user(peer, refused.why)

    def tls_refused(self, host: str, why: str) -> None:
        """A connection has not got through the handshake of TLS."""
        self._node_rejected(Peer("", "", host), f"TLS: {why}")

    def authenticated(self, request: AAssociateRQ, host: str, user: str) -> None:
        """A user has shown who it is."""
        self._user(Peer(request.calling_ae_title, request.called_ae_title, host, user[:LONGEST]), "")

    def transfers(self, association: Association, duplicate: Duplicate) -> Transfers:
        """What is to count what *association* brings. See Transfers."""
        return Transfers(self, association, duplicate)

    def begun(self, peer: Peer, study: Study) -> None:
        """The first instance of a study has come on an association."""
        when = _now()
        self._send(when, begin_transferring(self._reporter, peer, when, study))

    def transferred(self, peer: Peer, study: Study, *, new: bool, failure: str) -> None:
        """Instances of a study were stored, or failed to be."""
        when = _now()
        message = instances_transferred(self._reporter, peer, when, study, new=new, failure=failure)
        self._send(when, message)

    def _node_rejected(self, peer: Peer, why: str) -> None:
        when = _now()
        self._send(when, node_rejected(self._reporter, peer, when, why), minor=True)

    def _user(self, peer: Peer, failure: str) -> None:
        when = _now()
        self._send(when, user_authentication(self._reporter, peer, when, failure), minor=True)

    def _send(self, when: datetime.datetime, message: bytes, *, minor: bool = False) -> None:
        reporter = self._reporter
        self._syslog.send(syslog_message(message, when, reporter.host, reporter.process), minor=minor)


class Transfers:
    """What one association brings: counted by study and patient, and reported when it ends.

    Where duplicates are rejected, by its caller's rule or else as *duplicate* says, nothing is stored that was there
    before; else we do not know.
    """

    def __init__(self, audit: Audit, association: Association, duplicate: Duplicate) -> None:
        self._audit = audit
        self._peer = Peer(
            association.calling_ae_title,
            association.called_ae_title,
            association.host,
            association.user[:LONGEST],
        )
        self._new = (association.caller.duplicate or duplicate) is Duplicate.REJECT
        self._counts: dict[tuple[bytes, bytes], _Counts] = {}  # by study and patient

    def add(self, outcome: Outcome) -> None:
        """An instance was stored, or failed to be. Not counted is one of which no head could be read."""
        head = outcome.head
        if head is None:
            return
        raw = head.raw
        key = raw.get(tags.STUDY_INSTANCE_UID, b""), raw.get(tags.PATIENT_ID, b"")
        counts = self._counts.get(key)
        kind = raw.get(tags.SOP_CLASS_UID, b""), outcome.status
        if counts is None or (kind not in counts.of and len(counts.of) >= KINDS):
            if counts is not None or len(self._counts) >= STUDIES:
                self.report()
            study_uid, patient = head.text(tags.STUDY_INSTANCE_UID) or "", head.text(tags.PATIENT_ID) or ""
            study = study_uid[:LONGEST], patient[:LONGEST]
            counts = self._counts[key] = _Counts(study, {})
            self._audit.begun(self._peer, Study(*study, {}))
        counts.of[kind] = counts.of.get(kind, 0) + 1

    def report(self) -> None:
        """Report what was counted, and begin anew: of each study what was stored, and what was not."""
        everything, self._counts = self._counts, {}
        for study, of in everything.values():
            stored: dict[str, int] = {}
            failed: dict[str, int] = {}
            statuses: dict[Status, int] = {}
            for (sop_class, status), count in of.items():
                part = stored if status is Status.SUCCESS else failed
                uid = sop_class[:LONGEST].rstrip(b"\0 ").decode("ascii", "replace")
                part[uid] = part.get(uid, 0) + count
                if part is failed:
                    statuses[status] = statuses.get(status, 0) + count
            why = ", ".join(f"{count} with status {status:04X}H" for status, count in statuses.items())
            for instances, failure in ((stored, ""), (failed, why)):
                if instances:
                    found = Study(*study, instances)
                    self._audit.transferred(self._peer, found, new=self._new, failure=failure)


class _Counts(NamedTuple):
    study: tuple[str, str]
    """Its UID, and the patient's ID."""
    of: dict[tuple[bytes, Status], int]
    """By SOP class and status."""


def _user_of(request: AAssociateRQ) -> str:
    """The user that *request* names, where that is no secret."""
    identity = request.user_information.user_identity
    if identity is None or identity.type not in (1, 2):  # PS3.7 Table D.3-14: a username
        return ""
    return identity.primary[:LONGEST].decode("utf-8", "replace")


def _now() -> datetime.datetime:
    return datetime.datetime.now().astimezone()
