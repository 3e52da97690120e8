"""Files on their way to a Storage SCP: what ``storescp send`` does. Blocking; no Twisted.

What belongs here: which files there are, which associations they need, and what became of each.
"""

from __future__ import annotations

import os
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

from storescp import dataset_head as tags
from storescp.pdu import UserIdentity
from storescp.scu import MAX_CONTEXTS, SCU, AssociationError, ContextNotAccepted
from storescp.sop_classes import DEFLATED_TRANSFER_SYNTAXES
from storescp.stored_file import NotAnInstance, open_file, read_data_set_head, read_file_head

#: Files that go on one association, and are known before it begins.
MAX_FILES = 10_000

SUCCESS = 0x0000

# PS3.7 Annex C and PS3.4 Table B.2-1, in the standard's words.
_STATUSES = {
    SUCCESS: "Success",
    0x0110: "Processing failure",
    0x0111: "Duplicate SOP Instance",
    0x0117: "Invalid SOP Instance",
    0x0122: "SOP Class not supported",
    0x0124: "Not authorized",
    0x0210: "Duplicate invocation",
    0x0211: "Unrecognized operation",
    0x0212: "Mistyped argument",
    0xB000: "Warning: Coercion of Data Elements",
    0xB006: "Warning: Elements Discarded",
    0xB007: "Warning: Data Set does not match SOP Class",
}
_STATUS_RANGES = (
    (0xA700, 0xA7FF, "Refused: Out of Resources"),
    (0xA900, 0xA9FF, "Error: Data Set does not match SOP Class"),
    (0xC000, 0xCFFF, "Error: Cannot understand"),
)


class FileToSend(NamedTuple):
    """A file with an instance, ``offset`` bytes into which its data set begins."""

    path: str
    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str
    offset: int
    size: int


class Sending:
    """Sends files to *host* and *port*. Afterwards ``statuses`` (how many of each), ``unsent`` and ``bytes`` (of the
    files answered) are the counts.

    *report* gets the path of each file that was not stored, why, and the status if that is why; *progress* the
    number of files done so far and the number known so far.
    """

    def __init__(
        self,
        host: str,
        port: int,
        *,
        calling_ae_title: str,
        called_ae_title: str,
        timeout: float,
        user: UserIdentity | None = None,
        report: Callable[[str, str, int | None], None],
        progress: Callable[[int, int], None] = lambda done, known: None,
    ) -> None:
        self._host = host
        self._port = port
        self._calling_ae_title = calling_ae_title
        self._called_ae_title = called_ae_title
        self._timeout = timeout
        self._user = user
        self._report = report
        self._progress = progress
        self._known = 0
        self.statuses: Counter[int] = Counter()
        self.unsent = 0
        self.bytes = 0

    @property
    def done(self) -> int:
        """Files that were answered or will not be sent."""
        return self.statuses.total() + self.unsent

    def run(self, paths: Sequence[str]) -> None:
        """Send the files at *paths*, and those below where that is a directory.

        Raises AssociationError; the files that were known and not sent are counted then.
        """
        for group in _groups(self._files(paths)):
            waiting = deque(group)
            while waiting:
                try:
                    self._send(waiting)
                except AssociationError:
                    self.unsent += len(waiting)
                    raise

    def _send(self, waiting: deque[FileToSend]) -> None:
        """Send files on one association, as many as it takes."""
        contexts = list(dict.fromkeys((file.sop_class_uid, file.transfer_syntax_uid) for file in waiting))
        with SCU(
            self._host,
            self._port,
            contexts,
            calling_ae_title=self._calling_ae_title,
            called_ae_title=self._called_ae_title,
            timeout=self._timeout,
            user=self._user,
        ) as scu:
            while waiting:
                file = waiting.popleft()
                try:
                    go_on = self._store(scu, file)
                except AssociationError as error:
                    self._fail(file.path, str(error))
                    raise
                self._progress(self.done, self._known)
                if not go_on:
                    return

    def _store(self, scu: SCU, file: FileToSend) -> bool:
        """Send one file; false when that was the end of the association."""
        try:
            content = open_file(file.path)
        except (OSError, NotAnInstance) as error:
            self._fail(file.path, _reason(error))
            return True
        with content:
            try:
                response = scu.store(
                    file.sop_class_uid,
                    file.sop_instance_uid,
                    file.transfer_syntax_uid,
                    content.fileno(),
                    file.offset,
                )
            except ContextNotAccepted as error:
                self._fail(file.path, str(error))
                return True
            except OSError as error:  # half of the data set is on its way
                self._fail(file.path, _reason(error))
                scu.abort()
                return False
        self.statuses[response.status] += 1
        self.bytes += file.size
        if response.status != SUCCESS:
            comment = f" ({response.comment})" if response.comment else ""
            self._report(file.path, f"{status_text(response.status)}{comment}", response.status)
        return True

    def _files(self, paths: Iterable[str]) -> Iterator[FileToSend]:
        for path in _walk(paths, self._fail):
            self._known += 1
            try:
                with open_file(path) as content:
                    head = read_file_head(content.fileno())
                    data_set = read_data_set_head(content.fileno(), head)
                    size = os.fstat(content.fileno()).st_size
                    deflated = head.transfer_syntax_uid in DEFLATED_TRANSFER_SYNTAXES
                    if (size - head.data_set_offset) % 2 and not deflated:
                        raise NotAnInstance("its data set has an odd number of bytes")
            except (OSError, NotAnInstance) as error:
                self._fail(path, _reason(error))
                continue
            # The data set's own UIDs, where it has them: that is what the receiver compares (PS3.4 §B.2.3).
            yield FileToSend(
                path,
                data_set.uid(tags.SOP_CLASS_UID) or head.sop_class_uid,
                data_set.uid(tags.SOP_INSTANCE_UID) or head.sop_instance_uid,
                head.transfer_syntax_uid,
                head.data_set_offset,
                size,
            )

    def _fail(self, path: str, why: str) -> None:
        self.unsent += 1
        self._report(path, why, None)


def status_text(status: int) -> str:
    """A status with its meaning."""
    meaning = _STATUSES.get(status) or next(
        (text for first, last, text in _STATUS_RANGES if first <= status <= last), "unknown status"
    )
    return f"{status:04X}H {meaning}"


def _walk(paths: Iterable[str], fail: Callable[[str, str], None]) -> Iterator[str]:
    for path in paths:
        if not os.path.isdir(path):
            yield path
            continue
        for directory, directories, names in os.walk(
            path, onerror=lambda error: fail(error.filename, _reason(error))
        ):
            directories.sort()
            yield from (os.path.join(directory, name) for name in sorted(names))


def _groups(files: Iterable[FileToSend]) -> Iterator[list[FileToSend]]:
    """The files of one association each, in order."""
    group: list[FileToSend] = []
    contexts: set[tuple[str, str]] = set()
    for file in files:
        context = file.sop_class_uid, file.transfer_syntax_uid
        if len(group) == MAX_FILES or (context not in contexts and len(contexts) == MAX_CONTEXTS):
            yield group
            group, contexts = [], set()
        group.append(file)
        contexts.add(context)
    if group:
        yield group


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)
