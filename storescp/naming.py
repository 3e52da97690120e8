"""Where an instance belongs under the storage directory, by its UIDs and its Study Date, and what becomes of one whose
place is taken. No I/O.
"""

from __future__ import annotations

import datetime
import enum
import functools
import re

__all__ = ["Duplicate", "Naming", "UnsafeUID", "is_safe_uid", "relative_path"]


class Naming(enum.Enum):
    """The schemes of path names."""

    HIERARCHICAL = "hierarchical"
    """Study/Series/SOP.dcm"""
    DATE = "date"
    """YYYY/MM/DD/Study/SOP.dcm, by Study Date, else by the day of receipt"""
    FLAT = "flat"
    """SOP.dcm"""


class Duplicate(enum.Enum):
    """What becomes of an instance that is already stored."""

    REJECT = "reject"
    REPLACE = "replace"
    IGNORE = "ignore"
    SAME = "same"


class UnsafeUID(ValueError):
    """A UID that must not become part of a path name; the message says which."""


# Wider than PS3.5 §9.1, as real senders use leading zeros, letters and empty components. The first character
# keeps out ".", "..", hidden names (our own directory is one) and names that shell tools take for options.
_safe_uid = re.compile(r"[0-9A-Za-z][0-9A-Za-z._-]{0,63}").fullmatch

# DA (PS3.5 §6.2), and its form before DICOM 3.0, which PS3.5 asks readers to go on supporting.
_date = re.compile(r"([0-9]{4})(\.?)([0-9]{2})\2([0-9]{2})").fullmatch


def is_safe_uid(text: str) -> bool:
    """Whether `text` can be one component of a path name, and one of 1 to 64 characters."""
    return _safe_uid(text) is not None


def relative_path(
    naming: Naming,
    *,
    study_instance_uid: str,
    series_instance_uid: str,
    sop_instance_uid: str,
    study_date: str | None,
    received: datetime.date,
) -> str:
    """The path of an instance below the storage directory, with "/" between its components.

    `study_date` is a DA value, "YYYYMMDD" or "YYYY.MM.DD"; where it is neither, or no day, `received` takes
    its place. All three UIDs are judged, whatever `naming` needs: no scheme keeps what another could not.
    Raises UnsafeUID.
    """
    if not (_safe_uid(sop_instance_uid) and _safe_uid(series_instance_uid) and _safe_uid(study_instance_uid)):
        raise _unsafe(study_instance_uid, series_instance_uid, sop_instance_uid)
    if naming is Naming.HIERARCHICAL:
        return f"{study_instance_uid}/{series_instance_uid}/{sop_instance_uid}.dcm"
    if naming is Naming.DATE:
        return f"{_day(study_date, received)}/{study_instance_uid}/{sop_instance_uid}.dcm"
    return f"{sop_instance_uid}.dcm"


@functools.lru_cache(maxsize=64)
def _day(study_date: str | None, received: datetime.date) -> str:
    day = received
    if study_date is not None and (match := _date(study_date)):
        year, _, month, day_of_month = match.groups()
        try:
            day = datetime.date(int(year), int(month), int(day_of_month))
        except ValueError:  # 31 February
            pass
    return f"{day.year:04}/{day.month:02}/{day.day:02}"


def _unsafe(study_instance_uid: str, series_instance_uid: str, sop_instance_uid: str) -> UnsafeUID:
    uids = {"Study": study_instance_uid, "Series": series_instance_uid, "SOP": sop_instance_uid}
    level, uid = next((level, uid) for level, uid in uids.items() if not is_safe_uid(uid))
    return UnsafeUID(f"{level} Instance UID {uid!r:.80} cannot be part of a path name")
