"""All connections of a process: their counts, the limits that are of the whole, and the ordered end.

What belongs here: who may come in and who has to go. What is said on a connection, and the limits of one, are the
business of :mod:`storescp.protocol`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.protocol import Factory
from twisted.logger import Logger

from storescp.access import Access, Caller, Callers, Refused
from storescp.counting import Count
from storescp.interfaces import IAssociationUser, IAuthenticator
from storescp.limits import Admission, InFlight, Limits
from storescp.logs import Repeated, association_ids
from storescp.measurements import OTHER, Recorder
from storescp.negotiation import LOCAL_LIMIT_EXCEEDED, REJECT_REASONS, Policy
from storescp.statistics import Occupancy, Statistics

if TYPE_CHECKING:
    from storescp.audit import Audit

#: Seconds that a stop leaves to connections that were made before it, to ask for their association.
GRACE = 1.0


class Connection(Protocol):
    """One of them."""

    association_id: str
    """Its name in the log."""
    address: str
    host: str
    """The peer's IP address; empty where there is none."""
    caller: Caller
    calling_ae_title: str

    @property
    def is_connected(self) -> bool: ...

    @property
    def is_ending(self) -> bool:
        """Whether our last word is said, and the peer has a moment to take it."""

    def abort(self, why: str) -> None:
        """End the association now, as the service user: or drop a connection that has none."""


P = TypeVar("P", bound=Connection)


class Connections(Factory, Generic[P]):
    """Counts them, and holds the limits that are of the whole. What makes them is derived from this.

    ``user_factory`` makes the services for an association that was accepted; ``occupancy`` counts associations
    over several processes, if there are, and ``admission`` connections. ``access`` judges requests, by default by
    the policy alone; ``authenticator`` checks users, if they are to be. ``recorder`` counts by calling AE title, where
    somebody wants to know. ``audit`` is told who may not come in.
    """

    noisy = False
    log = Logger()

    def __init__(
        self,
        policy: Policy,
        limits: Limits,
        user_factory: Callable[[P], IAssociationUser],
        clock: IReactorTime,
        statistics: Statistics,
        occupancy: Occupancy | None = None,
        access: Access | None = None,
        admission: Admission | None = None,
    ) -> None:
        self.policy = policy
        self.access = access if access is not None else Access(Callers(), policy)
        self.authenticator: IAuthenticator | None = None
        self.recorder: Recorder | None = None
        self.limits = limits
        self.user_factory = user_factory
        self.clock = clock
        self.statistics = statistics
        self.admission = (
            admission if admission is not None else Admission(limits.max_per_address, limits.max_rate)
        )
        self.in_flight = InFlight(limits.max_in_flight)
        self.repeated = Repeated(clock)
        self.association_ids = association_ids()
        self.audit: Audit | None = None
        self.occupancy = occupancy if occupancy is not None else Occupancy(limits.max_assoc)
        self.associations: set[P] = set()
        self._counted: dict[P, str] = {}  # and from which host: a load balancer's, whomever it speaks for
        self.pending: dict[P, None] = {}  # in the order of their coming
        self._is_closed = False
        self._drained: Deferred[None] | None = None

    def use(
        self, policy: Policy, limits: Limits, access: Access, authenticator: IAuthenticator | None
    ) -> None:
        """Judge by these who comes from now on. What was admitted before stays so."""
        self.policy, self.limits, self.access, self.authenticator = policy, limits, access, authenticator
        self.admission.limit(limits.max_per_address, limits.max_rate)
        self.in_flight.set_limit(limits.max_in_flight)
        self.occupancy.limit(limits.max_assoc, limits.max_pending)
        while len(self.pending) > limits.max_pending:
            self.drop_oldest()

    def begin(self, caller: Caller) -> Refused | None:
        """Count one more association, if there is room for it."""
        if self._is_closed:
            why = "the server stops"
        elif self.occupancy.begin(_counted(caller), caller.max_assoc):
            return None
        elif self.occupancy.is_full:
            why = f"max-assoc allows {Count(self.limits.max_assoc):association}"
        else:
            why = f"callers.{caller.name} allows {Count(caller.max_assoc):association}"
        return Refused(
            LOCAL_LIMIT_EXCEEDED, f"{REJECT_REASONS[LOCAL_LIMIT_EXCEEDED]}: {why}", "rejected_full"
        )

    def opened(self, connection: P) -> None:
        self.statistics.connections += 1
        refusal = self.admission.admit(connection.host, self.clock.seconds())
        if refusal:
            self.statistics.refused += 1
            self.repeated.warn(
                f"refused {connection.host}",
                self.log,
                "{address} refused: {why}",
                association=connection.association_id,
                address=connection.address,
                why=refusal,
            )
            connection.abort(refusal)
        else:
            if self.admission.counted:
                self._counted[connection] = connection.host
            self._wait(connection)

    def rejected(self, title: str, counter: str) -> None:
        """An association that the calling AE *title* wanted; *counter* is what counts it."""
        self.statistics.count_rejection(counter)
        if self.recorder is not None:
            reason = counter.removeprefix("rejected_") or OTHER
            self.recorder.rejected(title, reason, is_known=self.access.is_known(title))

    def released(self, connection: P) -> None:
        self.statistics.released += 1
        self._record_end(connection, "released")

    def aborted(self, connection: P) -> None:
        self.statistics.aborted += 1
        self._record_end(connection, "aborted")

    def _record_end(self, connection: P, how: str) -> None:
        title = connection.calling_ae_title
        if self.recorder is not None:
            self.recorder.ended(title, how, is_known=self.access.is_known(title))

    def associated(self, connection: P) -> None:
        self.statistics.associations += 1
        if self.recorder is not None:
            title = connection.calling_ae_title
            self.recorder.accepted(title, is_known=self.access.is_known(title))
        self.associations.add(connection)
        self._forget(connection)

    def disassociated(self, connection: P) -> None:
        self.associations.discard(connection)
        self.occupancy.end(_counted(connection.caller))
        if connection.is_connected:
            self._wait(connection)
        self._check_drained()

    def closed(self, connection: P) -> None:
        self._forget(connection)
        if (host := self._counted.pop(connection, None)) is not None:
            self.admission.leave(host)
        self._check_drained()

    def drop_oldest(self) -> None:
        """Close the connection that has been longest without an association, if there is one."""
        if self.pending:
            # Out of the count at once: many more may come before the transport has closed this one.
            oldest = next(iter(self.pending))
            self._forget(oldest)
            self.statistics.dropped += 1
            self.repeated.warn(
                "dropped",
                self.log,
                "{address} dropped: more than {most:connection} without an association",
                association=oldest.association_id,
                address=oldest.address,
                most=Count(self.limits.max_pending),
            )
            oldest.abort("too many connections without an association")

    def _forget(self, connection: P) -> None:
        self.pending.pop(connection, None)
        self.occupancy.waiting(len(self.pending))

    def _wait(self, connection: P) -> None:
        """Keep a connection without an association, at the cost of the one that has had it longest."""
        self.pending[connection] = None
        if len(self.pending) > self.limits.max_pending:
            self.drop_oldest()
        else:
            self.occupancy.waiting(len(self.pending))

    def drain(self, deadline: float) -> Deferred[None]:
        """Let the associations end, and those that were on their way; abort after *deadline* seconds what is left.

        Whose connection was accepted has not been refused: it may still ask for an association within GRACE.
        Fires when no connection is left.
        """
        self._drained = Deferred()
        timers = (
            self.clock.callLater(min(GRACE, deadline), self._close_door),
            self.clock.callLater(deadline, self.abort_all),
        )

        def stop(_: None) -> None:
            for timer in timers:
                if timer.active():
                    timer.cancel()
            self.repeated.stop()

        self._drained.addCallback(stop)
        drained = self._drained
        self._check_drained()
        return drained

    def _close_door(self) -> None:
        self._is_closed = True
        for connection in list(self.pending):
            if not connection.is_ending:  # who has just been released must still learn of it
                connection.abort("the server stops")

    def abort_all(self) -> None:
        """Abort all associations, and cut soon after what is still connected."""
        self._close_door()
        for connection in list(self.associations):
            connection.abort("the server stops")
        # An A-ABORT is on its way to each; who does not take it is cut by ARTIM or the abort timer.
        self.clock.callLater(1.0, self._cut_all)

    def _cut_all(self) -> None:
        for connection in list(self.pending):
            connection.abort("the server stops")

    def _check_drained(self) -> None:
        if self._drained is not None and not self.associations and not self.pending:
            drained, self._drained = self._drained, None
            drained.callback(None)


def _counted(caller: Caller) -> int | None:
    """The number under which a caller's associations are counted, where they are."""
    return caller.number if caller.max_assoc else None
