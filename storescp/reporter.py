"""Reports on storage commitment, on associations of our own, PS3.4 §J.3.3.

What belongs here: when which report is tried, again and again, until the requester confirms it or its time is over. One
process of a server does so, for all of them; what is owed is in the ledger, where the next start finds it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator
from functools import partial
from typing import Any, TypeAlias

from twisted.internet.base import ReactorBase
from twisted.internet.defer import CancelledError, Deferred, DeferredList, inlineCallbacks
from twisted.internet.endpoints import wrapClientTLS
from twisted.internet.error import ConnectError, ConnectingCancelledError, DNSLookupError
from twisted.internet.interfaces import IDelayedCall, IOpenSSLClientConnectionCreator, IStreamClientEndpoint
from twisted.internet.protocol import Factory
from twisted.logger import Logger

from storescp import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME
from storescp.access import Address
from storescp.commitment import encode_event_report
from storescp.commitment_ledger import Encoded, Ledger
from storescp.commitment_store import Owed
from storescp.counting import Count
from storescp.dimse import Status
from storescp.extended_negotiation import RoleSelection, decoded
from storescp.index import IndexUnavailable
from storescp.negotiation import ACCEPTANCE
from storescp.pdu import AAssociateAC, AAssociateRQ, PresentationContext, UserInformation
from storescp.requestor import RequestedAssociation
from storescp.scu import MAXIMUM_LENGTH
from storescp.scu_errors import AssociationError
from storescp.sop_classes import STORAGE_COMMITMENT
from storescp.transports import HostEndpoint, end_of

#: Seconds for a connection, and for each answer.
TIMEOUT = 30.0

#: Reports that are in hand at a time, of all requesters together.
MOST = 100

#: Seconds after which the ledger is looked at in any case, should nobody have told of what is owed.
INTERVAL = 60.0

# Explicit and Implicit VR Little Endian.
_TRANSFER_SYNTAXES = ("1.2.840.10008.1.2.1", "1.2.840.10008.1.2")
_CONTEXT_ID = 1

# Who is reported to, and the title by which it knows us: that is ours.
_Pair: TypeAlias = tuple[str, str]

#: Gives what makes connections with TLS.
ClientTLS: TypeAlias = Callable[[], IOpenSSLClientConnectionCreator]


class Reporter:
    """Delivers what *ledger* holds. *client_tls* is needed where an address is one with TLS."""

    log = Logger()

    def __init__(self, ledger: Ledger, reactor: ReactorBase, client_tls: ClientTLS | None = None) -> None:
        self._ledger = ledger
        self._reactor = reactor
        self._client_tls = client_tls
        self._queues: dict[_Pair, deque[Owed]] = {}
        self._running: dict[_Pair, Deferred[None]] = {}
        self._connecting: dict[_Pair, Deferred[Any]] = {}
        self._associations: dict[_Pair, RequestedAssociation] = {}
        self._later: IDelayedCall | None = None
        self._is_looking = self._look_again = self._is_stopping = False

    def start(self) -> None:
        """All that was owed when the server ended, in order or not, is due. Before anything is asked for.

        Blocks. Raises CommitmentsUnavailable.
        """
        store = self._ledger.store
        if store.exists and (count := store.begin(self._ledger.wall_clock())):
            self.log.info("storage commitment: {count:report is|reports are} owed", count=Count(count))
        self._reactor.callWhenRunning(self.look)

    def look(self) -> None:
        """Take up what is due."""
        if self._is_stopping:
            return
        if self._is_looking:
            self._look_again = True
            return
        self._is_looking = True
        if self._later is not None:
            self._later.cancel()
            self._later = None
        self._take_up().addErrback(self._ledger.failed).addCallback(self._looked)

    def freed(self, holder: int) -> None:
        """The process with this ID is no more."""
        ledger = self._ledger
        freed = ledger.call(ledger.store.free, holder, ledger.wall_clock())
        freed.addErrback(ledger.failed).addCallback(lambda _: self.look())

    def hasten(self) -> None:
        """There may be other addresses: try everything again now."""
        ledger = self._ledger
        hastened = ledger.call(ledger.store.hasten, ledger.wall_clock())
        hastened.addErrback(ledger.failed).addCallback(lambda _: self.look())

    @inlineCallbacks
    def stop(self, timeout: float) -> Generator[Deferred[Any], Any, None]:
        """Begin nothing any more; what is under way has *timeout* seconds."""
        self._is_stopping = True
        if self._later is not None:
            self._later.cancel()
            self._later = None
        deadline = self._reactor.callLater(timeout, self.hurry)
        yield DeferredList(list(self._running.values()))
        if deadline.active():
            deadline.cancel()

    def hurry(self) -> None:
        """Wait for nobody: what is not confirmed stays owed."""
        self._is_stopping = True
        for connecting in list(self._connecting.values()):
            connecting.cancel()
        for association in list(self._associations.values()):
            association.abort("the server stops")

    # -- what is due --

    @inlineCallbacks
    def _take_up(self) -> Generator[Deferred[Any], Any, float | None]:
        """Have all reported that is due, as far as there is room; when to look again, at the latest."""
        ledger, store = self._ledger, self._ledger.store
        if not (yield ledger.call(lambda: store.exists)):
            return None
        now = ledger.wall_clock()
        expired: list[Owed] = yield ledger.call(store.expire, now - ledger.settings.keep)
        for owed in expired:
            self.log.error(
                "storage commitment: given up a report to {calling}, transaction {uid}, after {attempts:attempt}",
                calling=owed.calling_ae_title,
                uid=owed.request.transaction_uid,
                attempts=Count(owed.attempts),
            )
        room = MOST - sum(map(len, self._queues.values()))
        if room > 0:
            claimed: list[Owed] = yield ledger.call(store.claim, now, room)
            for owed in claimed:
                if not self._is_stopping:  # else it is due when the server starts again
                    self._take(owed)
        due: float | None = yield ledger.call(store.next_due)
        return due

    def _looked(self, due: float | None) -> None:
        self._is_looking = False
        if self._is_stopping:
            return
        if self._look_again:
            self._look_again = False
            self.look()
            return
        delay = INTERVAL
        if due is not None and sum(map(len, self._queues.values())) < MOST:
            delay = min(max(due - self._ledger.wall_clock(), 0.0), INTERVAL)
        self._later = self._reactor.callLater(delay, self._look_later)

    def _look_later(self) -> None:
        self._later = None
        self.look()

    def _take(self, owed: Owed) -> None:
        ledger = self._ledger
        rule = ledger.rules.caller(owed.calling_ae_title)
        if rule is None or rule.commitment is None:
            keep = ledger.settings.keep
            self.log.warn(
                "storage commitment: nowhere to report to {calling}, transaction {uid}: expected callers.{calling}"
                ".commitment, got none; kept for {keep:g} s after the request",
                calling=owed.calling_ae_title,
                uid=owed.request.transaction_uid,
                keep=keep,
            )
            ledger.call(ledger.store.let_go, owed.id, owed.requested_at + keep).addErrback(ledger.failed)
            return
        pair = owed.calling_ae_title, owed.called_ae_title
        self._queues.setdefault(pair, deque()).append(owed)
        if pair not in self._running:
            running = self._running[pair] = self._deliver(pair, rule.commitment)
            running.addErrback(ledger.failed).addCallback(self._delivered, pair)

    def _delivered(self, _: object, pair: _Pair) -> None:
        del self._running[pair]
        if not self._is_stopping:  # else it is due when the server starts again
            for owed in self._queues[pair]:
                self._ledger.postpone(owed)
        del self._queues[pair]
        self.look()

    # -- one association --

    @inlineCallbacks
    def _deliver(self, pair: _Pair, address: Address) -> Generator[Deferred[Any], Any, None]:
        """Report all that waits in the queue of *pair*; what could not be stays there."""
        ledger, queue = self._ledger, self._queues[pair]
        try:
            association, transfer_syntax = yield self._associate(pair, address)
            while queue and not self._is_stopping:
                owed = queue[0]
                encoded: Encoded = yield ledger.encoded(owed, transfer_syntax)
                command = partial(encode_event_report, event_type_id=encoded.report.event_type_id)
                status = yield association.request(_CONTEXT_ID, command, encoded.data_set)
                queue.popleft()
                if status == Status.SUCCESS:
                    yield ledger.confirmed(owed, encoded.report, f"at {address}")
                else:
                    self._log_failure(pair, address, f"status {status:04X}H", 1, ledger.delay(owed))
                    yield ledger.postpone(owed)
            yield association.release()
        except (AssociationError, IndexUnavailable) as error:
            if pair in self._associations:
                self._associations[pair].abort(str(error))
            if queue and not self._is_stopping:
                self._log_failure(pair, address, str(error), len(queue), ledger.delay(queue[0]))
        finally:
            self._associations.pop(pair, None)

    def _log_failure(self, pair: _Pair, address: Address, why: str, count: int, delay: float) -> None:
        self.log.warn(
            "storage commitment: cannot report to {calling} at {address}: {why};"
            " {count:report is|reports are} owed to it, next attempt in {delay:g} s",
            calling=pair[0],
            address=str(address),
            why=why,
            count=Count(count),
            delay=delay,
        )

    @inlineCallbacks
    def _associate(
        self, pair: _Pair, address: Address
    ) -> Generator[Deferred[Any], Any, tuple[RequestedAssociation, str]]:
        """An association on which reports can be sent, and their transfer syntax. Fails with AssociationError."""
        calling, called = pair
        request = AAssociateRQ(
            called_ae_title=calling,
            calling_ae_title=called,
            presentation_contexts=(PresentationContext(_CONTEXT_ID, STORAGE_COMMITMENT, _TRANSFER_SYNTAXES),),
            user_information=UserInformation(
                MAXIMUM_LENGTH,
                IMPLEMENTATION_CLASS_UID,
                IMPLEMENTATION_VERSION_NAME,
                # We ask for the association, and are the SCP: PS3.7 §D.3.3.4.
                other=(RoleSelection(STORAGE_COMMITMENT, scu=False, scp=True).item,),
            ),
        )
        factory = Factory.forProtocol(partial(RequestedAssociation, request, self._reactor, TIMEOUT))
        factory.noisy = False
        endpoint: IStreamClientEndpoint = HostEndpoint(
            self._reactor, address.host, address.port, timeout=TIMEOUT
        )
        if address.is_secure:
            assert self._client_tls is not None
            endpoint = wrapClientTLS(self._client_tls(), endpoint)
        try:
            connecting = self._connecting[pair] = endpoint.connect(factory)
            association: RequestedAssociation = yield connecting
        except (ConnectError, DNSLookupError) as error:
            raise AssociationError(f"cannot connect: {end_of(error)}") from None
        except (CancelledError, ConnectingCancelledError):
            raise AssociationError("the server stops") from None
        finally:
            del self._connecting[pair]
        self._associations[pair] = association
        response: AAssociateAC = yield association.established
        for context in response.presentation_contexts:
            if context.id == _CONTEXT_ID and context.result == ACCEPTANCE:
                # One that says nothing of roles, but takes a context that only serves for reports, wants them.
                role = decoded(RoleSelection, response.user_information.other).get(STORAGE_COMMITMENT)
                if role is not None and not role.scp:
                    raise AssociationError("it does not let us be the SCP of Storage Commitment")
                return association, context.transfer_syntax
        raise AssociationError("it does not accept Storage Commitment")
