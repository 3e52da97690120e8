"""The encodings of data elements, PS3.5 §7.1, each with the runs of elements that came before.

What belongs here: recognising at once what was walked over before. The instances of a series hardly differ in
the headers of their elements, but for the length of some values. So the elements between those are remembered
as runs, and where all headers of a run are found again, in one comparison, so are the values.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import NamedTuple

#: Elements in a run, and runs remembered per encoding: some 3 MiB in the worst case.
RUN_ELEMENTS = 128
RUNS = 512

#: What a run costs to be learnt, and what there is to spend. Each head earns one, and so does each run of
#: RUN_PAYS elements that is recognised: senders that never repeat themselves are not worth the effort.
RUN_COSTS = 16
RUN_PAYS = 16
PATIENCE = 1024

# PS3.5 §7.1.2: these VRs have a length of 16 bits, all others and those to come one of 32.
_SHORT = "AE AS AT CS DA DS DT FL FD IS LO LT PN SH SL SS ST TM UI UL US".split()


class _Run(NamedTuple):
    """Elements that followed each other in some data set. Where all their headers do again, so does the rest."""

    size: int  # bytes
    headers: struct.Struct
    expected: tuple[bytes, ...]
    values: struct.Struct  # of the wanted ones
    tags: tuple[int, ...]


@dataclass(slots=True, eq=False, kw_only=True)
class Encoding:
    """One of the encodings of PS3.5 §7.1. VRs are read as a 16-bit integer in its byte order.

    ``runs`` have the first 8 bytes of their first element as keys. Any thread may look there and learn: a run
    is true by itself.
    """

    big_endian: bool
    explicit: bool
    header: struct.Struct  # group, element, VR, 16-bit length
    length: struct.Struct  # 32-bit length
    item: struct.Struct  # group, element, 32-bit length: items, and elements of implicit VR
    short: frozenset[int]
    un: int
    wanted: frozenset[int]  # tags
    longest: int  # value that is wanted, in bytes
    runs: dict[bytes, _Run] = field(default_factory=dict)
    patience: int = PATIENCE

    @classmethod
    def of(
        cls, wanted: frozenset[int], longest: int, *, big_endian: bool = False, explicit: bool = True
    ) -> Encoding:
        """The encoding, with no runs known yet."""
        order = ">" if big_endian else "<"
        code = struct.Struct(order + "H")
        return cls(
            big_endian=big_endian,
            explicit=explicit,
            header=struct.Struct(order + "HHHH"),
            length=struct.Struct(order + "I"),
            item=struct.Struct(order + "HHI"),
            short=frozenset(code.unpack(vr.encode())[0] for vr in _SHORT),
            un=code.unpack(b"UN")[0],
            wanted=wanted,
            longest=longest,
        )

    def element(self, data: bytes, pos: int) -> tuple[int, int, int]:
        """Tag, position of the value and its length, of an element whose header is there."""
        if not self.explicit:
            group, element, length = self.item.unpack_from(data, pos)
            return group << 16 | element, pos + 8, length
        group, element, vr, length = self.header.unpack_from(data, pos)
        if vr in self.short:
            return group << 16 | element, pos + 8, length
        return group << 16 | element, pos + 12, self.length.unpack_from(data, pos + 8)[0]

    def recognise(self, run: _Run, data: bytes, pos: int, raw: dict[int, bytes]) -> int:
        """Where the elements of *run* end if *data* has them at *pos*, their values then in *raw*; else *pos*."""
        if run.size > len(data) - pos or self.patience <= 0:
            return pos
        headers = run.headers.unpack_from(data, pos)
        if headers != run.expected:
            end = pos  # from now on the run is what the two have in common
            for header, expected in zip(headers, run.expected, strict=True):
                if header != expected:
                    break
                _, value, length = self.element(data, end)
                end = value + length
            run = self._remember(data, pos, end)
        if len(run.expected) >= RUN_PAYS:
            self.earn()
        if run.tags:
            raw.update(zip(run.tags, run.values.unpack_from(data, pos), strict=True))
        return pos + run.size

    def earn(self) -> None:
        """Knowing runs was worth it, or may be next time."""
        if self.patience < PATIENCE:
            self.patience += 1

    def learn(self, data: bytes, start: int, end: int) -> None:
        """Remember the elements from *start* to *end*, all of defined length and whole.

        No run begins with a 32-bit length behind its VR: one key would stand for many.
        """
        while start < end and self.patience > 0:
            _, value, length = self.element(data, start)
            if value - start > 8:
                start = value + length
                continue
            start += self._remember(data, start, end).size

    def _remember(self, data: bytes, start: int, end: int) -> _Run:
        """The run of the elements from *start* to *end*, or of as many of them as a run takes."""
        if len(self.runs) >= RUNS:
            self.runs.clear()
        self.patience -= RUN_COSTS
        pos = at = start
        headers = values = ""
        expected: list[bytes] = []
        tags: list[int] = []
        while pos < end and len(expected) < RUN_ELEMENTS:
            tag, value, length = self.element(data, pos)
            headers += f"{value - pos}s{length}x"
            expected.append(data[pos:value])
            pos = value + length
            if tag in self.wanted and length <= self.longest:
                values += f"{value - at}x{length}s"
                tags.append(tag)
                at = pos
        run = _Run(pos - start, struct.Struct(headers), tuple(expected), struct.Struct(values), tuple(tags))
        self.runs[data[start : start + 8]] = run
        return run
