"""The operator's command ``storescp commitments``: which reports on storage commitment are owed. No Twisted.

What belongs here: what it prints. It changes nothing, whether the server runs or not.
"""

from __future__ import annotations

import argparse
import contextlib
import os

from storescp.commitment_store import NAME, CommitmentStore
from storescp.config import OPTIONS, Config, load
from storescp.counting import Count
from storescp.operator_archive import look_at
from storescp.operator_output import print_json, printable, time_text
from storescp.settings import CONFIG_VARIABLE
from storescp.storage_directory import PRIVATE_DIRECTORY


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``commitments`` to the operator's *commands*."""
    parser = commands.add_parser(
        "commitments",
        help="which reports on storage commitment are owed",
        description="Print a line for each request of which the caller has not confirmed the report yet.",
    )
    option = next(option for option in OPTIONS if option.name == "storage-dir")
    parser.add_argument(
        "-c", "--config", metavar="FILE", help=f"the server's YAML file; or {CONFIG_VARIABLE}"
    )
    parser.add_argument("-d", "--storage-dir", metavar=option.metavar, help=option.help)
    parser.add_argument("--json", action="store_true", help="print JSON, an object a line")
    parser.set_defaults(command=_commitments)


def _commitments(options: argparse.Namespace) -> int:
    given = {"storage-dir": options.storage_dir} if options.storage_dir is not None else {}
    config: Config = load(options.config or os.environ.get(CONFIG_VARIABLE), given, os.environ)
    root = os.path.abspath(config.storage_dir)
    look_at("storage directory", f"{root}/")
    path = os.path.join(root, PRIVATE_DIRECTORY, NAME)
    with contextlib.suppress(FileNotFoundError):
        os.stat(path)  # who may not look there is not told that there is nothing
    store = CommitmentStore(path)
    planned = store.planned() if store.exists else []
    store.close()
    for owed, due_at in planned:
        if options.json:
            print_json(
                {
                    "calling_ae_title": owed.calling_ae_title,
                    "transaction_uid": owed.request.transaction_uid,
                    "instances": len(owed.request.references),
                    "requested_at": owed.requested_at,
                    "attempts": owed.attempts,
                    "due_at": due_at,
                }
            )
            continue
        when = "being reported" if due_at is None else f"next attempt {time_text(due_at)}"
        print(
            f"{printable(owed.calling_ae_title)}: {Count(len(owed.request.references)):instance},"
            f" requested {time_text(owed.requested_at)}, {Count(owed.attempts):attempt}, {when};"
            f" transaction {owed.request.transaction_uid}"
        )
    summary = {"owed": len(planned)}
    if options.json:
        print_json({"summary": summary})
    else:
        print(f"{Count(len(planned)):report is|reports are} owed")
    return 0
