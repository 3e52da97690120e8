"""Whether the server takes images, and whether it turns at all: for load balancers, supervisors and people.

What belongs here: the judgement. Who passes it on is :mod:`storescp.web`, for example.
"""

from __future__ import annotations

import enum
import time
from collections.abc import Callable, Mapping
from typing import Protocol

from storescp.config import Config
from storescp.space import SpaceWatch, size_text
from storescp.statistics import Load

#: Seconds that a writing thread may need for what it has taken, and a process between two signs of life.
STALL = 60.0

#: Seconds for which a disk may give no answer, and nobody be sent elsewhere for that.
SILENCE = 10.0


class Phase(enum.Enum):
    """Where a server is in its life."""

    STARTING = "starting"
    RUNNING = "running"
    STOPPING = "stopping"


class Crew(Protocol):
    """Who does the work: a Receiver, or a Supervisor with several processes."""

    config: Config

    @property
    def is_ready(self) -> bool: ...

    @property
    def loads(self) -> Mapping[int, Load]: ...


class Readiness:
    """What can be said of a server, at any time: by what its *crew* knows, and by its ``phase``.

    ``watch`` is what is known of its disk, if somebody looks.
    """

    def __init__(self, crew: Crew, monotonic: Callable[[], float] = time.monotonic) -> None:
        self.phase = Phase.STARTING
        self.watch = SpaceWatch(crew.config.storage_dir, monotonic)
        self._crew = crew
        self._monotonic = monotonic

    def obstacles(self) -> list[str]:
        """Why no images are taken, in words; empty when they are."""
        found = []
        if self.phase is not Phase.RUNNING:
            found.append(f"the server is {self.phase.value}")
        elif not self._crew.is_ready:
            found.append("no worker is ready")
        watch, least = self.watch, self._crew.config.min_free
        if watch.silence >= SILENCE:
            found.append(f"the disk has not answered for {watch.silence:.0f} s")
        elif least.amount and watch.trouble:
            found.append(f"the storage directory cannot be looked at: {watch.trouble}")
        elif watch.space is not None and not watch.space.is_enough(least):
            found.append(f"less than {least} free ({size_text(watch.space.free)}): no images are taken")
        return found + self._stalled(SILENCE)

    def faults(self) -> list[str]:
        """What does not turn any more, in words."""
        found = []
        now = self._monotonic()
        for number, load in self._crew.loads.items():
            if (silence := now - load.beat) >= STALL:
                found.append(f"process {number} has not been heard of for {silence:.0f} s")
        return self._stalled(STALL) + found

    def _stalled(self, seconds: float) -> list[str]:
        """Whose writing thread has not got on for so long."""
        now = self._monotonic()
        stalls = {n: load.stalled + now - load.beat for n, load in self._crew.loads.items() if load.stalled}
        return [
            f"process {number} has written nothing for {stall:.0f} s"
            for number, stall in stalls.items()
            if stall >= seconds
        ]
