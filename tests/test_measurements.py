"""storescp.measurements: what is counted by sender, and how much of it is told apart."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from twisted.trial.unittest import SynchronousTestCase

from storescp.dimse import Status
from storescp.measurements import (
    BUCKETS,
    OTHER,
    SERIES,
    TITLES,
    UNKNOWN,
    Duration,
    Event,
    Measurements,
    size_of,
)

Counts = dict[tuple[str, ...], float]


class MeasurementsTests(SynchronousTestCase):
    """Two processes, and memory that both have."""

    def setUp(self) -> None:
        self.memory = memoryview(bytearray(size_of(2)))
        self.locks = 0
        self.measurements = self.attach()
        self.one, self.other = self.measurements.recorder(0), self.attach().recorder(1)

    def attach(self) -> Measurements:
        """As another process sees it."""
        return Measurements(self.memory, 2, self.lock)

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        self.locks += 1
        yield

    def counts(self, event: Event) -> Counts:
        return {
            counted.series.labels: counted.times
            for counted in self.measurements.counted()
            if counted.series.event is event
        }

    def test_sums(self) -> None:
        """What both have counted under one name is one number, whoever came first to which."""
        self.one.accepted("CT1", is_known=True)
        self.other.accepted("MR1", is_known=False)
        self.other.accepted("CT1", is_known=True)
        self.one.ended("MR1", "aborted", is_known=False)
        self.assertEqual(self.counts(Event.ACCEPTED), {("CT1",): 2, ("MR1",): 1})
        self.assertEqual(self.counts(Event.ENDED), {("MR1", "aborted"): 1})

    def test_outlives(self) -> None:
        """A process that takes the place of another one goes on with its numbers."""
        self.one.accepted("CT1", is_known=True)
        self.attach().recorder(0).accepted("CT1", is_known=True)
        self.assertEqual(self.counts(Event.ACCEPTED), {("CT1",): 2})

    def test_instances(self) -> None:
        """Instances are counted by sender, modality and status, with their bytes."""
        sender = self.one.sender("CT1", is_known=True)
        sender.answered(b"CT", Status.SUCCESS, 1000, 0.0)
        sender.answered(b"SEG ", Status.SUCCESS, 10, 0.0)
        self.other.sender("CT1", is_known=True).answered(b"CT", Status.SUCCESS, 500, 0.0)
        sender.answered(b"CT", Status.OUT_OF_RESOURCES, 7, 0.0)
        sender.answered(None, Status.CANNOT_UNDERSTAND, 0, 0.0)
        found = {
            counted.series.labels: (counted.times, counted.size) for counted in self.measurements.counted()
        }
        self.assertEqual(
            found,
            {
                ("CT1", "CT", "0000"): (2, 1500),
                ("CT1", "SEG", "0000"): (1, 10),
                ("CT1", "CT", "A700"): (1, 7),
                ("CT1", UNKNOWN, "C000"): (1, 0),
            },
        )

    def test_durations(self) -> None:
        """A duration belongs to the first bucket that it does not exceed; those of both processes are summed up."""
        self.one.took(Duration.SYNC, BUCKETS[0])
        self.one.took(Duration.SYNC, BUCKETS[0] * 1.01)
        self.other.took(Duration.SYNC, BUCKETS[-1] * 2)
        counts, seconds = self.measurements.durations(Duration.SYNC)
        self.assertEqual(counts, (1, 1, *(0.0,) * (len(BUCKETS) - 2), 1))
        self.assertAlmostEqual(seconds, BUCKETS[0] * 2.01 + BUCKETS[-1] * 2)
        self.assertEqual(sum(self.measurements.durations(Duration.INDEX).counts), 0)

    def test_stopwatch(self) -> None:
        """It counts how long something takes, whatever becomes of that."""
        stopwatch = self.one.stopwatch(Duration.INDEX)
        with contextlib.suppress(OSError), stopwatch:
            raise OSError
        counts, seconds = self.measurements.durations(Duration.INDEX)
        self.assertEqual(sum(counts), 1)
        self.assertGreater(seconds, 0)

    def test_many_titles(self) -> None:
        """Of callers without a rule the first ones are told apart, in all processes; later ones are one."""
        for number in range(10_000):
            (self.one if number % 2 else self.other).accepted(f"AE{number}", is_known=False)
        self.one.accepted("CT1", is_known=True)
        counts = self.counts(Event.ACCEPTED)
        self.assertEqual(
            counts,
            {(f"AE{number}",): 1 for number in range(TITLES)} | {(OTHER,): 10_000 - TITLES, ("CT1",): 1},
        )
        self.assertLess(self.locks, 3 * TITLES)  # those who come too late cost none

    def test_many_rejected(self) -> None:
        """Rejected titles leave room for those that will be accepted."""
        for number in range(1000):
            self.one.rejected(f"AE{number}", "titles", is_known=False)
        self.one.accepted("CT1", is_known=False)
        self.assertEqual(len(self.counts(Event.REJECTED)), TITLES // 2 + 1)
        self.assertEqual(self.counts(Event.ACCEPTED), {("CT1",): 1})

    def test_titles_that_are_no_text(self) -> None:
        """What would forge a label, or a line, is not told apart."""
        for title in ("", "A\tB", "A\nB", "\N{LATIN SMALL LETTER E WITH ACUTE}"):
            self.one.accepted(title, is_known=False)
        self.assertEqual(sum(self.counts(Event.ACCEPTED).values()), 4)
        self.assertEqual(set(self.counts(Event.ACCEPTED)), {(OTHER,)})

    def test_modalities(self) -> None:
        """A modality that the standard does not know is not told apart."""
        sender = self.one.sender("CT1", is_known=True)
        for number in range(1000):
            sender.answered(b"%d" % number, Status.SUCCESS, 1, 0.0)
        self.assertEqual(self.counts(Event.INSTANCE), {("CT1", OTHER, "0000"): 1000})

    def test_many_series(self) -> None:
        """Beyond what can be told apart nothing is lost: senders are one then, statuses are not."""
        rounds = SERIES // 2 + 50
        for number in range(rounds):
            sender = self.one.sender(f"K{number}", is_known=True)
            sender.answered(b"CT", Status.SUCCESS, 1, 0.0)
            sender.answered(b"CT", Status.OUT_OF_RESOURCES, 1, 0.0)
        counts = self.counts(Event.INSTANCE)
        self.assertLess(len(counts), SERIES)
        for status in ("0000", "A700"):
            self.assertGreater(counts[OTHER, OTHER, status], 50)
            self.assertEqual(sum(count for labels, count in counts.items() if labels[-1] == status), rounds)
