"""What the layers may know of each other: the protocol of its user, and the services of storage."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

from twisted.internet.defer import Deferred
from zope.interface import Interface

from storescp.access import Caller
from storescp.dataset_head import Head
from storescp.dimse import Command, Status
from storescp.naming import Duplicate
from storescp.negotiation import AcceptedContext
from storescp.pdu import Fragment, UserIdentity


class Origin(NamedTuple):
    """What is known of an instance before its data set: from the command set and the association.

    ``directory`` is where it belongs below the storage directory, without a slash at its end (empty: there),
    ``duplicate`` what is to become of it if it is stored already (None: what goes for all). ``association_id`` is the
    association's name in the log.
    """

    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str
    calling_ae_title: str
    called_ae_title: str
    directory: str = ""
    duplicate: Duplicate | None = None
    association_id: str = ""


class Outcome(NamedTuple):
    """How the storing of one instance ended.

    ``comment`` says why it failed, in words fit for the peer. ``size`` is the length of the data set in
    bytes, ``path`` where it lies under the storage directory; ``head`` is None when it could not be read.
    ``is_open``: the store wants to be told whether the peer has its answer. ``is_answered``: the answer has been
    given by the thread that was asked to.
    """

    status: Status
    comment: str
    size: int
    path: str
    head: Head | None
    is_open: bool = False
    is_answered: bool = False


Answer: TypeAlias = Callable[[Status, str], bool]
"""Answers with a status and comment, from any thread; false if it cannot, and the reactor's thread has to."""


class IFlow(Interface):
    """Back-pressure: told how many bytes wait for storage on behalf of one association."""

    def held(size: int) -> bool:
        """*size* more bytes are kept in memory; true when that is enough: no more come before these are released."""

    def released(size: int) -> bool:
        """*size* bytes of those are not kept any longer; whether there are still too many, as for :meth:`held`."""


class IIncomingInstance(Interface):
    """An instance on its way to storage."""

    def write(data: memoryview) -> None:
        """Take the next piece of the data set. Nothing is copied; never blocks."""

    def finish(answer: Answer | None = None) -> Deferred[Outcome]:
        """The data set is complete: fires when the instance is stored or has failed to be; no errback.

        *answer* may be called before, with what there is to say, by whatever thread knows it first. The result then
        may take its time: who needs to know calls :meth:`IInstanceStore.collect`.
        """

    def cancel() -> None:
        """The rest will not come: leave no trace."""


class IInstanceStore(Interface):
    """Where instances go."""

    def begin(origin: Origin, flow: IFlow) -> IIncomingInstance:
        """An instance begins."""

    def collect() -> None:
        """Have all results fire that are there."""

    def hurry() -> None:
        """Have them fire as soon as there are any: somebody waits."""

    def acknowledged(path: str) -> None:
        """The peer has the answer to the instance that was stored at *path*."""

    def unacknowledged(path: str) -> None:
        """The peer has perhaps not got the answer to the instance that was stored at *path*."""


class IAssociation(IFlow):
    """What the services see of an association.

    ``association_id`` is its name in the log, ``caller`` the rule that it stands under. ``contexts`` are the accepted
    presentation contexts by ID. ``operations_window`` is how many operations the peer may have outstanding, PS3.7
    §D.3.3.3. ``can_send`` tells whether a response can still be sent, ``is_releasing`` whether the peer waits for
    nothing else.
    """

    association_id: str
    calling_ae_title: str
    called_ae_title: str
    caller: Caller
    address: str
    contexts: dict[int, AcceptedContext]
    operations_window: int
    can_send: bool
    is_releasing: bool

    def send_from_thread(presentation_context_id: int, data: bytes) -> bool:
        """Send an encoded command set now, from any thread; false if that is not possible, and nothing was sent."""

    def sent_from_thread() -> None:
        """So a command set was sent."""

    def send_command(presentation_context_id: int, data: bytes) -> None:
        """Send an encoded command set."""

    def hold_back(waits: bool) -> None:
        """Read no more of the peer, which has more operations outstanding than agreed; or go on."""

    def send_message(presentation_context_id: int, command: bytes, data_set: bytes) -> None:
        """Send an encoded command set and its data set."""

    def idle() -> None:
        """The user has no request left to answer: a release that waited for that goes on."""


class IAssociationUser(Interface):
    """The services on one association: the user of the upper layer service.

    ``busy`` tells whether requests are being worked on; ``incomplete`` stands for the message of which some is still
    to come, and is None when none is begun.
    """

    busy: bool
    incomplete: object

    def fragment_received(fragment: Fragment) -> None:
        """A fragment arrived. Raises ProtocolViolation when it makes no message."""

    def release_requested() -> bool:
        """The peer asks for release: whether that has to wait for answers, until :meth:`IAssociation.idle`."""

    def association_ended(*, released: bool) -> None:
        """Nothing more comes, and nothing can be sent."""


class IService(Interface):
    """A service beside those of storage, on one association."""

    def request(presentation_context_id: int, command: Command) -> bool:
        """A request arrived on a context of this service; whether it wants the data set that follows.

        Raises ProtocolViolation.
        """

    def response(command: Command) -> None:
        """A response arrived, whose data set nobody wants. Raises ProtocolViolation."""

    def write(data: memoryview) -> None:
        """The next piece of that."""

    def data_set_complete() -> None:
        """It is complete."""

    def association_ended() -> None:
        """Nothing more comes, and nothing can be sent."""


class Unauthorized(Exception):
    """The user is not who it says. str() says why, in words for the operator, and without a secret."""


class IAuthenticator(Interface):
    """What checks who a user is."""

    def authenticate(identity: UserIdentity) -> Deferred[str]:
        """Fires with the user's name, or fails with Unauthorized, or with anything else when that cannot be told."""
