"""The limits: options for what peers may cost, one by one and together. Their values are fields of Config."""

from __future__ import annotations

from typing import Final

from storescp.option_values import Option, number, size

MAX_ASSOC = Option(
    "max-assoc",
    "N",
    "10",
    "associations at a time; more are rejected",
    number(int, "a whole number", 1, 65535),
    reloads=True,
)
MAX_PENDING = Option(
    "max-pending",
    "N",
    "100",
    "connections at a time that have not asked for an association yet; more are closed",
    number(int, "a whole number", 1, 65535),
    reloads=True,
)
TIMEOUT = Option(
    "timeout",
    "SECONDS",
    "300",
    "abort an association that was idle for so long; 0: never",
    number(float, "a number of seconds", 0.0, 604800.0),
    reloads=True,
)
ARTIM_TIMEOUT = Option(
    "artim-timeout",
    "SECONDS",
    "30",
    "close a connection that has not asked for an association, or not hung up, by then",
    number(float, "a number of seconds", 0.1, 3600.0),
    reloads=True,
)
STOP_TIMEOUT = Option(
    "stop-timeout",
    "SECONDS",
    "30",
    "how long a stop waits for associations before it aborts them",
    number(float, "a number of seconds", 0.0, 3600.0),
    reloads=True,
)
MAX_PDU = Option(
    "max-pdu",
    "BYTES",
    "262144",
    "the longest P-DATA-TF PDU we announce to take; 0: no limit",
    number(int, "a number of bytes", 4096, 1 << 24, or_zero=True),
    reloads=True,
)
MAX_PER_ADDRESS = Option(
    "max-per-address",
    "N",
    "0",
    "connections at a time from one address; more are closed; 0: no limit",
    number(int, "a whole number", 1, 65535, or_zero=True),
    reloads=True,
)
MAX_RATE = Option(
    "max-rate",
    "N",
    "0",
    "new connections a second from one address, on average; more are closed; 0: no limit",
    number(float, "a number", 0.01, 100000.0, or_zero=True),
    reloads=True,
)
MAX_OBJECT_SIZE = Option(
    "max-object-size",
    "SIZE",
    "0",
    "refuse images of more bytes (K, M, G, T) with A700H; 0: no limit",
    size(1),
    reloads=True,
)
MAX_IN_FLIGHT = Option(
    "max-in-flight",
    "SIZE",
    "256M",
    "bytes of all associations that may wait for storage: senders have to wait then; 0: no limit",
    size(1 << 20),
    reloads=True,
)
MIN_RATE = Option(
    "min-rate",
    "SIZE",
    "1K",
    "abort an association whose image, or PDU, comes with fewer bytes a second; 0: never",
    size(1),
    reloads=True,
)
PROGRESS_TIMEOUT = Option(
    "progress-timeout",
    "SECONDS",
    "60",
    "what --min-rate is judged over, and the time for a peer to take our answers; 0: none of that",
    number(float, "a number of seconds", 0.1, 86400.0, or_zero=True),
    reloads=True,
)

LIMIT_OPTIONS: Final[tuple[Option[object], ...]] = (
    MAX_ASSOC,
    MAX_PENDING,
    TIMEOUT,
    ARTIM_TIMEOUT,
    STOP_TIMEOUT,
    MAX_PDU,
    MAX_PER_ADDRESS,
    MAX_RATE,
    MAX_OBJECT_SIZE,
    MAX_IN_FLIGHT,
    MIN_RATE,
    PROGRESS_TIMEOUT,
)
