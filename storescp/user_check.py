"""Whether a user is who it says, within a time limit: what an authenticator's answer means for an association.

What belongs here: the verdict in words, of which none is a secret. Who may send is the business of
:mod:`storescp.access`, and how a user is checked that of :mod:`storescp.authentication`.
"""

from __future__ import annotations

from twisted.internet.defer import CancelledError, Deferred, TimeoutError, maybeDeferred
from twisted.internet.interfaces import IReactorTime
from twisted.python.failure import Failure

from storescp.access import Refused, user_refused, user_unchecked
from storescp.interfaces import IAuthenticator, Unauthorized
from storescp.pdu import UserIdentity


def checked(
    authenticator: IAuthenticator, identity: UserIdentity, timeout: float, clock: IReactorTime
) -> Deferred[str | Refused]:
    """The user's name, or what follows from there being none, *timeout* seconds later at the latest.

    Fails with nothing but CancelledError, if it is cancelled.
    """
    checking: Deferred[str] = maybeDeferred(authenticator.authenticate, identity)
    checking.addTimeout(timeout, clock)
    return checking.addErrback(_refusal, timeout)


def _refusal(failure: Failure, timeout: float) -> Refused:
    error = failure.value
    if isinstance(error, CancelledError):
        raise error
    if isinstance(error, Unauthorized):
        return user_refused(str(error))
    if isinstance(error, TimeoutError):
        return user_unchecked(f"the user could not be checked within {timeout:g} s")
    # Its words are not repeated: who knows whether they have the passcode in them.
    return user_unchecked(f"the user could not be checked: {type(error).__name__}")
