"""Who may send, and what: the rules that the settings have for calling AE titles. Values and decisions.

What belongs here: which rule is whose, and what follows from it for an A-ASSOCIATE-RQ. Who a user is, is checked
elsewhere, and asks for the verdict here; associations are counted elsewhere.
"""

from __future__ import annotations

import fnmatch
import functools
import ipaddress
import re
from dataclasses import dataclass, replace
from typing import NamedTuple, TypeAlias

from storescp.certificates import PeerCertificate
from storescp.naming import Duplicate
from storescp.negotiation import (
    APPLICATION_CONTEXT_NOT_SUPPORTED,
    CALLED_AE_TITLE_NOT_RECOGNIZED,
    CALLING_AE_TITLE_NOT_RECOGNIZED,
    REJECT_REASONS,
    USER_NOT_AUTHORIZED,
    USER_NOT_CHECKED,
    Policy,
    negotiate,
)
from storescp.pdu import AAssociateAC, AAssociateRJ, AAssociateRQ
from storescp.presentation import AcceptedClasses, Preference
from storescp.sop_classes import STORAGE_COMMITMENT, VERIFICATION

Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network

#: Callers that may have rules of their own. Each costs a number in the memory that processes share.
MAX_CALLERS = 4096


class Address(NamedTuple):
    """Where an application entity listens, and whether it speaks TLS there."""

    host: str
    port: int
    is_secure: bool = False

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'tls:' * self.is_secure}{host}:{self.port}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """The rule for calling AE titles: one title, those that a pattern with ``*`` and ``?`` matches, or all others.

    None, and 0 for ``max_assoc``, is what goes for the server as a whole; an empty tuple asks for nothing.
    ``certificate`` and ``user`` are patterns, one of which must match. ``commitment`` is where reports on storage
    commitment go that the caller cannot be given on its own association. ``number`` tells rules apart.
    """

    name: str = "default"
    number: int = 0
    addresses: tuple[Network, ...] | None = None
    called: tuple[str, ...] | None = None
    accept: AcceptedClasses | None = None
    prefer: Preference | None = None
    transfer_syntaxes: frozenset[str] | None = None
    max_assoc: int = 0
    directory: str = ""
    duplicate: Duplicate | None = None
    certificate: tuple[str, ...] | None = None
    user: tuple[str, ...] | None = None
    commitment: Address | None = None


ANYONE = Caller()


@dataclass(frozen=True, slots=True)
class Callers:
    """All rules: ``known`` in the order in which they were given, and ``default`` for whoever has none.

    ``only_known``: who has no rule of its own may not send.
    """

    known: tuple[Caller, ...] = ()
    default: Caller = ANYONE
    only_known: bool = False

    @property
    def is_open(self) -> bool:
        """Whether anybody may send, from anywhere."""
        default = self.default
        return not (self.only_known or default.addresses or default.certificate or default.user)


class Refused(NamedTuple):
    """An association that is not to be: the answer, why, in words for the operator, and what counts it."""

    answer: AAssociateRJ
    why: str
    counter: str


class Admitted(NamedTuple):
    """An association that may be, as far as its user may."""

    caller: Caller
    answer: AAssociateAC


class Rules:
    """Which of *callers* is whose."""

    def __init__(self, callers: Callers) -> None:
        self._others = None if callers.only_known else callers.default
        self._titles: dict[str, Caller] = {}
        patterns: list[Caller] = []
        for caller in callers.known:
            if is_pattern(caller.name):
                patterns.append(caller)
            else:
                self._titles[caller.name] = caller
        self._patterns = sorted(patterns, key=lambda caller: -len(caller.name))

    def is_known(self, title: str) -> bool:
        """Whether a calling AE title has a rule of its own."""
        return title in self._titles

    def caller(self, title: str) -> Caller | None:
        """The rule for a calling AE title: its own, else that of the longest pattern, else the default if allowed."""
        caller = self._titles.get(title)
        if caller is not None:
            return caller
        for caller in self._patterns:
            if matches(caller.name, title):
                return caller
        return self._others


class Access:
    """Judges by *callers*, and by *policy* where these say nothing. *user_required* goes for all callers."""

    def __init__(self, callers: Callers, policy: Policy, *, user_required: bool = False) -> None:
        self._user_required = user_required
        self._default = callers.default
        rules = Rules(callers)
        self.caller, self.is_known = rules.caller, rules.is_known
        self._policies = {
            caller.number: _policy(policy, caller) for caller in (callers.default, *callers.known)
        }

    def judge(
        self, request: AAssociateRQ, address: str | None, certificate: PeerCertificate | None
    ) -> Admitted | Refused:
        """What follows from a request by the peer at *address* (None: a local socket) with its *certificate*."""
        caller = self.caller(request.calling_ae_title)
        answer = negotiate(
            request, self._policies[caller.number if caller is not None else self._default.number]
        )
        if answer == APPLICATION_CONTEXT_NOT_SUPPORTED:
            return Refused(answer, REJECT_REASONS[answer], "")
        if caller is None:
            return _unrecognized("no entry in callers for this AE title", "rejected_titles")
        if caller.addresses and not _is_in(address, caller.addresses):
            return _unrecognized(f"callers.{caller.name} does not allow this address", "rejected_addresses")
        if caller.certificate and not _is_shown(certificate, caller.certificate):
            shown = (
                f"does not allow the certificate of {certificate.subject!r:.200}"
                if certificate
                else "wants a certificate"
            )
            return _unrecognized(f"callers.{caller.name} {shown}", "rejected_certificates")
        if isinstance(answer, AAssociateRJ):
            why = REJECT_REASONS[answer]
            if answer != CALLED_AE_TITLE_NOT_RECOGNIZED:
                return Refused(answer, why, "rejected_titles")
            if caller.called:
                why += f": callers.{caller.name} does not allow it"
            elif titles := self._policies[caller.number].called_ae_titles:
                why += f": it is {', '.join(map(repr, titles))}"
            return Refused(answer, why, "rejected_called")
        return Admitted(caller, answer)

    def judge_user(self, caller: Caller, user: str | None) -> Refused | None:
        """What follows from the user's being *user*, whose identity was checked; None: nobody was named."""
        if user is None:
            if not (caller.user or self._user_required):
                return None
            return user_refused("no user identity, and one is required")
        if caller.user and not any(matches(pattern, user) for pattern in caller.user):
            return user_refused(f"callers.{caller.name} does not allow the user {user!r:.80}")
        return None


def user_refused(why: str) -> Refused:
    """The user is not who may send, or not who it says."""
    return Refused(USER_NOT_AUTHORIZED, why, "rejected_users")


def user_unchecked(why: str) -> Refused:
    """Who the user is could not be found out, this time."""
    return Refused(USER_NOT_CHECKED, why, "rejected_users")


def is_pattern(text: str) -> bool:
    """Whether *text* stands for more than itself."""
    return "*" in text or "?" in text


def matches(pattern: str, text: str) -> bool:
    """Whether *text* is what *pattern* says, in which ``*`` stands for any characters and ``?`` for one."""
    return _compiled(pattern).fullmatch(text) is not None


@functools.lru_cache(maxsize=2 * MAX_CALLERS)
def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(fnmatch.translate(pattern.replace("[", "[[]")))  # brackets have no meaning here


def _policy(policy: Policy, caller: Caller) -> Policy:
    """The server's policy with what *caller* says otherwise."""
    if caller.called is not None:
        policy = replace(policy, called_ae_titles=frozenset(caller.called) or None)
    if caller.accept is not None:
        services = policy.abstract_syntaxes & {VERIFICATION, STORAGE_COMMITMENT}
        policy = replace(policy, abstract_syntaxes=caller.accept.uids | services, accept=caller.accept)
    if caller.prefer is not None:
        policy = replace(policy, prefer=caller.prefer, prefer_for={})
    if caller.transfer_syntaxes is not None:
        policy = replace(policy, transfer_syntaxes=caller.transfer_syntaxes)
    return policy


def _unrecognized(why: str, counter: str) -> Refused:
    return Refused(CALLING_AE_TITLE_NOT_RECOGNIZED, why, counter)


def _is_in(address: str | None, networks: tuple[Network, ...]) -> bool:
    if address is None:
        return False
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:  # what somebody has said who claims to be a load balancer
        return False
    if isinstance(ip, ipaddress.IPv6Address):
        ip = ip.ipv4_mapped or ip  # how IPv4 comes to a socket that listens to both
    return any(ip in network for network in networks)


def _is_shown(certificate: PeerCertificate | None, patterns: tuple[str, ...]) -> bool:
    if certificate is None:
        return False
    shown = (certificate.subject, *certificate.names, certificate.sha256)
    return any(matches(pattern, text) for pattern in patterns for text in shown)
