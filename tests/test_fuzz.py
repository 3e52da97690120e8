"""fuzz: its seeds, which real senders have said, and whatever it has ever found, without the fuzzer."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from fuzz.targets import TARGETS, samples
from storescp import dimse


class ReplayTests(SynchronousTestCase):
    """What is in fuzz/seeds and fuzz/findings."""

    def test_samples(self) -> None:
        """Every target takes its seeds and findings, whole, cut short and with a bit the other way round."""
        for name, target in TARGETS.items():
            found = list(samples(name))
            self.assertGreater(len(found), 1, name)
            for sample in found:
                data = sample.read_bytes()
                target(data)
                step = max(1, len(data) // 8)
                for start in range(0, len(data), step):
                    target(data[:start])
                    target(data[:start] + bytes([data[start] ^ 1 << start % 8]) + data[start + 1 :])

    def test_what_escapes(self) -> None:
        """A target lets through what a decoder must not raise, and only that."""
        self.patch(dimse, "decode_command", lambda data: int(data))
        self.assertRaises(ValueError, TARGETS["command"], b"no number")
