"""Writes the lists of the conformance statement: ``python tools/conformance.py`` renews docs/conformance.rst.

What stands there between ``.. generated: NAME`` and ``.. end of NAME`` is made here, from the code and from the answers
that it gives; all else is written by hand. ``--check`` changes nothing, and fails if something would have changed.
"""

from __future__ import annotations

import pathlib
import re
import sys
from collections.abc import Callable, Iterable
from importlib.metadata import version

from pydicom._uid_dict import UID_dictionary
from twisted.internet import reactor
from twisted.internet.base import ReactorBase

from storescp import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME, negotiation, pdu
from storescp.commitment_data import ActionStatus, FailureReason
from storescp.config import OPTIONS, load
from storescp.dimse import Status
from storescp.extended_negotiation import (
    STORAGE_SERVICE_CLASS,
    CommonExtendedNegotiation,
    ExtendedNegotiation,
    RoleSelection,
)
from storescp.receiver import Receiver
from storescp.sop_classes import TRANSFER_SYNTAXES, is_storage

DOCUMENT = pathlib.Path(__file__).parent.parent / "docs" / "conformance.rst"

CT = "1.2.840.10008.5.1.4.1.1.2"
EXPLICIT = "1.2.840.10008.1.2.1"

# What peers may look for here, by keyword; a list of those that are refused.
SERVICES = (
    *("StudyRootQueryRetrieveInformationModelFind", "StudyRootQueryRetrieveInformationModelMove"),
    *("StudyRootQueryRetrieveInformationModelGet", "PatientRootQueryRetrieveInformationModelFind"),
    *("PatientRootQueryRetrieveInformationModelMove", "PatientRootQueryRetrieveInformationModelGet"),
    *("ModalityWorklistInformationModelFind", "ModalityPerformedProcedureStep"),
    *("InstanceAvailabilityNotification", "StorageCommitmentPushModel", "UnifiedProcedureStepPush"),
    *("BasicGrayscalePrintManagementMeta", "HangingProtocolStorage", "CTDefinedProcedureProtocolStorage"),
)

STATUSES = {
    Status.SUCCESS: "The instance is stored, as safely as ``--sync`` says, or the echo answered",
    Status.PROCESSING_FAILURE: "A fault of our own; the log has it",
    Status.DUPLICATE_SOP_INSTANCE: "The instance is stored already, see ``--duplicate``",
    Status.SOP_CLASS_NOT_SUPPORTED: "The SOP class is not that of the presentation context",
    Status.DUPLICATE_INVOCATION: "An operation with this message ID is outstanding, in an operations window",
    Status.UNRECOGNIZED_OPERATION: "A command that the SOP class of the context does not have",
    Status.OUT_OF_RESOURCES: "Disk full or failing, index unavailable, or larger than ``--max-object-size``",
    Status.DATA_SET_DOES_NOT_MATCH_SOP_CLASS: "SOP class or instance UID of data set and command differ",
    Status.CANNOT_UNDERSTAND: "No data set, its head cannot be read, or a UID is missing or unsafe as a name",
}

ACTION_STATUSES = {
    ActionStatus.SUCCESS: "That a report is owed is on the disk",
    ActionStatus.PROCESSING_FAILURE: "A fault of our own; the log has it",
    ActionStatus.NO_SUCH_SOP_INSTANCE: "Another instance than the well-known one",
    ActionStatus.INVALID_ARGUMENT_VALUE: "Undecodable, nothing referred to, or the Transaction UID is in use",
    ActionStatus.NO_SUCH_SOP_CLASS: "Another SOP class than that of the context",
    ActionStatus.NO_SUCH_ACTION: "Another Action Type ID than 1",
    ActionStatus.UNRECOGNIZED_OPERATION: "Another command than N-ACTION",
    ActionStatus.RESOURCE_LIMITATION: "Beyond ``--commitment-max-items`` or ``--commitment-max-owed``; a failing disk",
}

FAILURE_REASONS = {
    FailureReason.PROCESSING_FAILURE: "The file has another size than it was stored with, or cannot be read or synced",
    FailureReason.NO_SUCH_OBJECT_INSTANCE: "The index has no such instance, or its file is gone",
    FailureReason.CLASS_INSTANCE_CONFLICT: "The instance is stored under another SOP class",
    FailureReason.REFERENCED_SOP_CLASS_NOT_SUPPORTED: "It is not stored, and of a SOP class that is not taken",
}

ITEMS = {
    0x51: "Maximum Length",
    0x52: "Implementation Class UID",
    0x53: "Asynchronous Operations Window",
    0x54: "SCP/SCU Role Selection",
    0x55: "Implementation Version Name",
    0x56: "SOP Class Extended Negotiation",
    0x57: "SOP Class Common Extended Negotiation",
    0x58: "User Identity Negotiation (answered by 59H)",
}

# What an association is like: of all options those.
PARAMETERS = (
    *(
        "port",
        "tls-port",
        "ae-title",
        "check-called-ae",
        "accept",
        "prefer",
        "prefer-for",
        "duplicate",
        "sync",
    ),
    *("max-assoc", "max-pending", "max-pdu", "max-object-size", "async-window", "timeout", "artim-timeout"),
    *("min-rate", "progress-timeout", "auth", "auth-required", "jwt-key", "tls-profile", "tls-client-cert"),
    *("no-commitment", "commitment-delay", "commitment-retry", "commitment-keep"),
    *("commitment-max-items", "commitment-max-owed"),
)

RESULTS = {1: "permanent", 2: "transient"}
SOURCES = {1: "service user", 2: "service provider (ACSE)", 3: "service provider (presentation)"}


def policy() -> negotiation.Policy:
    """What a server without any options takes."""
    assert isinstance(reactor, ReactorBase)
    return Receiver(load(None, {}), reactor).factory.policy


def table(*rows: Iterable[object]) -> list[str]:
    """A table of which the first row is the head."""
    cells = [[str(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    rule = " ".join("=" * width for width in widths)
    lines = [" ".join(map(str.ljust, row, widths)).rstrip() for row in cells]
    return [rule, lines[0], rule, *lines[1:], rule]


def name(uid: str) -> str:
    """The name of a registered UID."""
    return TRANSFER_SYNTAXES.get(uid) or UID_dictionary[uid][0]


def services() -> list[str]:
    """The network services."""
    syntaxes = policy().abstract_syntaxes
    storage = sum(map(is_storage, syntaxes))
    others = sorted((uid for uid in syntaxes if not is_storage(uid)), key=name)
    return table(
        ("Service or SOP class", "UID", "Provider (SCP)"),
        (f"Storage: {storage} SOP classes, listed below", STORAGE_SERVICE_CLASS, "yes"),
        *((name(uid), uid, "yes") for uid in others),
    )


def registry() -> list[str]:
    """Whose list of what the standard has."""
    return [f"By PS3.6 as pydicom {version('pydicom')} has it."]


def sop_classes() -> list[str]:
    """The storage SOP classes."""
    classes = sorted(filter(is_storage, policy().abstract_syntaxes), key=lambda uid: (name(uid).lower(), uid))
    return table(("SOP class", "UID"), *((name(uid), uid) for uid in classes))


def transfer_syntaxes() -> list[str]:
    """The transfer syntaxes of instances."""

    def order(uid: str) -> list[int]:
        return list(map(int, uid.split(".")))

    return table(
        ("Transfer syntax", "UID"),
        *((name(uid), uid) for uid in sorted(policy().transfer_syntaxes, key=order)),
    )


def refused() -> list[str]:
    """SOP classes that are refused."""
    by_keyword = {row[4]: uid for uid, row in UID_dictionary.items()}
    uids = [uid for uid in map(by_keyword.__getitem__, SERVICES) if uid not in policy().abstract_syntaxes]
    return table(("SOP class", "UID"), *((name(uid), uid) for uid in uids))


def parameters() -> list[str]:
    """What the server says of itself."""
    limits = load(None, {})
    return table(
        ("Parameter", "Value"),
        ("Application Context Name", pdu.APPLICATION_CONTEXT_NAME),
        ("Implementation Class UID", IMPLEMENTATION_CLASS_UID),
        ("Implementation Version Name", IMPLEMENTATION_VERSION_NAME),
        ("Maximum PDU Length", f"{limits.max_pdu}; of requestors any is respected"),
        ("Presentation contexts in a request", f"at most {pdu.MAXIMUM_CONTEXTS}"),
        ("Transfer syntaxes in a context", f"at most {pdu.MAXIMUM_TRANSFER_SYNTAXES}"),
        ("Length of an A-ASSOCIATE-RQ", f"at most {pdu.MAXIMUM_ASSOCIATE_LENGTH} bytes"),
        ("Simultaneous associations", limits.max_assoc),
    )


def answer(*others: tuple[int, bytes]) -> pdu.AAssociateAC:
    """The answer, as it is on the wire, to a request for CT with these items of the user information."""
    user_information = pdu.UserInformation(16384, "1.2.3", "PEER", others)
    context = pdu.PresentationContext(1, CT, (EXPLICIT,))
    request = pdu.decode(pdu.AAssociateRQ("SCP", "SCU", (context,), user_information).encode())
    assert isinstance(request, pdu.AAssociateRQ)
    given = negotiation.negotiate(request, policy())
    assert isinstance(given, pdu.AAssociateAC)
    return given


def items() -> list[str]:
    """Which items of the user information are answered."""
    encoded = answer(
        (0x53, b"\0\2\0\2"),
        RoleSelection(CT, scu=True, scp=True).item,
        ExtendedNegotiation(CT, bytes((3, 0, 0, 0, 2))).item,
        CommonExtendedNegotiation(CT, STORAGE_SERVICE_CLASS).item,
    ).user_information.encode()[4:]
    found = set()
    while encoded:
        found.add(encoded[0])
        encoded = encoded[4 + int.from_bytes(encoded[2:4], "big") :]
    return table(
        ("Item", "Name", "Answered"),
        *((f"{item:02X}H", ITEMS[item], "yes" if item in found else "no") for item in ITEMS if item != 0x58),
        ("58H", ITEMS[0x58], "if users are checked, and a response is requested"),
    )


def rejections() -> list[str]:
    """Why associations are rejected."""
    reasons = sorted(negotiation.REJECT_REASONS.items(), key=lambda item: item[0].encode())
    return table(
        ("Result", "Source", "Reason", "Meaning"),
        ("1, permanent", "2, service provider (ACSE)", 2, "protocol version not supported"),
        *(
            (f"{r.result}, {RESULTS[r.result]}", f"{r.source}, {SOURCES[r.source]}", r.reason, meaning)
            for r, meaning in reasons
        ),
    )


def results() -> list[str]:
    """Results of presentation contexts."""
    return table(
        ("Result", "When"),
        (negotiation.ACCEPTANCE, "accepted, with one of the transfer syntaxes proposed"),
        (negotiation.USER_REJECTION, "the requestor proposes to be the SCP alone"),
        (negotiation.ABSTRACT_SYNTAX_NOT_SUPPORTED, "a SOP class that is not taken, from this caller"),
        (negotiation.TRANSFER_SYNTAXES_NOT_SUPPORTED, "no transfer syntax that is taken, from this caller"),
    )


def aborts() -> list[str]:
    """Why associations are aborted."""
    return table(
        ("Source", "Reason", "When"),
        *(
            (kind.source, kind.reason, (kind.__doc__ or "").splitlines()[0].rstrip("."))
            for kind in (pdu.UnrecognizedPDU, pdu.UnexpectedPDU, pdu.InvalidPDU)
        ),
        (0, 0, "Fragments that make no message, idleness, no progress, the end of a stop"),
    )


def statuses() -> list[str]:
    """Statuses of responses."""
    words = {status: status.name.replace("_", " ").lower() for status in Status}
    return table(
        ("Status", "Name", "When"),
        *((f"{status:04X}H", words[status], STATUSES.get(status, "")) for status in sorted(Status)),
    )


def commitment_statuses() -> list[str]:
    """Statuses of the answers to requests for storage commitment."""
    words = {status: status.name.replace("_", " ").lower() for status in ActionStatus}
    return table(
        ("Status", "Name", "When"),
        *((f"{status:04X}H", words[status], ACTION_STATUSES[status]) for status in ActionStatus),
    )


def commitment_failures() -> list[str]:
    """Reasons for which instances are not committed."""
    return table(
        ("Reason", "When"), *((f"{reason:04X}H", FAILURE_REASONS[reason]) for reason in FailureReason)
    )


def configuration() -> list[str]:
    """Options that an association is judged by."""
    options = {option.name: option for option in OPTIONS}
    return table(
        ("Option", "Default"),
        *((f"``--{name}``", options[name].default or "none") for name in PARAMETERS if name in options),
    )


SECTIONS: dict[str, Callable[[], list[str]]] = {
    "services": services,
    "registry": registry,
    "SOP classes": sop_classes,
    "transfer syntaxes": transfer_syntaxes,
    "refused": refused,
    "parameters": parameters,
    "items": items,
    "rejections": rejections,
    "results": results,
    "aborts": aborts,
    "statuses": statuses,
    "commitment statuses": commitment_statuses,
    "commitment failures": commitment_failures,
    "configuration": configuration,
}


# They change with pydicom.
OF_THE_REGISTRY = ("services", "registry", "SOP classes", "transfer syntaxes", "refused")


def renewed(text: str, *, but: tuple[str, ...] = ()) -> str:
    """The document with its lists made anew, *but* those of these names."""

    def section(match: re.Match[str]) -> str:
        if match[1] in but:
            return match[0]
        lines = "\n".join(SECTIONS[match[1]]())
        return f".. generated: {match[1]}\n\n{lines}\n\n.. end of {match[1]}\n"

    text, count = re.subn(r"^\.\. generated: (.+)\n(?:.*\n)*?\.\. end of \1\n", section, text, flags=re.M)
    assert count == len(SECTIONS), f"{count} of {len(SECTIONS)} sections"
    return text


def main() -> int:
    """The exit status."""
    text = DOCUMENT.read_text()
    if "--check" in sys.argv[1:]:
        # What another version of pydicom lists is no reason to call the document wrong.
        new = renewed(text, but=() if registry()[0] in text else OF_THE_REGISTRY)
        if new != text:
            print("docs/conformance.rst is out of date: python tools/conformance.py renews it")
        return int(new != text)
    DOCUMENT.write_text(renewed(text))
    return 0


if __name__ == "__main__":
    sys.exit(main())
