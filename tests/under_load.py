"""Several senders at once, in threads, and a server that is stopped meanwhile."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable
from functools import partial

from twisted.trial.unittest import SynchronousTestCase

from tests.raw_scu import RawSCU, instance
from tests.server import DEADLINE, Server

SENDERS = 4


def in_threads(works: list[Callable[[], None]]) -> None:
    """Do all at once; raises what the first one raised that failed."""
    errors: list[BaseException] = []

    def guarded(work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:
            errors.append(error)
            raise

    threads = [threading.Thread(target=guarded, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE)
    for error in errors:
        raise error


def stopped_under_load(case: SynchronousTestCase, *options: object) -> None:
    """Stop a server while senders send: what was answered with 0000H is there, and nothing else."""
    server = Server(case, "--stop-timeout", 0.1, "--naming", "flat", *options)
    stored: list[str] = []
    under_way = threading.Semaphore(0)

    def send(sender: int) -> None:
        with contextlib.suppress(OSError), RawSCU(server.address) as scu:  # it may go away while we write
            scu.associate()
            for number in range(1_000_000):
                uid = f"1.{sender}.{number}"
                if scu.store(uid, instance(uid, pixels=bytes(20_000))) != 0:
                    return
                stored.append(uid)
                under_way.release()

    def stop() -> None:
        for _ in range(200):
            case.assertTrue(under_way.acquire(timeout=DEADLINE))
        server.send_signal(signal.SIGTERM)

    in_threads([stop, *(partial(send, sender) for sender in range(SENDERS))])
    statistics = server.stopped()
    files = {name.removesuffix(".dcm") for name in server.files()}
    # What was stored but not answered any more may be there as well: at most one a sender.
    case.assertEqual(set(stored) - files, set())
    case.assertLessEqual(len(files - set(stored)), SENDERS)
    case.assertEqual(statistics["stored"], len(files))
    case.assertEqual(server.rows("SELECT count(*) FROM instances"), [(len(files),)])
    case.assertEqual(server.litter(), [])
