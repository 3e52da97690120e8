"""The disk fills up: no room for data, no inodes for files, no room for the index."""

from __future__ import annotations

import itertools
import random
import shutil
from typing import NamedTuple

from twisted.trial.unittest import SynchronousTestCase

from storescp.pdu import AAbort
from tests.faults.disks import Mount, make_image, tmpfs
from tests.faults.load import (
    OUT_OF_RESOURCES,
    SUCCESS,
    FaultServer,
    Item,
    Ledger,
    Load,
    Tally,
    Violation,
    check,
    check_hidden,
    check_index,
    empty_directories,
    plans,
)
from tests.raw_scu import CT, EXPLICIT, EXPLICIT_CONTEXT, RawSCU
from tests.server import temporary_directory


class Kind(NamedTuple):
    """What is short. Files in the way, ``ballast`` of so many bytes each, make room when they go."""

    options: str  # of the tmpfs
    ballast: tuple[int, int]
    instances: int  # for each association: more than there is room for
    largest: int


KINDS = {
    "room": Kind("size=16m", (8, 1 << 20), 30, 2 << 20),
    "inodes": Kind("size=64m,nr_inodes=124", (64, 0), 40, 2048),
    "ext4": Kind("", (8, 2 << 20), 90, 4 << 20),
    "index": Kind("size=2m", (8, 128 << 10), 60, 1024),
}


def full_disk(case: SynchronousTestCase, seed: int, *, kind: str, index: bool = True) -> Tally:
    """Four associations send more than there is room for, and a fifth one lives through it all.

    *kind* is a key of KINDS: what is short. What gets A700H leaves nothing behind; all get an answer. When there
    is room again, instances are stored again, without a new start; a little room is used up again and again, as
    the last write before a full disk is a short one.
    """
    source = random.Random(seed)
    short = KINDS[kind]
    if kind == "ext4":
        image = tmpfs(case, "size=1g") / "small.img"
        make_image(image, "ext4")
        small = Mount(case, temporary_directory(case) / "small", "-o", "loop", image).directory
    else:
        small = tmpfs(case, short.options)
    storage, database = small / "received", small / "received" / ".storescp" / "index.db"
    if kind == "index":
        storage, database = temporary_directory(case) / "received", small / "index.db"
    options = ["--index-db", database] if index else ["--no-index"]
    ballast = small / "ballast"
    ballast.mkdir()
    for name in range(short.ballast[0]):
        (ballast / str(name)).write_bytes(bytes(short.ballast[1]))
    ledger = Ledger("reject", "hierarchical")
    load = Load(
        ledger,
        plans(
            source,
            associations=4,
            instances=short.instances,
            prefix=str(seed),
            largest=short.largest,
        ),
    )

    def look() -> int:
        checked = check(storage, ledger)
        check_hidden(storage)
        if empty := empty_directories(storage):
            raise Violation(f"empty directories: {empty}")
        if index:
            check_index(storage, database)
        return checked

    tally = Tally(full_disks=8)
    with FaultServer(case, storage, *options) as server, RawSCU(server.address) as witness:
        witness.associate(((CT, EXPLICIT),) * 2)

        numbers = itertools.count()

        def send() -> int | AAbort | None:
            number = next(numbers)
            item = Item(
                f"1.2.{seed}.9.{number}", number, source.randrange(512, max(1024, short.largest // 4)) & ~1
            )
            content = item.data_set
            ledger.sending(item, content)
            status = witness.store(item.uid, content, EXPLICIT_CONTEXT)
            if isinstance(status, int):
                ledger.answered(item, content, status)
            return status

        case.assertEqual(send(), SUCCESS)
        load.run(server.address)
        case.assertEqual(load.left, 0, server.output)
        case.assertEqual(load.statuses.keys() - {0x0111}, {SUCCESS, OUT_OF_RESOURCES})
        tally.instances_checked += look()
        rounds = 8
        for number in range(rounds - 1):  # the last part is for the new start
            for file in list(ballast.iterdir())[: short.ballast[0] // rounds]:
                file.unlink()
            statuses = [send()]
            while statuses[-1] == SUCCESS and len(statuses) < 40:
                statuses.append(send())
            case.assertEqual(set(statuses[:-1]), {SUCCESS}, f"round {number}: {statuses}")
            case.assertIn(statuses[-1], (SUCCESS, OUT_OF_RESOURCES))
            tally.instances_checked += look()
        witness.release()
        server.stop()
    shutil.rmtree(ballast)
    with FaultServer(case, storage, *options) as server:
        tally.instances_checked += look()
        server.stop()
    tally.instances_acknowledged = ledger.acknowledged
    return tally
