"""How an association that we have asked for can fail, in one line. No Twisted.

What belongs here: words for what the peer said, those of the standard, and whether it is worth while to try again.
"""

from __future__ import annotations

from storescp.pdu import AAssociateRJ
from storescp.sop_classes import keyword
from storescp.upper_layer import AbortIndication

# PS3.8 Tables 9-21 and 9-26, in the standard's words.
_RESULTS = {1: "permanent", 2: "transient"}
_SOURCES = {
    1: "service-user",
    2: "service-provider (ACSE related function)",
    3: "service-provider (Presentation related function)",
}
_REASONS = {
    (1, 1): "no-reason-given",
    (1, 2): "application-context-name-not-supported",
    (1, 3): "calling-AE-title-not-recognized",
    (1, 7): "called-AE-title-not-recognized",
    (2, 1): "no-reason-given",
    (2, 2): "protocol-version-not-supported",
    (3, 1): "temporary-congestion",
    (3, 2): "local-limit-exceeded",
}
_ABORT_REASONS = {
    0: "reason-not-specified",
    1: "unrecognized-PDU",
    2: "unexpected-PDU",
    4: "unrecognized-PDU-parameter",
    5: "unexpected-PDU-parameter",
    6: "invalid-PDU-parameter-value",
}


class AssociationError(Exception):
    """There is no association, or no more. The message is one line without the peer's address.

    ``is_transient``: the same may succeed later.
    """

    def __init__(self, why: str, *, is_transient: bool = False) -> None:
        super().__init__(why)
        self.is_transient = is_transient


class Rejected(AssociationError):
    """The peer sent A-ASSOCIATE-RJ; ``response`` has the numbers."""

    def __init__(self, response: AAssociateRJ) -> None:
        result, source, reason = response.result, response.source, response.reason
        super().__init__(
            f"association rejected ({_RESULTS.get(result, f'result {result}')}) by the"
            f" {_SOURCES.get(source, f'source {source}')}: {_REASONS.get((source, reason), f'reason {reason}')}",
            is_transient=result == 2,
        )
        self.response = response


class ContextNotAccepted(Exception):
    """The peer does not take this SOP class in this transfer syntax; the association goes on."""

    def __init__(self, abstract_syntax: str, transfer_syntax: str) -> None:
        super().__init__(
            f"presentation context not accepted: {keyword(abstract_syntax)} in {keyword(transfer_syntax)}"
        )


def aborted(event: AbortIndication) -> AssociationError:
    """What an abort means: of the peer, or of ours because of it."""
    if not event.by_peer:
        return AssociationError(f"the peer broke the protocol: {event.why}")
    if event.source == 0:  # it has been stopped, perhaps
        return AssociationError("association aborted by the service-user", is_transient=True)
    reason = _ABORT_REASONS.get(event.reason, f"reason {event.reason}")
    return AssociationError(
        f"association aborted by the service-provider: {reason}", is_transient=event.reason == 0
    )
