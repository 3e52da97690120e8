"""storescp.readiness: whether images are taken, and whether anything stands still."""

from __future__ import annotations

import pathlib

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from storescp.config import Config, load
from storescp.readiness import SILENCE, STALL, Phase, Readiness
from storescp.statistics import Load


class Workers:
    """A crew whose state is what a test says."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.is_ready = True
        self.loads: dict[int, Load] = {}


class ReadinessTests(SynchronousTestCase):
    """A server with two processes."""

    def setUp(self) -> None:
        self.directory = pathlib.Path(self.mktemp())
        self.directory.mkdir()
        self.clock = Clock()
        self.crew = Workers(self.configured("1"))
        self.readiness = Readiness(self.crew, self.clock.seconds)
        self.readiness.phase = Phase.RUNNING

    def configured(self, min_free: str) -> Config:
        return load(None, {"storage-dir": str(self.directory), "min-free": min_free})

    def report(self, number: int, stalled: float = 0.0) -> None:
        """A process says how it is."""
        jobs = 5 if stalled else 0
        self.crew.loads[number] = Load(self.clock.seconds(), 0, 0, 0, jobs, stalled, 0, 0.0, 0)

    def test_phases(self) -> None:
        """It is ready while it runs: not before, and not while it stops."""
        found = {}
        for phase in Phase:
            self.readiness.phase = phase
            found[phase] = self.readiness.obstacles()
        self.assertEqual(
            found,
            {
                Phase.STARTING: ["the server is starting"],
                Phase.RUNNING: [],
                Phase.STOPPING: ["the server is stopping"],
            },
        )

    def test_no_worker(self) -> None:
        """It is not, when nobody serves associations."""
        self.crew.is_ready = False
        self.assertEqual(self.readiness.obstacles(), ["no worker is ready"])

    def test_space(self) -> None:
        """It is not, when less is free than --min-free; the reason has both numbers."""
        self.crew.config = self.configured("1000T")
        self.readiness.watch.look()
        (reason,) = self.readiness.obstacles()
        self.assertRegex(reason, r"\Aless than \S+ PB free \(\S+ [GT]B\): no images are taken\Z")

    def test_no_directory(self) -> None:
        """It is not, when the storage directory has gone; without --min-free nobody looks."""
        self.directory.rmdir()
        self.readiness.watch.look()
        self.assertEqual(
            self.readiness.obstacles(),
            ["the storage directory cannot be looked at: No such file or directory"],
        )
        self.crew.config = self.configured("0")
        self.assertEqual(self.readiness.obstacles(), [])

    def test_silent_disk(self) -> None:
        """It is not, when the disk has not answered for a while, whoever has asked it: that is no fault yet."""
        self.clock.advance(SILENCE - 1)
        self.report(0, stalled=SILENCE - 1)
        self.assertEqual(self.readiness.obstacles(), [])
        self.clock.advance(1)
        self.assertEqual(
            self.readiness.obstacles(),
            ["the disk has not answered for 10 s", "process 0 has written nothing for 10 s"],
        )
        self.assertEqual(self.readiness.faults(), [])
        self.readiness.watch.look()
        self.report(0)
        self.assertEqual(self.readiness.obstacles(), [])

    def test_writer(self) -> None:
        """A writing thread that has not got on for a while is told at the first question, by what it said last."""
        self.report(1)
        self.report(0, stalled=STALL - 1)
        self.assertEqual(self.readiness.faults(), [])
        self.clock.advance(1)
        self.assertEqual(self.readiness.faults(), ["process 0 has written nothing for 60 s"])
        self.report(0)
        self.assertEqual(self.readiness.faults(), [])

    def test_reactor(self) -> None:
        """So is a process that gives no sign of life."""
        self.report(0)
        self.report(1)
        self.clock.advance(STALL)
        self.report(0)
        self.assertEqual(self.readiness.faults(), ["process 1 has not been heard of for 60 s"])
