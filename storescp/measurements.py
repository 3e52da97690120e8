"""What is measured for who watches the service, beside the totals: by sender and modality, and how long things take.

What belongs here: numbers in memory that processes can share. Each process writes only its own, so that counting
needs no lock, and what a worker has counted outlives it. What is counted has the same place in all of them. How much
is told apart is bounded, whatever peers call themselves.
"""

from __future__ import annotations

import contextlib
import enum
import time
from bisect import bisect_left
from collections.abc import Callable
from typing import Final, NamedTuple

#: Calling AE titles without a rule of their own that are told apart: who comes first. Rejected ones may take half.
TITLES = 100

#: Senders with modalities and statuses, or with outcomes of associations, that are told apart.
SERIES = 4096

#: Stands for all that are not told apart.
OTHER = "other"

#: Stands for the modality of what was refused before its data set was read.
UNKNOWN = "unknown"

#: Seconds: what a duration is at most that is counted in each of the buckets.
BUCKETS: Final = (
    *(0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5),
    *(1.0, 2.5, 5.0, 10.0, 30.0, 60.0),
)

# PS3.3 §C.7.3.1.1.1, Modality: the defined terms, and the retired ones.
_MODALITIES: Final = (
    "ANN AR ASMT AU BDUS BI BMD CFM CR CT CTPROTOCOL DMS DG DOC DX ECG EEG EMG EOG EPS ES FID GM HC HD IO IOL IVOCT "
    "IVUS KER KO LEN LS MG MR M3D NM OAM OCT OP OPM OPT OPTBSV OPTENF OPV OSS OT PA PLAN POS PR PT PX REG RESP RF RG "
    "RTDOSE RTIMAGE RTINTENT RTPLAN RTRAD RTRECORD RTSEGANN RTSTRUCT RWV SEG SM SMR SR SRF STAIN TEXTUREMAP TG US VA "
    "XA XAPROTOCOL XC "
    "AS CD CF CP CS DD DF DM DS EC FA FS LP MA MS OPR ST TS VF"
).split()
_MODALITY: Final[dict[bytes | None, str]] = {
    name.encode() + padding: name for name in _MODALITIES for padding in (b"", b" ", b"\0")
} | {None: UNKNOWN}


class Duration(enum.IntEnum):
    """What takes time."""

    RECEIVE = 0
    """From the C-STORE-RQ to the end of its data set."""
    ANSWER = 1
    """From there to the response."""
    SYNC = 2
    """A group of files reaches the disk, by way of the journal."""
    INDEX = 3
    """The rows of a group of files are committed."""


class Event(enum.Enum):
    """What is counted by sender, and by what else."""

    ACCEPTED = "accepted"
    REJECTED = "rejected"
    """By the reason."""
    ENDED = "ended"
    """By how: "released" or "aborted"."""
    INSTANCE = "instance"
    """By modality and status; with the bytes of the data sets."""


class Series(NamedTuple):
    """Something that is told apart. ``labels`` are the calling AE title, and those of the event."""

    event: Event
    labels: tuple[str, ...]


class Counted(NamedTuple):
    """How many of a series there were, and their bytes."""

    series: Series
    times: float
    size: float


class Durations(NamedTuple):
    """How many durations there were within each of BUCKETS, and beyond them; and their sum in seconds."""

    counts: tuple[float, ...]
    seconds: float


#: What a process has of each duration: the counts by bucket, of those beyond, and the sum.
_PER_DURATION = len(BUCKETS) + 2
_FIRST_SERIES = len(Duration) * _PER_DURATION
_CELLS = _FIRST_SERIES + 2 * SERIES

#: Those of SERIES that are kept for what is not told apart but by the last of its labels: a status, a reason.
_RESERVED = 64

_TEXT = 64


def _names_size(capacity: int) -> int:
    return 8 + capacity * _TEXT


def size_of(processes: int) -> int:
    """Bytes of memory that the measurements of so many processes need."""
    return _names_size(TITLES) + _names_size(SERIES) + processes * _CELLS * 8


Lock = Callable[[], contextlib.AbstractContextManager[object]]
"""Makes contexts that only one process is in at a time."""


class Names:
    """Texts, of up to 63 bytes, that get numbers in the order of their coming: the same in all processes, for ever."""

    def __init__(self, memory: memoryview, lock: Lock) -> None:
        self._count = memory[:8].cast("q")
        self._texts = memory[8:]
        self._lock = lock
        self._numbers: dict[str, int] = {}

    def number(self, text: str, most: int) -> int:
        """Of *text*, which gets one if no more than *most* have one then; else -1."""
        number = self._numbers.get(text)
        if number is not None:
            return number
        if len(self._numbers) >= most and len(self._numbers) == self._count[0]:
            return -1  # who comes with ever new ones costs no lock
        with self._lock():
            number = self.known().get(text)
            if number is None:
                number = len(self._numbers)
                if number >= most:
                    return -1
                encoded = text.encode()
                self._texts[number * _TEXT : number * _TEXT + len(encoded)] = encoded
                self._count[0] = number + 1  # only now is it there, should we die
                self._numbers[text] = number
        return number

    def known(self) -> dict[str, int]:
        """All, with their numbers."""
        for number in range(len(self._numbers), self._count[0]):
            text = bytes(self._texts[number * _TEXT : (number + 1) * _TEXT])
            self._numbers[text.rstrip(b"\0").decode()] = number
        return self._numbers


class Measurements:
    """Those of all *processes*, in *memory* of :func:`size_of` bytes, which is zero at first. *lock* is common."""

    def __init__(self, memory: memoryview, processes: int, lock: Lock = contextlib.nullcontext) -> None:
        titles, series = _names_size(TITLES), _names_size(SERIES)
        self.titles = Names(memory[:titles], lock)
        self.series = Names(memory[titles : titles + series], lock)
        cells = memory[titles + series : size_of(processes)].cast("d")
        self._cells = [cells[number * _CELLS : (number + 1) * _CELLS] for number in range(processes)]

    @classmethod
    def of_one_process(cls) -> Measurements:
        """New ones."""
        return cls(memoryview(bytearray(size_of(1))), 1)

    def recorder(self, process: int = 0) -> Recorder:
        """What writes the numbers of that *process*."""
        return Recorder(self, self._cells[process])

    def counted(self) -> list[Counted]:
        """The sums of all processes."""
        found = []
        for text, number in sorted(self.series.known().items()):
            event, *labels = text.split("\t")
            place = _FIRST_SERIES + 2 * number
            count, size = (sum(cells[at] for cells in self._cells) for at in (place, place + 1))
            found.append(Counted(Series(Event(event), tuple(labels)), count, size))
        return found

    def durations(self, duration: Duration) -> Durations:
        """The sums of all processes."""
        first = duration * _PER_DURATION
        *counts, seconds = (
            sum(cells[at] for cells in self._cells) for at in range(first, first + _PER_DURATION)
        )
        return Durations(tuple(counts), seconds)


class Recorder:
    """Counts what happens in one process. By its reactor's thread, but for what the stopwatches measure."""

    def __init__(self, measurements: Measurements, cells: memoryview[float]) -> None:
        self._titles = measurements.titles
        self._series = measurements.series
        self.cells = cells

    def accepted(self, title: str, *, is_known: bool) -> None:
        """An association of the calling AE *title*, for which there is a rule or not."""
        self._count(Event.ACCEPTED, self._label(title, is_known, TITLES))

    def rejected(self, title: str, reason: str, *, is_known: bool) -> None:
        """An association was."""
        self._count(Event.REJECTED, self._label(title, is_known, TITLES // 2), reason)

    def ended(self, title: str, how: str, *, is_known: bool) -> None:
        """An association has."""
        self._count(Event.ENDED, self._label(title, is_known, TITLES), how)

    def sender(self, title: str, *, is_known: bool) -> Sender:
        """Who counts the instances of an association."""
        return Sender(self, self._label(title, is_known, TITLES))

    def took(self, duration: Duration, seconds: float) -> None:
        """Something has taken so long."""
        cells, first = self.cells, duration * _PER_DURATION
        cells[first + bisect_left(BUCKETS, seconds)] += 1
        cells[first + _PER_DURATION - 1] += seconds

    def stopwatch(self, duration: Duration) -> Stopwatch:
        """A context, for one thread at a time and always the same, whose duration is counted."""
        return Stopwatch(self, duration)

    def place(self, event: Event, *labels: str) -> int:
        """Where in ``cells`` the count of a series is, and behind it its bytes."""
        number = self._series.number("\t".join((event.value, *labels)), SERIES - _RESERVED)
        if number < 0:
            rest = labels[-1:] if len(labels) > 1 else ()
            others = (OTHER,) * (len(labels) - len(rest))
            number = self._series.number("\t".join((event.value, *others, *rest)), SERIES)
        return _FIRST_SERIES + 2 * number

    def _count(self, event: Event, *labels: str) -> None:
        self.cells[self.place(event, *labels)] += 1

    def _label(self, title: str, is_known: bool, most: int) -> str:
        if is_known:
            return title
        if not (title and title.isascii() and title.isprintable()) or self._titles.number(title, most) < 0:
            return OTHER
        return title


class Sender:
    """Counts the instances that an association brings."""

    __slots__ = ("_cells", "_label", "_places", "_recorder", "_took")

    def __init__(self, recorder: Recorder, label: str) -> None:
        self._recorder = recorder
        self._label = label
        self._cells = recorder.cells
        self._places: dict[tuple[str, int], int] = {}
        self._took = recorder.took

    def received(self, seconds: float) -> None:
        """An instance is there, after so many."""
        self._took(Duration.RECEIVE, seconds)

    def answered(self, modality: bytes | None, status: int, size: int, seconds: float) -> None:
        """It was, so many seconds after that. *modality* as encoded, None if not known; *size* in bytes."""
        key = _MODALITY.get(modality, OTHER), status
        place = self._places.get(key)
        if place is None:
            place = self._recorder.place(Event.INSTANCE, self._label, key[0], f"{status:04X}")
            self._places[key] = place
        cells = self._cells
        cells[place] += 1
        cells[place + 1] += size
        self._took(Duration.ANSWER, seconds)


class Stopwatch:
    """See Recorder.stopwatch()."""

    __slots__ = ("_began", "_duration", "_recorder")

    def __init__(self, recorder: Recorder, duration: Duration) -> None:
        self._recorder = recorder
        self._duration = duration
        self._began = 0.0

    def __enter__(self) -> None:
        self._began = time.monotonic()

    def __exit__(self, *error: object) -> None:
        self._recorder.took(self._duration, time.monotonic() - self._began)
