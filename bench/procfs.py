"""CPU time and memory of a process and its descendants, from /proc."""

from __future__ import annotations

import os

_TICK = os.sysconf("SC_CLK_TCK")


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat from the third on; the name in field 2 may hold spaces. Empty when it is gone."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return []


def tree(pid: int) -> list[int]:
    """The process and all its living descendants; empty when it is gone."""
    children: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if name.isdecimal() and (fields := _stat(int(name))):
            children.setdefault(int(fields[1]), []).append(int(name))
    found = [pid] if _stat(pid) else []
    for member in found:  # grows while we walk
        found += children.get(member, [])
    return found


def cpu_seconds(pid: int) -> float:
    """User and system time of the tree, with that of children that have ended and were waited for; steps of 10 ms."""
    # Fields 14 to 17: utime, stime, cutime, cstime.
    return sum(sum(map(int, _stat(member)[11:15])) for member in tree(pid)) / _TICK


def _memory(pid: int, field: str) -> float:
    total = 0
    for member in tree(pid):
        try:
            with open(f"/proc/{member}/status") as file:
                total += sum(int(line.split()[1]) for line in file if line.startswith(field + ":"))
        except (FileNotFoundError, ProcessLookupError):
            pass
    return total / 1024


def peak_mebibytes(pid: int) -> float:
    """Peak resident memory, summed over the tree (shared pages count once per process)."""
    return _memory(pid, "VmHWM")


def resident_mebibytes(pid: int) -> float:
    """Resident memory now, summed over the tree."""
    return _memory(pid, "VmRSS")
