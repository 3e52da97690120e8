"""Numbers of things in words, for people."""

from __future__ import annotations


class Count(int):
    """A number that says what it counts when it is formatted: ``{Count(1):file}`` is "1 file", of 2 "2 files".

    Where an "s" is not all, both forms are given: ``{count:report is|reports are}``.
    """

    def __format__(self, words: str) -> str:
        one, _, many = words.partition("|")
        return f"{int(self)} {one if self == 1 else many or f'{one}s'}"
