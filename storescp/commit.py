"""From a complete file to an instance that may be answered: name, directories, row. Blocking; no Twisted.

What belongs here: what happens to a group of files together, and what becomes of one whose name is taken.
The order makes the promise: the content is on the disk before it has a name, the journal knows of the name before
it is given, and only what has a durable name and a row is a success. Everything else is taken back. Of a small
file it is the journal that has content and name on the disk, of a large one the file and its directory.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Sequence
from typing import Protocol

from storescp.beneath import SymbolicLink
from storescp.config import Duplicate
from storescp.index import Index
from storescp.index_rows import ReceivedInstance
from storescp.journal import Beginning, Journal, Unsettled
from storescp.journal_file import Pieces
from storescp.lost_answers import LostAnswers
from storescp.part10 import UnnamedFile
from storescp.restoration import rewrite
from storescp.storage_directory import StorageDirectory
from storescp.stored_file import NotAnInstance, open_below, read_file_head, same_data_set


class DuplicateInstance(Exception):
    """The instance is stored already, and the policy is to say so."""


class CompleteFile(Protocol):
    """A file that waits for its name.

    ``content`` is its bytes, if the journal is to have them; else the file is synced, and ``checksum`` is that of all.
    ``duplicate`` is its own policy, None for that of all; ``data_set_offset`` in bytes; ``replaced`` the hidden name of
    what it took the place of. The commit sets ``error``, ``exists`` (the name is taken: :meth:`Committer.judge` it),
    ``is_begun`` and ``is_open`` (the journal waits for the sender to have its answer).
    """

    path: str
    duplicate: Duplicate | None
    file: UnnamedFile | None
    content: Pieces
    checksum: int
    is_begun: bool
    data_set_offset: int
    transfer_syntax_uid: str
    replaced: str | None
    error: Exception | None
    exists: bool
    is_open: bool

    def row(self) -> ReceivedInstance: ...


class Committer:
    """Commits to *directory*, *index* (None: no index) and *journal*; what exists already is treated by *duplicate*.

    An instance whose answer is *lost* will be sent again: if it is the same to the byte it is no duplicate.
    *exclusive* is held while names and rows are given: other processes may do so, too.
    """

    def __init__(
        self,
        directory: StorageDirectory,
        index: Index | None,
        journal: Journal,
        lost: LostAnswers,
        duplicate: Duplicate,
        exclusive: contextlib.AbstractContextManager[object] | None = None,
    ) -> None:
        self.duplicate = duplicate
        self._directory = directory
        self._index = index
        self._journal = journal
        self._lost = lost
        self._exclusive = exclusive or contextlib.nullcontext()
        self._again: set[str] = set()  # lost ones that were sent again, and answered,
        self._found: set[str] = set()  # and those of them whose answer has arrived
        # What the journal has the content of has its name when the journal is rotated.
        self._journal_turn = threading.Lock()
        self._index_turn = threading.Lock()
        self._in_doubt = False  # what was to be flushed
        #: What is entered while a group of files reaches the disk, and while its rows are committed.
        self.syncing: contextlib.AbstractContextManager[object] = contextlib.nullcontext()
        self.indexing: contextlib.AbstractContextManager[object] = contextlib.nullcontext()
        if directory.sync:
            journal.settle = self._settle

    @property
    def unsettled(self) -> int:
        """Files that the journal answers for."""
        return self._journal.unsettled

    def checkpoint(self) -> None:
        """Bring to the disk what only the journal has there, so that it can forget it.

        Any thread may. Raises OSError and IndexUnavailable.
        """
        with self._journal_turn:
            self._journal.rotate()
        self._journal.settle_old()

    def commit(self, files: Sequence[CompleteFile]) -> None:
        """Bring *files* to the disk, and give them their names and rows, together.

        By one thread at a time. Raises nothing: what fails is the ``error`` of each; what had one is left alone.
        """
        with self._journal_turn:
            self._begin([file for file in files if file.error is None])
            try:
                with self._exclusive:
                    self._give_names(files)
            except OSError as error:  # no lock to be had
                for file in files:
                    file.error = file.error or error
            for file in files:
                if file.error is None and not file.exists:
                    file.is_open = True
                    if self._directory.sync and not file.content:
                        self._journal.keep(file.path, _named(file).give_up_name())
            undone = [file for file in files if file.is_begun and not file.is_open]
            for file in undone:
                self._journal.end(file.path)
            if undone and self._directory.sync:
                # If not even that can be written, the journal is begun anew before anything else is.
                with contextlib.suppress(OSError):
                    self._journal.void([file.path for file in undone])

    def _give_names(self, files: Sequence[CompleteFile]) -> None:
        named: list[CompleteFile] = []
        try:
            for file in files:
                if file.error is not None or file.exists:
                    continue
                try:
                    self._name(file)
                except Exception as error:  # noqa: BLE001 - whatever it is becomes this instance's status
                    file.error = error
                else:
                    if not file.exists:
                        named.append(file)
            if named:
                # Elsewhere the journal knows where the file is, whatever becomes of its new name.
                moved = [file.path for file in named if not file.content and _named(file).name is None]
                self._directory.sync_directories(moved)
                if self._index is not None:
                    with self._index_turn, self.indexing:
                        self._index.add([file.row() for file in named])
        except Exception as error:  # noqa: BLE001 - whatever it is becomes the status of all
            for file in files:
                file.error = file.error or error
            for file in named:
                self._take_back(file)

    def _begin(self, files: Sequence[CompleteFile]) -> None:
        new = []
        for file in files:
            # The journal must not have the content of one that gets no name.
            try:
                is_taken = self._directory.has(file.path)
            except OSError as error:
                file.error = error
                continue
            if is_taken and (file.duplicate or self.duplicate) is not Duplicate.REPLACE:
                file.exists = True
            else:
                new.append(file)
        large = [file for file in new if not file.content] if self._directory.sync else []
        if new:
            try:
                with self.syncing:
                    failures = self._journal.begin(
                        [self._beginning(file) for file in new],
                        [_named(file).descriptor for file in large],
                        [self._directory.hidden_descriptor] if large else [],
                    )
            except Exception as error:  # noqa: BLE001 - whatever it is becomes the status of these
                for file in new:
                    file.error = error
            else:
                for file in new:
                    file.is_begun = True
                for file, failure in zip(large, failures, strict=False):
                    file.error = failure or failures[-1]  # the last one is that of the directory

    def judge(self, file: CompleteFile) -> None:
        """Decide on a *file* whose name is taken. Raises DuplicateInstance unless that is a success, and OSError."""
        duplicate = file.duplicate or self.duplicate
        lost = duplicate is Duplicate.REJECT and file.path not in self._found and file.path in self._lost
        if duplicate is not Duplicate.IGNORE and not (
            (lost or duplicate is Duplicate.SAME) and self._is_same(file)
        ):
            raise DuplicateInstance(file.path)
        # Whoever stored it may not have waited for the disk, or not have lived to do so.
        self._directory.sync_file(file.path)
        if lost:
            self._again.add(file.path)
            file.is_open = True

    def acknowledged(self, path: str) -> bool:
        """The sender of an instance that is open has its answer. False if :meth:`settle` has to know; never blocks."""
        self._journal.end(path)
        if path not in self._again:
            return True
        self._again.discard(path)
        self._found.add(path)
        return False

    def settle(self, answers: Sequence[tuple[str, bool]]) -> None:
        """Remember of these paths whether their senders have their answers. By one thread at a time."""
        for path, arrived in answers:
            with contextlib.suppress(OSError):  # then the next start asks the journal
                if arrived:
                    self._lost.discard(path)
                    self._found.discard(path)
                else:
                    self._lost.add(path)
                    self._journal.end(path)

    def _beginning(self, file: CompleteFile) -> Beginning:
        if not self._directory.sync:
            return Beginning(file.path)
        return Beginning(file.path, os.fstat(_named(file).descriptor).st_ino, file.checksum, file.content)

    def _settle(self, unsettled: Unsettled) -> None:
        """The journal is about to forget this, and what the index has been told."""
        try:
            if self._in_doubt:
                # The system tells of an error once, and then takes for written what is not.
                for path, content in unsettled.contents.items():
                    if self._directory.inode_of(path) == content.inode:  # else it was replaced, or taken away
                        rewrite(self._directory, path, content)
            self._directory.flush([*unsettled.contents, *(path for path, _ in unsettled.synced)])
        except OSError:
            self._in_doubt = True
            raise
        self._in_doubt = False
        if self._index is not None:
            with self._index_turn:
                self._index.make_durable()
        for _, hidden in unsettled.synced:
            if hidden is not None:
                self._directory.forget(hidden)

    def _name(self, file: CompleteFile) -> None:
        assert file.file is not None
        try:
            self._directory.name(file.file, file.path, asked=True)
        except FileExistsError:
            if (file.duplicate or self.duplicate) is Duplicate.REPLACE:
                file.replaced = self._directory.replace(file.file, file.path)
            else:
                file.exists = True

    def _take_back(self, file: CompleteFile) -> None:
        try:
            if file.replaced is not None:
                self._directory.restore(file.replaced, file.path)
                file.replaced = None
            else:
                self._directory.remove(file.path)
        except OSError as error:
            file.error = error  # the worse of the two: a file without its row stays, and
            file.is_open = True  # the next start finds it

    def _is_same(self, file: CompleteFile) -> bool:
        assert file.file is not None
        try:
            with open_below(self._directory.beneath, file.path) as stored:
                head = read_file_head(stored.fileno())
                return head.transfer_syntax_uid == file.transfer_syntax_uid and same_data_set(
                    stored.fileno(), head.data_set_offset, file.file.descriptor, file.data_set_offset
                )
        except (NotAnInstance, SymbolicLink):
            return False


def _named(file: CompleteFile) -> UnnamedFile:
    assert file.file is not None
    return file.file
