"""Who a user is, PS3.7 §D.3.3.7: :class:`~storescp.interfaces.IAuthenticator` over twisted.cred and tokens.

What belongs here: which type of identity is proved by what. No passcode and no token goes into a text here.
"""

from __future__ import annotations

import contextlib
import hmac
import os
from collections.abc import Generator
from typing import Any

from twisted.cred.checkers import (
    FilePasswordDB,
    ICredentialsChecker,
    InMemoryUsernamePasswordDatabaseDontUse,
)
from twisted.cred.credentials import IUsernamePassword, UsernamePassword
from twisted.cred.error import UnauthorizedLogin
from twisted.cred.strcred import makeChecker
from twisted.internet.defer import CancelledError, Deferred, inlineCallbacks, maybeDeferred
from zope.interface import implementer

from storescp.config_access import AccessConfig
from storescp.config_file import ConfigError
from storescp.interfaces import IAuthenticator, Unauthorized
from storescp.passcodes import PasscodeFile, SystemPasscodes
from storescp.pdu import UserIdentity
from storescp.tokens import InvalidToken, TokenVerifier
from storescp.worker import Aside

# PS3.7 Table D.3-14.
USERNAME, USERNAME_AND_PASSCODE, JSON_WEB_TOKEN = 1, 2, 5
_TYPES = {
    USERNAME: "username",
    USERNAME_AND_PASSCODE: "username and passcode",
    3: "Kerberos service ticket",
    4: "SAML assertion",
    JSON_WEB_TOKEN: "JSON Web Token",
}


#: Checks that may wait for one another, of those that block. Those whose time is over count until their turn comes.
MOST = 1000


class TooManyUsers(Exception):
    """No more checks may wait."""


class _Credentials(UsernamePassword):
    """Compares in a time that tells nothing."""

    def checkPassword(self, password: bytes) -> bool:
        return hmac.compare_digest(self.password, password)


@implementer(IAuthenticator)
class Authenticator:
    """Asks checkers of twisted.cred, one after the other, and believes tokens. Raises ConfigError.

    A username without a passcode is checked as one with an empty passcode: it proves nothing by itself. What blocks is
    done by *aside*, for one user after the other, however many ask.
    """

    def __init__(self, config: AccessConfig, aside: Aside) -> None:
        self._aside = aside
        self._checkers = [_checker(text) for text in config.auth]
        self._tokens = (
            TokenVerifier(config.jwt_key, config.jwt_audience, config.jwt_issuer)
            if config.jwt_key is not None
            else None
        )

    def authenticate(self, identity: UserIdentity) -> Deferred[str]:
        """See IAuthenticator."""
        return self._authenticate(identity)

    @inlineCallbacks
    def _authenticate(self, identity: UserIdentity) -> Generator[Deferred[Any], Any, str]:
        if identity.type == JSON_WEB_TOKEN and self._tokens is not None:
            try:
                return self._tokens.user(identity.primary)
            except InvalidToken as error:
                raise Unauthorized(str(error)) from None
        if identity.type not in (USERNAME, USERNAME_AND_PASSCODE) or not self._checkers:
            name = _TYPES.get(identity.type, "unknown")
            raise Unauthorized(f"user identities of type {identity.type} ({name}) are not taken")
        try:
            user = identity.primary.decode()
        except UnicodeDecodeError:
            raise Unauthorized("the user's name is not UTF-8") from None
        passcode = identity.secondary if identity.type == USERNAME_AND_PASSCODE else b""
        trouble: Exception | None = None
        for checker in self._checkers:
            try:
                if isinstance(checker, PasscodeFile | SystemPasscodes):
                    if self._aside.outstanding >= MOST:
                        raise TooManyUsers
                    if (yield self._aside.call(checker.has, identity.primary, passcode)):
                        return user
                    continue
                yield maybeDeferred(checker.requestAvatarId, _Credentials(identity.primary, passcode))
            except UnauthorizedLogin:
                pass
            except CancelledError:
                raise
            except Exception as error:  # noqa: BLE001 - a plugin's; another checker may know the user
                trouble = error
            else:
                return user
        if trouble is not None:
            raise trouble
        raise Unauthorized(f"wrong name or passcode of user {user!r:.80}")


def _checker(text: str) -> ICredentialsChecker | PasscodeFile | SystemPasscodes:
    """What a string of strcred describes. The errors do not repeat its arguments, which may be passwords."""
    kind, _, arguments = text.partition(":")
    if kind == "file" and not os.access(arguments, os.R_OK):
        raise ConfigError(f"auth: expected a readable file, got {arguments!r:.80}")
    try:
        checker: ICredentialsChecker = makeChecker(text)
    except Exception as error:  # noqa: BLE001 - plugins of Twisted read it, and raise anything
        raise ConfigError(
            f"auth: expected TYPE:ARGUMENTS as --help-auth lists them, got {type(error).__name__} for {kind!r:.40}"
        ) from None
    if IUsernamePassword not in checker.credentialInterfaces:
        raise ConfigError(f"auth: expected what checks usernames and passwords, got {kind!r:.40}")
    if isinstance(checker, InMemoryUsernamePasswordDatabaseDontUse):
        # strcred fills it with text, which no credentials are.
        checker.users = {str(name).encode(): str(word).encode() for name, word in checker.users.items()}
    if type(checker) is FilePasswordDB:
        return PasscodeFile(arguments)
    if kind == "unix":
        with contextlib.suppress(ImportError, OSError, AttributeError):
            return SystemPasscodes()
    return checker
