"""What is logged, how, and where to: areas and their levels, formats, files.

What belongs here: values and names. Lines are made by :mod:`storescp.log_lines`, files by :mod:`storescp.log_files`.
"""

from __future__ import annotations

import enum
import pathlib
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from storescp.audit_settings import AuditSettings


class LogLevel(enum.Enum):
    """The least important events that are logged."""

    DEBUG = "debug"
    INFO = "info"
    WARN = "warn"
    ERROR = "error"


class LogFormat(enum.Enum):
    """What an event becomes: a line for people, or an object of JSON."""

    TEXT = "text"
    JSON = "json"


#: Areas of the log, and the modules whose events belong there; of other modules of ours they belong to "server".
AREAS: Final = {
    "server": ("service", "supervisor", "door", "worker_process", "child", "receiver", "tap"),
    "association": ("connections", "protocol"),
    "dimse": ("scp",),
    "storage": ("store",),
    "commitment": ("commitment", "commitment_ledger", "reporter"),
    "tls": ("tls",),
    "audit": ("audit", "syslog", "syslog_queue", "syslog_udp"),
    "twisted": (),
}

# Events that Twisted logs in its old way. At "info" that is but which factory listens where, which we say better.
_LEGACY: Final = "log_legacy"

_AREA_OF = {f"storescp.{module}": area for area, modules in AREAS.items() for module in modules}


@lru_cache(maxsize=256)
def area_of(namespace: str) -> str:
    """The area of events of *namespace*, which begins with the name of a module."""
    if namespace.partition(".")[0] != "storescp":
        return "twisted"
    return _AREA_OF.get(".".join(namespace.split(".")[:2]), "server")


@dataclass(frozen=True, slots=True)
class LogLevels:
    """The level of each area, or namespace, that has one of its own, and of all others."""

    default: LogLevel = LogLevel.INFO
    own: tuple[tuple[str, LogLevel], ...] = ()

    def of(self, namespace: str) -> LogLevel:
        """The level of *namespace*: by the longest name of a namespace around it, else by its area."""
        named = dict(self.own)
        parts = namespace.split(".")
        for count in range(len(parts), 0, -1):
            prefix = ".".join(parts[:count])
            if prefix in named and prefix not in AREAS:
                return named[prefix]
        default = self.default
        if namespace == _LEGACY and default is LogLevel.INFO:
            default = LogLevel.WARN
        return named.get(area_of(namespace), default)


@dataclass(frozen=True, slots=True)
class Rotation:
    """When a new file of the log is begun: at so many bytes, or each day; or only when somebody asks for it."""

    size: int = 0
    daily: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class LogSettings:
    """``file`` is None for where twistd's log goes; of older files ``keep`` are kept, 0 for all.

    ``audit`` is None where no audit messages are sent.
    """

    levels: LogLevels = LogLevels()
    format: LogFormat = LogFormat.TEXT
    file: pathlib.Path | None = None
    rotation: Rotation = Rotation()
    keep: int = 0
    audit: AuditSettings | None = None
