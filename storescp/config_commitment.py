"""The settings of storage commitment: their options, and what they say together.

What belongs here: what may stand there. Where reports go is a rule for each caller (:mod:`storescp.config_access`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from storescp.access import Callers
from storescp.config_file import ConfigError
from storescp.option_values import Option, Values, flag, number
from storescp.tls_settings import TLSSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class CommitmentSettings:
    """How storage commitment is given. Times are in seconds."""

    delay: float
    """From the answer to a request until its report, on the same association if that is still there."""
    retry: float
    """From the first attempt that failed to the next; twice as long after each further one, up to an hour."""
    keep: float
    """After which a report that could not be delivered is given up."""
    max_items: int
    """Instances of one request."""
    max_owed: int
    """Requests of one caller that wait for their reports."""


_NO_COMMITMENT = Option("no-commitment", "", "false", "do not take requests for storage commitment", flag)
_DELAY = Option(
    "commitment-delay",
    "SECONDS",
    "1",
    "report storage commitment so long after the request: who has released the association by then gets a new one",
    number(float, "a number of seconds", 0.0, 3600.0),
    reloads=True,
)
_RETRY = Option(
    "commitment-retry",
    "SECONDS",
    "60",
    "try a report again after so long, then twice as long each time, up to an hour",
    number(float, "a number of seconds", 0.1, 3600.0),
    reloads=True,
)
_KEEP = Option(
    "commitment-keep",
    "SECONDS",
    "259200",
    "give up a report that could not be delivered for so long",
    number(float, "a number of seconds", 1.0, 31536000.0),
    reloads=True,
)
_MAX_ITEMS = Option(
    "commitment-max-items",
    "N",
    "10000",
    "instances in one request for storage commitment; more are refused",
    number(int, "a whole number", 1, 100000),
    reloads=True,
)
_MAX_OWED = Option(
    "commitment-max-owed",
    "N",
    "1000",
    "requests of one caller that wait for their reports; more are refused",
    number(int, "a whole number", 1, 100000),
    reloads=True,
)

COMMITMENT_OPTIONS: Final[tuple[Option[object], ...]] = (
    _NO_COMMITMENT,
    _DELAY,
    _RETRY,
    _KEEP,
    _MAX_ITEMS,
    _MAX_OWED,
)


def read_commitment(
    value: Values,
    place: Callable[[str, str], str],
    callers: Callers,
    tls: TLSSettings | None,
    *,
    has_index: bool,
) -> CommitmentSettings | None:
    """The settings, by the options that *value* knows; None if it is not given, as there is no index, or by option.

    Raises ConfigError for *callers* whose reports are to go by TLS, where *tls* does not say how; *place* is where a
    rule has a key.
    """
    for caller in (callers.default, *callers.known):
        address = caller.commitment
        if address is not None and address.is_secure and (tls is None or tls.ca is None):
            what = "tls-ca" if tls is not None else "a port with TLS, and tls-ca,"
            raise ConfigError(f"{place(caller.name, 'commitment')}: expected {what} with tls:, got none")
    settings = CommitmentSettings(
        delay=value(_DELAY),
        retry=value(_RETRY),
        keep=value(_KEEP),
        max_items=value(_MAX_ITEMS),
        max_owed=value(_MAX_OWED),
    )
    return None if value(_NO_COMMITMENT) or not has_index else settings
