"""Every system call of the write path fails in turn: a failure leaves nothing behind, Success means stored."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from tests.faults.injected import injected_errors


class InjectedErrorTests(SynchronousTestCase):
    """One call at a time, by strace in the running server; ``make torture`` tries every error."""

    def test_files(self) -> None:
        """Every call and error, for an instance that needs new directories."""
        tally = injected_errors(self, 1, index=False)
        self.assertGreater(tally.injected_errors, 60)

    def test_large(self) -> None:
        """Some of them, for an instance that has a sync of its own."""
        injected_errors(self, 6, index=False, size=300_000, limit=40)

    def test_pieces(self) -> None:
        """Some of them, for an instance that is written in several pieces."""
        injected_errors(self, 2, index=False, size=3_000_000, limit=25)

    def test_replace(self) -> None:
        """Every call and error, for an instance that replaces another: either is there."""
        injected_errors(self, 3, index=False, replace=True)

    def test_index(self) -> None:
        """Some of them, the database's calls among them: index and files agree after each."""
        injected_errors(self, 4, limit=80)

    def test_index_replace(self) -> None:
        """The same where a row takes the place of another."""
        injected_errors(self, 5, replace=True, limit=60)
