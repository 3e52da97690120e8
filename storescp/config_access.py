"""The settings that say who may send: their options, and what these say together with the section ``callers``.

What belongs here: what may stand there. The section itself is read by :mod:`storescp.config_callers`.
"""

from __future__ import annotations

import pathlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

import yaml

from storescp.access import ANYONE, Callers
from storescp.config_callers import place_in_rule, read_callers
from storescp.config_file import ConfigError
from storescp.option_values import Option, Values, file_or_none, flag, number, text_or_none


@dataclass(frozen=True, slots=True, kw_only=True)
class AccessConfig:
    """Who may send, validated. Times are in seconds."""

    callers: Callers
    auth: tuple[str, ...] = field(repr=False)
    """What checks a user's passcode, as strings of twisted.cred.strcred; they may hold passwords."""
    auth_required: bool
    auth_timeout: float
    jwt_key: pathlib.Path | None
    """What a user's token is signed with; None where tokens are not taken."""
    jwt_audience: str | None
    jwt_issuer: str | None

    @property
    def checks_users(self) -> bool:
        """Whether there is something to check users with."""
        return bool(self.auth) or self.jwt_key is not None


def _auth(texts: tuple[str, ...]) -> tuple[str, ...]:
    """Only the outer form; and nothing of it is repeated: there may be passwords in it."""
    if texts == ("none",):
        return ()
    for text in texts:
        name = text.partition(":")[0]
        if not (name.isidentifier() and name.isascii()) or name == "none":
            raise ValueError(
                "expected none or TYPE:ARGUMENTS such as file:/etc/storescp.passwd, got something else"
            )
    return texts


def _without_secrets(text: str) -> str:
    """A string of strcred but for its arguments, unless they are the name of a file."""
    kind, colon, _ = text.partition(":")
    return f"{kind} (masked)" if colon and kind != "file" else text


_REJECT_UNKNOWN = Option(
    "reject-unknown-callers",
    "",
    "false",
    "reject calling AE titles that have no entry in the section callers of the YAML file",
    flag,
    reloads=True,
)
_AUTH = Option(
    "auth",
    "TYPE:ARGUMENTS",
    "none",
    "what checks users and their passcodes, such as file:/etc/storescp.passwd; may be repeated; see --help-auth",
    _auth,
    is_list=True,
    reloads=True,
    masked=_without_secrets,
)
_AUTH_REQUIRED = Option(
    "auth-required", "", "false", "reject associations without a user identity", flag, reloads=True
)
_AUTH_TIMEOUT = Option(
    "auth-timeout",
    "SECONDS",
    "10",
    "reject an association whose user has not been checked by then",
    number(float, "a number of seconds", 0.1, 300.0),
    reloads=True,
)
_JWT_KEY = Option(
    "jwt-key",
    "FILE",
    "none",
    "take users' JSON Web Tokens signed with this key: a public one in PEM, or a secret of at least 32 bytes",
    file_or_none,
    reloads=True,
)
_JWT_AUDIENCE = Option(
    "jwt-audience", "TEXT", "none", "the audience (aud) that a token must be for", text_or_none, reloads=True
)
_JWT_ISSUER = Option(
    "jwt-issuer", "TEXT", "none", "the issuer (iss) that a token must be from", text_or_none, reloads=True
)

ACCESS_OPTIONS: Final[tuple[Option[object], ...]] = (
    _REJECT_UNKNOWN,
    _AUTH,
    _AUTH_REQUIRED,
    _AUTH_TIMEOUT,
    _JWT_KEY,
    _JWT_AUDIENCE,
    _JWT_ISSUER,
)


def read_access(
    value: Values, place: Callable[[str], str], file: str, callers: yaml.Node | None
) -> AccessConfig:
    """Who may send, by the options that *value* knows (*place* where they stand) and the section of *file*.

    Raises ConfigError.
    """
    only_known = value(_REJECT_UNKNOWN)
    known, default = ((), ANYONE) if callers is None else read_callers(callers, file)
    config = AccessConfig(
        callers=Callers(known, default, only_known),
        auth=value(_AUTH),
        auth_required=value(_AUTH_REQUIRED),
        auth_timeout=value(_AUTH_TIMEOUT),
        jwt_key=value(_JWT_KEY),
        jwt_audience=value(_JWT_AUDIENCE),
        jwt_issuer=value(_JWT_ISSUER),
    )
    if only_known and not known:
        raise ConfigError(f"{place(_REJECT_UNKNOWN.name)}: expected entries in the section callers, got none")
    if config.checks_users:
        return config
    if config.auth_required:
        raise ConfigError(f"{place(_AUTH_REQUIRED.name)}: expected auth or jwt-key with it, got neither")
    for caller in (default, *known):
        if caller.user:
            where = place_in_rule(callers, file, caller.name, "user")
            raise ConfigError(f"{where}: expected auth or jwt-key with it, got neither")
    return config
