"""Association negotiation by the acceptor, PS3.8 §7.1 and PS3.7 Annex D: a function of request and policy.

What belongs here: which answer an A-ASSOCIATE-RQ gets. How many associations there are is not known here:
that limit is the factory's, :data:`LOCAL_LIMIT_EXCEEDED` is its answer.
"""

from __future__ import annotations

from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import NamedTuple

from storescp.pdu import (
    APPLICATION_CONTEXT_NAME,
    AAssociateAC,
    AAssociateRJ,
    AAssociateRQ,
    PresentationContext,
    PresentationContextResult,
    UserInformation,
)
from storescp.sop_classes import TRANSFER_SYNTAXES, VERIFICATION

# PS3.8 Table 9-21: result, source, reason.
APPLICATION_CONTEXT_NOT_SUPPORTED = AAssociateRJ(1, 1, 2)
CALLING_AE_TITLE_NOT_RECOGNIZED = AAssociateRJ(1, 1, 3)
CALLED_AE_TITLE_NOT_RECOGNIZED = AAssociateRJ(1, 1, 7)
LOCAL_LIMIT_EXCEEDED = AAssociateRJ(2, 3, 2)
# PS3.7 §D.3.3.7: authorization failures are permanent, by the provider (ACSE), without a reason. One that may be none
# if it is asked for again is not permanent.
USER_NOT_AUTHORIZED = AAssociateRJ(1, 2, 1)
USER_NOT_CHECKED = AAssociateRJ(2, 2, 1)

REJECT_REASONS: dict[AAssociateRJ, str] = {
    APPLICATION_CONTEXT_NOT_SUPPORTED: "application context not supported",
    CALLING_AE_TITLE_NOT_RECOGNIZED: "calling AE title not recognized",
    CALLED_AE_TITLE_NOT_RECOGNIZED: "called AE title not recognized",
    LOCAL_LIMIT_EXCEEDED: "local limit exceeded",
    USER_NOT_AUTHORIZED: "user not authorized",
    USER_NOT_CHECKED: "user could not be checked",
}

ACCEPTANCE = 0
ABSTRACT_SYNTAX_NOT_SUPPORTED = 3
TRANSFER_SYNTAXES_NOT_SUPPORTED = 4


class AcceptedContext(NamedTuple):
    """An accepted presentation context, by UIDs."""

    abstract_syntax: str
    transfer_syntax: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """What this acceptor takes.

    ``called_ae_titles`` are the only titles answered to, None to answer to every one. ``transfer_syntaxes`` are those
    of data sets: Verification has none, and goes in any. ``prefer`` lists transfer syntaxes, the best first: one of
    them that is proposed is chosen before the first proposed that we take.
    ``maximum_length`` is what we announce for P-DATA-TF, in bytes.
    """

    called_ae_titles: AbstractSet[str] | None
    abstract_syntaxes: AbstractSet[str]
    transfer_syntaxes: AbstractSet[str]
    prefer: tuple[str, ...] = ()
    maximum_length: int
    implementation_class_uid: str
    implementation_version_name: str


def negotiate(request: AAssociateRQ, policy: Policy) -> AAssociateAC | AAssociateRJ:
    """The answer to *request*: a rejection, or a result for every proposed context in the order proposed."""
    if request.application_context_name != APPLICATION_CONTEXT_NAME:
        return APPLICATION_CONTEXT_NOT_SUPPORTED
    if policy.called_ae_titles is not None and request.called_ae_title not in policy.called_ae_titles:
        return CALLED_AE_TITLE_NOT_RECOGNIZED
    # PS3.5 VR AE has no control characters; a title with them would only serve to forge log lines.
    if not request.called_ae_title.isprintable():
        return CALLED_AE_TITLE_NOT_RECOGNIZED
    if not request.calling_ae_title.isprintable():
        return CALLING_AE_TITLE_NOT_RECOGNIZED
    return AAssociateAC(
        called_ae_title=request.called_ae_title,
        calling_ae_title=request.calling_ae_title,
        presentation_contexts=tuple(_answer(context, policy) for context in request.presentation_contexts),
        user_information=UserInformation(
            policy.maximum_length, policy.implementation_class_uid, policy.implementation_version_name
        ),
    )


def accepted_contexts(request: AAssociateRQ, response: AAssociateAC) -> dict[int, AcceptedContext]:
    """The contexts on which messages may travel, by presentation context ID."""
    return {
        proposed.id: AcceptedContext(proposed.abstract_syntax, result.transfer_syntax)
        for proposed, result in zip(
            request.presentation_contexts, response.presentation_contexts, strict=True
        )
        if result.result == ACCEPTANCE
    }


def _answer(context: PresentationContext, policy: Policy) -> PresentationContextResult:
    if context.abstract_syntax not in policy.abstract_syntaxes:
        # The transfer syntax of a refused context is not significant, but the item must be there.
        return PresentationContextResult(context.id, ABSTRACT_SYNTAX_NOT_SUPPORTED, _any_syntax(context))
    proposed = context.transfer_syntaxes
    taken = policy.transfer_syntaxes if context.abstract_syntax != VERIFICATION else TRANSFER_SYNTAXES.keys()
    for name in (*(name for name in policy.prefer if name in proposed), *proposed):
        if name in taken:
            return PresentationContextResult(context.id, ACCEPTANCE, name)
    return PresentationContextResult(context.id, TRANSFER_SYNTAXES_NOT_SUPPORTED, _any_syntax(context))


def _any_syntax(context: PresentationContext) -> str:
    return context.transfer_syntaxes[0] if context.transfer_syntaxes else "1.2.840.10008.1.2"
