"""The server is killed at random moments, under load, again and again on the same storage directory."""

from __future__ import annotations

import functools
import pathlib
import random
import subprocess

from twisted.trial.unittest import SynchronousTestCase

from tests.faults.load import (
    FaultServer,
    Ledger,
    Load,
    Tally,
    check,
    check_hidden,
    check_index,
    kill_group,
    plans,
    wait_until_unused,
)
from tests.server import environment, temporary_directory, twistd

ASSOCIATIONS = 8


def killed(
    case: SynchronousTestCase,
    seed: int,
    *,
    rounds: int,
    naming: str = "hierarchical",
    duplicate: str = "reject",
    sync: str = "always",
    index: bool = True,
    instances: int = 12,
    workers: int = 1,
    window: int = 1,
) -> Tally:
    """*rounds* times SIGKILL while eight associations send, each about *instances* more a round, *window* at a time.

    Right after the death, and again after the next start, everything acknowledged is whole, and nothing is visible
    that is not; after the start nothing unfinished is left and the index agrees with the files. In the end what
    was not answered is sent again, and gets through.
    """
    source = random.Random(seed)
    storage = temporary_directory(case) / "received"
    options: list[object] = ["--naming", naming, "--duplicate", duplicate, "--sync", sync]
    options += ["--workers", workers]
    if not index:
        options.append("--no-index")
    ledger = Ledger(duplicate, naming)
    load = Load(ledger, [[] for _ in range(ASSOCIATIONS)], window)
    tally = Tally()
    for number in range(rounds + 1):
        if number and source.random() < 0.3:
            _kill_at_start(case, source, storage, options)
            tally.kills += 1
        server = FaultServer(case, storage, *options)
        tally.instances_checked += check(storage, ledger)
        check_hidden(storage)
        if index:
            check_index(storage, storage / ".storescp" / "index.db")
        if number == rounds:
            load.run(server.address)
            if load.left:
                case.fail(f"{load.left} instances are not answered; {server.output}")
            server.stop()
        else:
            more = plans(
                source, associations=ASSOCIATIONS, instances=instances, prefix=str(seed * 1000 + number)
            )
            for todo, plan in zip(load.todo, more, strict=True):
                todo.extend(plan)
            volume = sum(item.size for todo in load.todo for item in todo)
            limit = load.sent + source.randrange(volume)
            load.run(server.address, functools.partial(kill_beyond, server, limit))
            server.kill()
            server.wait()
            tally.kills += 1
        tally.instances_checked += check(storage, ledger if number == rounds else ledger.copy())
    if index:
        check_index(storage, storage / ".storescp" / "index.db")
    unexpected = load.statuses.keys() - {0, *({0x0111} if duplicate in ("reject", "same") else ())}
    case.assertEqual(unexpected, set())
    tally.instances_acknowledged = ledger.acknowledged
    return tally


def kill_beyond(server: FaultServer, limit: int | None, sent: int) -> None:
    """Have *server* die once more than *limit* bytes are sent."""
    if limit is not None and sent > limit:
        server.kill()


def _kill_at_start(
    case: SynchronousTestCase, source: random.Random, storage: pathlib.Path, options: list[object]
) -> None:
    """Kill it within the second in which it starts, while it looks at what the last death has left."""
    process = subprocess.Popen(
        twistd("--storage-dir", storage, "--listen", "tcp:0:interface=127.0.0.1", *options),
        cwd=temporary_directory(case),
        env=environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        process.wait(source.uniform(0.2, 1.0))
    except subprocess.TimeoutExpired:
        pass
    finally:
        kill_group(process)
        process.wait()
        wait_until_unused(storage)
