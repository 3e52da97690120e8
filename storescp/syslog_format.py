"""Syslog, RFC 5424: the frame of a message, and how a stream is cut into messages (RFC 5425, RFC 6587).

What belongs here: bytes. Who sends them is the business of :mod:`storescp.syslog`.
"""

from __future__ import annotations

import datetime
import re
from typing import Final

#: Facility 10 (security), severity 5 (normal but significant): PS3.15 §A.6.
PRIORITY: Final = 10 * 8 + 5
#: What tells receivers that an audit message follows, §A.6.
MESSAGE_ID: Final = "DICOM+RFC3881"

_BOM: Final = b"\xef\xbb\xbf"  # RFC 5424 §6.4: UTF-8 follows
_unprintable = re.compile(r"[^!-~]")


def syslog_message(content: bytes, when: datetime.datetime, host: str, process: str) -> bytes:
    """RFC 5424 §6: a header, no structured data, and *content* in UTF-8."""
    time = when.isoformat(timespec="milliseconds")
    header = f"<{PRIORITY}>1 {time} {_name(host, 255)} storescp {_name(process, 128)} {MESSAGE_ID} - "
    return header.encode("ascii") + _BOM + content


def counted(message: bytes) -> bytes:
    """RFC 5425 §4.3: octet counting, in a stream."""
    return b"%d %b" % (len(message), message)


def _name(text: str, most: int) -> str:
    """PRINTUSASCII, or nothing."""
    return _unprintable.sub("_", text)[:most] or "-"
