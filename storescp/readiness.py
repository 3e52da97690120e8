"""Whether the server takes images, and whether it turns at all: for load balancers, supervisors and people.

What belongs here: the judgement. Who passes it on is :mod:`storescp.web`, for example.
"""

from __future__ import annotations

import enum
import time
from collections.abc import Callable, Mapping
from typing import Protocol

from storescp.config import Config
from storescp.space import look, size_text
from storescp.statistics import Load

#: Seconds that a writing thread may need for what it has taken, and a process between two signs of life.
STALL = 60.0


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
    """What can be said of a server, at any time: by what its *crew* knows, and by its ``phase``."""

    def __init__(self, crew: Crew, monotonic: Callable[[], float] = time.monotonic) -> None:
        self.phase = Phase.STARTING
        self._crew = crew
        self._monotonic = monotonic

    def obstacles(self) -> list[str]:
        """Why no images are taken, in words; empty when they are."""
        found = []
        if self.phase is not Phase.RUNNING:
            found.append(f"the server is {self.phase.value}")
        elif not self._crew.is_ready:
            found.append("no worker is ready")
        config = self._crew.config
        if config.min_free.amount:
            try:
                space = look(config.storage_dir)
            except OSError as error:
                found.append(f"the storage directory cannot be looked at: {error.strerror}")
            else:
                if not space.is_enough(config.min_free):
                    found.append(
                        f"less than {config.min_free} free ({size_text(space.free)}): no images are taken"
                    )
        return found

    def faults(self) -> list[str]:
        """What does not turn any more, in words."""
        found = []
        now = self._monotonic()
        for number, load in self._crew.loads.items():
            silence = now - load.beat
            if load.stalled and load.stalled + silence >= STALL:
                found.append(f"process {number} has written nothing for {load.stalled + silence:.0f} s")
            if silence >= STALL:
                found.append(f"process {number} has not been heard of for {silence:.0f} s")
        return found
