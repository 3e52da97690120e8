"""The settings of the log and of the audit trail: their options, and what they say together.

What belongs here: what may stand there. What the settings are is said by :mod:`storescp.log_settings` and
:mod:`storescp.audit_settings`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final

from storescp.audit_settings import AuditSettings, Transport
from storescp.config_file import ConfigError
from storescp.log_settings import AREAS, LogFormat, LogLevel, LogLevels, LogSettings, Rotation
from storescp.option_values import (
    Option,
    Values,
    file_or_none,
    flag,
    is_host,
    names,
    number,
    one_of,
    size,
    text_or_none,
    unexpected,
)
from storescp.settings import nearest

_namespace = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)+").fullmatch


def _levels(texts: tuple[str, ...]) -> LogLevels:
    """A level for all, and levels for single areas or namespaces."""
    default: LogLevel | None = None
    own: dict[str, LogLevel] = {}
    for text in names(texts):
        area, is_own, level = text.rpartition("=")
        area = area.strip()
        if is_own and area not in AREAS and not _namespace(area):
            raise unexpected(f"an area ({', '.join(AREAS)}) or a namespace{nearest(area, AREAS)}", area)
        judged = one_of(LogLevel)((level.strip(),))
        if area in own or (not is_own and default is not None):
            raise unexpected(f"one level for {area or 'all'}", ",".join(texts))
        if is_own:
            own[area] = judged
        else:
            default = judged
    if default is None and not own:
        raise unexpected("a level, or AREA=LEVEL", ",".join(texts))
    return LogLevels(default or LogLevel.INFO, tuple(own.items()))


_receiver = re.compile(
    r"(?:syslog\+)?(udp|tcp|tls)://(?:\[([0-9A-Fa-f:.]+)\]|([A-Za-z0-9._-]+))(?::([0-9]{1,5}))?/?"
).fullmatch
# RFC 5426 §3.3, RFC 6587 §3.4 (which names none; syslog-conn of RFC 3195 is what IANA has), RFC 5425 §4.1.
_PORTS = {Transport.UDP: 514, Transport.TCP: 601, Transport.TLS: 6514}


def _audit(texts: tuple[str, ...]) -> tuple[Transport, str, int] | None:
    """A receiver of syslog."""
    if texts[0] == "none":
        return None
    match = _receiver(texts[0])
    if match is not None:
        transport = Transport(match[1])
        port = int(match[4] or _PORTS[transport])
        host = match[2] or match[3]
        if 1 <= port <= 65535 and is_host(host):
            return transport, host, port
    raise unexpected("none, udp://HOST:PORT, tcp://HOST:PORT or tls://HOST:PORT", texts[0])


def _rotation(texts: tuple[str, ...]) -> Rotation:
    """None, each day, or a size."""
    if texts[0] in ("none", "daily"):
        return Rotation(daily=texts[0] == "daily")
    try:
        return Rotation(size=size(4096)(texts))
    except ValueError:
        raise unexpected("none, daily, or a size such as 500K or 20M, at least 4096", texts[0]) from None


LOG_PATIENT_DATA: Final = Option(
    "log-patient-data", "", "false", "let patients' names and IDs into the log", flag, reloads=True
)
_LEVEL = Option(
    "log-level",
    "LEVELS",
    "info",
    "log what is at least so important: debug, info, warn, error; with AREA=LEVEL for one area, such as"
    " info,tls=debug",
    _levels,
    is_list=True,
    reloads=True,
)
_FORMAT = Option(
    "log-format",
    "FORMAT",
    "text",
    "lines for people (text) or objects for machines (json)",
    one_of(LogFormat),
)
_FILE = Option(
    "log-file", "FILE", "none", "write the log to this file; none: where twistd's log goes", file_or_none
)
_ROTATE = Option(
    "log-rotate",
    "WHEN",
    "none",
    "begin the log file anew: daily, or beyond a size such as 20M; none: SIGUSR1 opens it anew (logrotate)",
    _rotation,
)
_KEEP = Option(
    "log-keep",
    "N",
    "10",
    "older log files that are kept; 0: all",
    number(int, "a whole number", 1, 10000, or_zero=True),
)

_AUDIT = Option(
    "audit",
    "URL",
    "none",
    "send DICOM audit messages by syslog to udp://HOST:514, tcp://HOST:601 or tls://HOST:6514",
    _audit,
)
_AUDIT_SOURCE = Option(
    "audit-source",
    "NAME",
    "none",
    "what audit messages call this system; none: by its AE title",
    text_or_none,
)
_AUDIT_SITE = Option(
    "audit-site", "NAME", "none", "the site, for audit messages: what makes that name unique", text_or_none
)
_AUDIT_CA = Option(
    "audit-ca",
    "FILE",
    "none",
    "authorities, in PEM, for the certificate of an audit receiver over TLS; none: those of the system",
    file_or_none,
)
_AUDIT_CERTIFICATE = Option(
    "audit-certificate",
    "FILE",
    "none",
    "certificate, in PEM, that we show to it, and those between it and its authority",
    file_or_none,
)
_AUDIT_KEY = Option(
    "audit-key", "FILE", "none", "the certificate's private key in PEM; none: in the same file", file_or_none
)

LOG_OPTIONS: Final[tuple[Option[object], ...]] = (
    LOG_PATIENT_DATA,
    _LEVEL,
    _FORMAT,
    _FILE,
    _ROTATE,
    _KEEP,
    _AUDIT,
    _AUDIT_SOURCE,
    _AUDIT_SITE,
    _AUDIT_CA,
    _AUDIT_CERTIFICATE,
    _AUDIT_KEY,
)


def read_logs(value: Values, place: Callable[[str], str]) -> LogSettings:
    """The settings by the options that *value* knows; *place* is where they stand. Raises ConfigError."""
    file, rotation = value(_FILE), value(_ROTATE)
    if file is None and rotation != Rotation():
        raise ConfigError(f"{place(_ROTATE.name)}: expected with log-file, got it without")
    return LogSettings(
        levels=value(_LEVEL),
        format=value(_FORMAT),
        file=file,
        rotation=rotation,
        keep=value(_KEEP),
        audit=_read_audit(value, place),
    )


def _read_audit(value: Values, place: Callable[[str], str]) -> AuditSettings | None:
    receiver = value(_AUDIT)
    source, site = value(_AUDIT_SOURCE), value(_AUDIT_SITE)
    ca, certificate, key = value(_AUDIT_CA), value(_AUDIT_CERTIFICATE), value(_AUDIT_KEY)
    for option, file in ((_AUDIT_CA, ca), (_AUDIT_CERTIFICATE, certificate), (_AUDIT_KEY, key)):
        if file is not None and (receiver is None or receiver[0] is not Transport.TLS):
            raise ConfigError(f"{place(option.name)}: expected with audit tls://HOST:PORT, got it without")
    if key is not None and certificate is None:
        raise ConfigError(f"{place(_AUDIT_KEY.name)}: expected with audit-certificate, got it without")
    if receiver is None:
        return None
    transport, host, port = receiver
    return AuditSettings(
        transport=transport,
        host=host,
        port=port,
        source=source or "",
        site=site or "",
        ca=ca,
        certificate=certificate,
        key=key,
    )
