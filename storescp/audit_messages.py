"""DICOM audit messages, PS3.15 §A.5: what a receiver of images has to report, as XML after the standard's schema.

What belongs here: what each message says. It never has a patient's name, and a patient's ID only where the standard
wants one. Who reports, and when, is the business of :mod:`storescp.audit`.
"""

from __future__ import annotations

import base64
import datetime
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, NamedTuple
from xml.etree.ElementTree import Element, SubElement, tostring

#: EventOutcomeIndicator, §A.5.2: the action was done; it was not, and may be tried again.
SUCCESS: Final = "0"
MINOR_FAILURE: Final = "4"

# What XML 1.0 has no way to write, §2.2 there.
_unwritable = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


class Code(NamedTuple):
    """A coded term."""

    value: str
    scheme: str
    meaning: str


# PS3.16 CID 400 to 405, as far as they are used here.
_APPLICATION_ACTIVITY = Code("110100", "DCM", "Application Activity")
_BEGIN_TRANSFERRING = Code("110102", "DCM", "Begin Transferring DICOM Instances")
_INSTANCES_TRANSFERRED = Code("110104", "DCM", "DICOM Instances Transferred")
_SECURITY_ALERT = Code("110113", "DCM", "Security Alert")
_USER_AUTHENTICATION = Code("110114", "DCM", "User Authentication")
_APPLICATION_START = Code("110120", "DCM", "Application Start")
_APPLICATION_STOP = Code("110121", "DCM", "Application Stop")
_LOGIN = Code("110122", "DCM", "Login")
_NODE_AUTHENTICATION = Code("110126", "DCM", "Node Authentication")
_APPLICATION = Code("110150", "DCM", "Application")
_DESTINATION = Code("110152", "DCM", "Destination Role ID")
_SOURCE = Code("110153", "DCM", "Source Role ID")
_STUDY_INSTANCE_UID = Code("110180", "DCM", "Study Instance UID")
_NODE_ID = Code("110182", "DCM", "Node ID")
_PATIENT_NUMBER = Code("2", "RFC-3881", "Patient Number")


@dataclass(frozen=True, slots=True)
class Reporter:
    """The process that reports: ``source`` and ``site`` name the system, ``process`` is as in its own log."""

    source: str
    site: str
    process: str
    host: str


@dataclass(frozen=True, slots=True)
class Peer:
    """Who is at the other end of a connection, as far as it has said: AE titles, IP address, user."""

    calling_ae_title: str
    called_ae_title: str
    address: str
    user: str = ""


class Study(NamedTuple):
    """What was transferred of one study of one patient: numbers of instances by SOP class."""

    study_instance_uid: str
    patient_id: str
    instances: Mapping[str, int]


def application_activity(
    reporter: Reporter, ae_title: str, when: datetime.datetime, *, stopped: bool
) -> bytes:
    """§A.5.3.1: the server has started, or is about to stop."""
    message = _message(
        _APPLICATION_ACTIVITY, "E", when, SUCCESS, _APPLICATION_STOP if stopped else _APPLICATION_START
    )
    _we(message, reporter, ae_title, _APPLICATION)
    _source(message, reporter)
    return _encoded(message)


def begin_transferring(reporter: Reporter, peer: Peer, when: datetime.datetime, study: Study) -> bytes:
    """§A.5.3.3: a peer has begun to send instances of a study."""
    message = _message(_BEGIN_TRANSFERRING, "E", when, SUCCESS)
    _transfer(message, reporter, peer, study)
    return _encoded(message)


def instances_transferred(
    reporter: Reporter, peer: Peer, when: datetime.datetime, study: Study, *, new: bool, failure: str = ""
) -> bytes:
    """§A.5.3.7: what a peer has sent of a study on one association. What has failed has a message of its own.

    *new*: we know that we did not have any of it before.
    """
    outcome = MINOR_FAILURE if failure else SUCCESS
    message = _message(_INSTANCES_TRANSFERRED, "C" if new else "R", when, outcome, description=failure)
    _transfer(message, reporter, peer, study)
    return _encoded(message)


def node_rejected(reporter: Reporter, peer: Peer, when: datetime.datetime, why: str) -> bytes:
    """§A.5.3.11, Security Alert: a peer has not shown that it may speak to us."""
    message = _message(_SECURITY_ALERT, "E", when, MINOR_FAILURE, _NODE_AUTHENTICATION, description=why)
    _we(message, reporter, peer.called_ae_title)
    _participant(message, peer.calling_ae_title or peer.address, peer, requestor=False)
    _source(message, reporter)
    subject = _object(message, "2", "13", peer.address or "local socket", _NODE_ID)
    detail = SubElement(subject, "ParticipantObjectDetail", type="Alert Description")
    detail.set("value", base64.b64encode(why.encode("utf-8", "replace")).decode())
    return _encoded(message)


def user_authentication(reporter: Reporter, peer: Peer, when: datetime.datetime, failure: str = "") -> bytes:
    """§A.5.3.12: a user has shown who it is, or has not."""
    outcome = MINOR_FAILURE if failure else SUCCESS
    message = _message(_USER_AUTHENTICATION, "E", when, outcome, _LOGIN, description=failure)
    user = _participant(message, peer.user or "unknown", peer, requestor=True)
    if not peer.address:  # mandatory here
        user.set("NetworkAccessPointID", reporter.host)
        user.set("NetworkAccessPointTypeCode", "1")
    _we(message, reporter, peer.called_ae_title)
    _source(message, reporter)
    return _encoded(message)


# -- parts --


def _message(
    event: Code,
    action: str,
    when: datetime.datetime,
    outcome: str,
    kind: Code | None = None,
    *,
    description: str = "",
) -> Element:
    message = Element("AuditMessage")
    identification = SubElement(
        message,
        "EventIdentification",
        EventActionCode=action,
        EventDateTime=when.isoformat(timespec="milliseconds"),
        EventOutcomeIndicator=outcome,
    )
    _code(identification, "EventID", event)
    if kind is not None:
        _code(identification, "EventTypeCode", kind)
    if description:
        SubElement(identification, "EventOutcomeDescription").text = description
    return message


def _transfer(message: Element, reporter: Reporter, peer: Peer, study: Study) -> None:
    _participant(message, peer.calling_ae_title, peer, requestor=True, role=_SOURCE)
    _we(message, reporter, peer.called_ae_title, _DESTINATION)
    if peer.user:
        SubElement(message, "ActiveParticipant", UserID=peer.user, UserIsRequestor="false")
    _source(message, reporter)
    part = _object(message, "2", "3", study.study_instance_uid, _STUDY_INSTANCE_UID)
    description = SubElement(part, "ParticipantObjectDescription")
    for sop_class, count in study.instances.items():
        SubElement(description, "SOPClass", UID=sop_class, NumberOfInstances=str(count))
    _object(message, "1", "1", study.patient_id, _PATIENT_NUMBER)


def _we(message: Element, reporter: Reporter, ae_title: str, role: Code | None = None) -> None:
    """The process that is the server."""
    participant = SubElement(
        message,
        "ActiveParticipant",
        UserID=reporter.process,
        AlternativeUserID=f"AETITLES={ae_title}",
        UserName="storescp",
        UserIsRequestor="false",
        NetworkAccessPointID=reporter.host,
        NetworkAccessPointTypeCode="1",  # a name
    )
    if role is not None:
        _code(participant, "RoleIDCode", role)


def _participant(
    message: Element, user_id: str, peer: Peer, *, requestor: bool, role: Code | None = None
) -> Element:
    """The peer."""
    participant = SubElement(
        message, "ActiveParticipant", UserID=user_id, UserIsRequestor=str(requestor).lower()
    )
    if peer.calling_ae_title:
        participant.set("AlternativeUserID", f"AETITLES={peer.calling_ae_title}")
    if peer.address:
        participant.set("NetworkAccessPointID", peer.address)
        participant.set("NetworkAccessPointTypeCode", "2")  # an IP address
    if role is not None:
        _code(participant, "RoleIDCode", role)
    return participant


def _source(message: Element, reporter: Reporter) -> None:
    source = SubElement(message, "AuditSourceIdentification", AuditSourceID=reporter.source)
    if reporter.site:
        source.set("AuditEnterpriseSiteID", reporter.site)
    SubElement(source, "AuditSourceTypeCode").set("csd-code", "4")  # an application server


def _object(message: Element, kind: str, role: str, identifier: str, kind_of_id: Code) -> Element:
    part = SubElement(
        message,
        "ParticipantObjectIdentification",
        ParticipantObjectID=identifier,
        ParticipantObjectTypeCode=kind,
        ParticipantObjectTypeCodeRole=role,
    )
    _code(part, "ParticipantObjectIDTypeCode", kind_of_id)
    # The schema wants a name or a query. A patient's name nobody needs to learn from an audit.
    SubElement(part, "ParticipantObjectName")
    return part


def _code(parent: Element, name: str, code: Code) -> None:
    element = SubElement(parent, name)
    element.set("csd-code", code.value)
    element.set("codeSystemName", code.scheme)
    element.set("originalText", code.meaning)


def _encoded(message: Element) -> bytes:
    for element in message.iter():
        if element.text:
            element.text = _unwritable.sub("\ufffd", element.text)
        for name, value in element.items():
            if _unwritable.search(value):
                element.set(name, _unwritable.sub("\ufffd", value))
    return b'<?xml version="1.0" encoding="UTF-8"?>' + tostring(message, "unicode").encode("utf-8")
