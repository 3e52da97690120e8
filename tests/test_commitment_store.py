"""storescp.commitment_store: what is owed, to whom, and who is at it."""

from __future__ import annotations

import multiprocessing
import os
import pathlib
import sqlite3

from twisted.trial.unittest import SynchronousTestCase

from storescp.commitment_data import Reference, Request
from storescp.commitment_store import CommitmentStore, CommitmentsUnavailable, Owed, Taken

CT = "1.2.840.10008.5.1.4.1.1.2"


def request(number: int, count: int = 2) -> Request:
    """One with the Transaction UID of that number."""
    return Request(f"1.2.{number}", tuple(Reference(CT, f"1.3.{number}.{i}") for i in range(count)))


def _claim(path: str, results: multiprocessing.Queue[list[int]]) -> None:
    store = CommitmentStore(path)
    claimed: list[int] = []
    while owed := store.claim(100.0, 1):
        claimed += (one.id for one in owed)
    results.put(claimed)


class _TestCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.path = pathlib.Path(self.mktemp()) / "commitment.db"
        self.store = self.open()

    def open(self) -> CommitmentStore:
        store = CommitmentStore(os.fspath(self.path))
        self.addCleanup(store.close)
        return store

    def take(
        self, number: int, *, calling: str = "CT1", now: float = 10.0, holder: int = 0, count: int = 2
    ) -> tuple[Taken, Owed | None]:
        return self.store.take(request(number, count), calling, "US", now=now, holder=holder, most=3)

    def taken(self, number: int, **more: float) -> Owed:
        taken, owed = self.take(number, **more)  # type: ignore[arg-type]
        assert taken is Taken.NEW and owed is not None
        return owed


class TakeTests(_TestCase):
    """take()."""

    def test_new(self) -> None:
        """A request is owed as it was made, from the moment that take() returns; there is no file before."""
        self.assertFalse(self.store.exists)
        owed = self.taken(1)
        self.assertTrue(self.store.exists)
        self.assertEqual(owed[1:], (request(1), "CT1", "US", 10.0, 0))
        self.assertEqual(self.open().begin(20.0), 1)  # another process finds it

    def test_repeated(self) -> None:
        """The same request again is not owed twice; who repeats it gets the report, unless somebody is at it."""
        first = self.taken(1)
        self.assertEqual(self.take(1, holder=3), (Taken.AGAIN, None))
        self.store.let_go(first.id, 50.0)
        self.assertEqual(self.take(1, holder=3), (Taken.AGAIN, first))
        self.assertEqual(self.store.claim(100.0, 9), [])
        self.store.free(3, 60.0)
        self.assertEqual(self.store.claim(100.0, 9), [first])

    def test_in_use(self) -> None:
        """A Transaction UID means one request, of one caller, as long as that is owed."""
        owed = self.taken(1)
        self.assertEqual(self.take(1, count=1), (Taken.IN_USE, None))
        self.assertIs(self.take(1, calling="CT2", count=1)[0], Taken.NEW)
        self.store.settle(owed.id)
        self.assertIs(self.take(1, count=1)[0], Taken.NEW)

    def test_too_many(self) -> None:
        """Each caller is owed so many and no more; others do not count, nor does what is settled."""
        owed = [self.taken(number) for number in range(3)]
        self.assertEqual(self.take(3), (Taken.TOO_MANY, None))
        self.assertIs(self.take(3, calling="CT2")[0], Taken.NEW)
        self.store.settle(owed[1].id)
        self.assertIs(self.take(3)[0], Taken.NEW)


class DueTests(_TestCase):
    """What is due, and who may report it."""

    def test_held(self) -> None:
        """As long as a process is at it, it is not due; let go, it is, at its time."""
        owed = self.taken(1)
        self.assertEqual((self.store.claim(1000.0, 9), self.store.next_due()), ([], None))
        self.store.let_go(owed.id, 50.0)
        self.assertEqual(self.store.next_due(), 50.0)
        self.assertEqual(self.store.claim(49.0, 9), [])
        self.assertEqual(self.store.claim(50.0, 9), [owed])
        self.assertEqual(self.store.claim(50.0, 9), [])

    def test_attempts(self) -> None:
        """Attempts that fail are counted."""
        number = self.taken(1).id
        for attempts in range(3):
            self.store.let_go(number, 0.0, failed=attempts > 0)
            self.assertEqual([one.attempts for one in self.store.claim(1.0, 9)], [attempts])

    def test_processes(self) -> None:
        """What a process that has died was at is due; what others are at is not."""
        dead, _alive = self.taken(1, holder=1), self.taken(2, holder=2)
        self.store.free(1, 30.0)
        self.assertEqual(self.store.claim(30.0, 9), [dead])

    def test_restart(self) -> None:
        """When a server starts nobody is at anything: all is due, whatever was planned."""
        self.taken(1)
        self.store.let_go(self.taken(2).id, 1e9)
        store = self.open()
        self.assertEqual(store.begin(70.0), 2)
        self.assertEqual([one.request for one in store.claim(70.0, 9)], [request(1), request(2)])

    def test_hasten(self) -> None:
        """What is due later can be made due now, but for what somebody is at."""
        self.store.let_go(self.taken(1).id, 1e9)
        self.taken(2)
        self.store.hasten(20.0)
        self.assertEqual([one.request for one in self.store.claim(20.0, 9)], [request(1)])

    def test_order(self) -> None:
        """The longest due comes first, as many as are wanted."""
        for number, due in ((1, 30.0), (2, 10.0), (3, 20.0)):
            self.store.let_go(self.taken(number).id, due)
        self.assertEqual([one.request for one in self.store.claim(40.0, 2)], [request(2), request(3)])

    def test_expired(self) -> None:
        """What is too old goes, and is told; unless somebody is at it."""
        old, held = self.taken(1, now=1.0), self.taken(2, now=1.0)
        self.taken(3, now=5.0)
        self.store.let_go(old.id, 1e9)
        self.assertEqual(self.store.expire(5.0), [old])
        self.assertEqual(self.store.expire(5.0), [])
        self.store.let_go(held.id, 0.0)
        self.assertEqual(self.store.expire(5.0), [held])

    def test_one_claims(self) -> None:
        """Of several processes that claim at the same time, each transaction goes to one."""
        for number in range(60):
            _, owed = self.store.take(request(number), "CT1", "US", now=0.0, holder=0, most=100)
            assert owed is not None
            self.store.let_go(owed.id, 0.0)
        self.store.close()
        context = multiprocessing.get_context("spawn")
        results: multiprocessing.Queue[list[int]] = context.Queue()
        processes = [context.Process(target=_claim, args=(str(self.path), results)) for _ in range(2)]
        for process in processes:
            process.start()
        claimed = [number for _ in processes for number in results.get(timeout=30)]
        for process in processes:
            process.join()
        self.assertEqual(sorted(claimed), list(range(1, 61)))


class DatabaseTests(_TestCase):
    """The file."""

    def test_another_program(self) -> None:
        """A database that is not ours is not written into, and told of in one line."""
        self.path.parent.mkdir()
        connection = sqlite3.connect(self.path)
        connection.execute("PRAGMA user_version = 7")
        connection.commit()
        connection.close()
        before = self.path.read_bytes()
        error = self.assertRaises(CommitmentsUnavailable, self.take, 1)
        self.assertEqual(len(str(error).splitlines()), 1)
        self.assertIn("of another program, or of a newer one", str(error))
        self.assertEqual(self.path.read_bytes(), before)

    def test_it_comes_back(self) -> None:
        """After a failure the next call begins anew."""
        self.path.parent.write_bytes(b"")  # where the directory should be
        self.assertRaises(CommitmentsUnavailable, self.take, 1)
        self.path.parent.unlink()
        self.taken(1)

    def test_synced(self) -> None:
        """A transaction is synced when it is committed."""
        self.taken(1)
        assert self.store._connection is not None
        self.assertEqual(self.store._connection.execute("PRAGMA synchronous").fetchone()[0], 2)
