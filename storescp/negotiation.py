"""Association negotiation by the acceptor, PS3.8 §7.1 and PS3.7 Annex D: a function of request and policy.

What belongs here: which answer an A-ASSOCIATE-RQ gets. How many associations there are is not known here:
that limit is the factory's, :data:`LOCAL_LIMIT_EXCEEDED` is its answer.
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import NamedTuple

from storescp.extended_negotiation import (
    MAXIMUM_ITEMS,
    CommonExtendedNegotiation,
    ExtendedNegotiation,
    OperationsWindow,
    RoleSelection,
    answered,
    decoded,
    operations_window,
)
from storescp.pdu import (
    APPLICATION_CONTEXT_NAME,
    AAssociateAC,
    AAssociateRJ,
    AAssociateRQ,
    PresentationContext,
    PresentationContextResult,
    UserInformation,
)
from storescp.presentation import AcceptedClasses, Preference
from storescp.sop_classes import (
    PLAIN_TRANSFER_SYNTAXES,
    STORAGE_COMMITMENT,
    TRANSFER_SYNTAXES,
    VERIFICATION,
    is_storage,
    keyword,
)

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
USER_REJECTION = 1
ABSTRACT_SYNTAX_NOT_SUPPORTED = 3
TRANSFER_SYNTAXES_NOT_SUPPORTED = 4

# PS3.8 Table 9-18, of SOP classes.
_CONTEXT_REFUSALS = {
    USER_REJECTION: "role not accepted",
    ABSTRACT_SYNTAX_NOT_SUPPORTED: "SOP class not accepted",
    TRANSFER_SYNTAXES_NOT_SUPPORTED: "no transfer syntax accepted",
}
#: So many SOP classes that are refused for one reason are named.
_NAMED = 4


class AcceptedContext(NamedTuple):
    """An accepted presentation context, by UIDs."""

    abstract_syntax: str
    transfer_syntax: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """What this acceptor takes.

    ``called_ae_titles`` are the only titles answered to, None to answer to every one. ``abstract_syntaxes`` are all
    that are known by name; ``accept`` are the SOP classes of Storage, and may take others as well.
    ``transfer_syntaxes`` are those of instances: Verification has no data set, and goes in any; Storage Commitment in
    those without compression. What is proposed first of them is chosen, but for ``prefer``, and for ``prefer_for`` in
    its place for the SOP classes in it.
    ``maximum_length`` is what we announce for P-DATA-TF, in bytes; ``operations_window`` how many operations a
    requestor that asks for it may have outstanding.
    """

    called_ae_titles: AbstractSet[str] | None
    abstract_syntaxes: AbstractSet[str]
    accept: AcceptedClasses = field(default_factory=AcceptedClasses)
    transfer_syntaxes: AbstractSet[str]
    prefer: Preference = ()
    prefer_for: Mapping[str, Preference] = field(default_factory=dict)
    maximum_length: int
    implementation_class_uid: str
    implementation_version_name: str
    operations_window: int = 1


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
    results, items = _answers(request, policy)
    return AAssociateAC(
        called_ae_title=request.called_ae_title,
        calling_ae_title=request.calling_ae_title,
        presentation_contexts=results,
        user_information=UserInformation(
            policy.maximum_length, policy.implementation_class_uid, policy.implementation_version_name, items
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


def refusals(request: AAssociateRQ, response: AAssociateAC) -> str:
    """The SOP classes for which no context was accepted, and why, in words; empty if there are none."""
    results = {
        proposed.abstract_syntax: result.result
        for proposed, result in sorted(
            zip(request.presentation_contexts, response.presentation_contexts, strict=True),
            key=lambda pair: -pair[1].result,  # of several for one class the best counts
        )
    }
    parts = []
    for reason, words in _CONTEXT_REFUSALS.items():
        names = [keyword(uid) for uid, result in results.items() if result == reason]
        if names:
            more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
            parts.append(f"{', '.join(names[:_NAMED])}{more} ({words})")
    return ", ".join(parts)


def _answers(
    request: AAssociateRQ, policy: Policy
) -> tuple[tuple[PresentationContextResult, ...], tuple[tuple[int, bytes], ...]]:
    """The results for the contexts, and the items that answer those of the user information."""
    contexts, items = request.presentation_contexts, request.user_information.other[:MAXIMUM_ITEMS]
    if not items:
        return tuple(_answer(context, policy, None, None) for context in contexts), ()
    roles = decoded(RoleSelection, items)
    said = decoded(CommonExtendedNegotiation, items) if "declared" in policy.accept.others else {}
    results = tuple(
        _answer(context, policy, roles.get(context.abstract_syntax), said.get(context.abstract_syntax))
        for context in contexts
    )
    accepted = {
        context.abstract_syntax
        for context, result in zip(contexts, results, strict=True)
        if result.result == ACCEPTANCE
    }
    extended = decoded(ExtendedNegotiation, items)
    answers = answered(roles.values(), extended.values(), accepted, set(filter(is_storage, accepted)))
    if (proposed := operations_window(items)) is not None:
        # PS3.7 §D.3.3.3: no more than was proposed. Of what we invoke one is outstanding.
        bound = policy.operations_window
        answers += (OperationsWindow(min(proposed.invoked or bound, bound), 1).item,)
    return results, answers


def _answer(
    context: PresentationContext,
    policy: Policy,
    role: RoleSelection | None,
    said: CommonExtendedNegotiation | None,
) -> PresentationContextResult:
    abstract_syntax, proposed = context.abstract_syntax, context.transfer_syntaxes
    if abstract_syntax not in policy.abstract_syntaxes and not policy.accept.takes(abstract_syntax, said):
        # The transfer syntax of a refused context is not significant, but the item must be there.
        return PresentationContextResult(context.id, ABSTRACT_SYNTAX_NOT_SUPPORTED, _any_syntax(context))
    if role is not None and not role.scu:
        # The peer would only be the SCP, as one that retrieves by C-GET, and the SCU is what we never are.
        return PresentationContextResult(context.id, USER_REJECTION, _any_syntax(context))
    taken = policy.transfer_syntaxes
    if abstract_syntax == VERIFICATION:
        taken = TRANSFER_SYNTAXES.keys()
    elif abstract_syntax == STORAGE_COMMITMENT:
        taken = frozenset(PLAIN_TRANSFER_SYNTAXES)
    for rank in (*policy.prefer_for.get(abstract_syntax, policy.prefer), taken):
        for name in proposed:
            if name in rank and name in taken:
                return PresentationContextResult(context.id, ACCEPTANCE, name)
    return PresentationContextResult(context.id, TRANSFER_SYNTAXES_NOT_SUPPORTED, _any_syntax(context))


def _any_syntax(context: PresentationContext) -> str:
    return context.transfer_syntaxes[0] if context.transfer_syntaxes else "1.2.840.10008.1.2"
