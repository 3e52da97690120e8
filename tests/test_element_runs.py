"""storescp.element_runs: what was walked over before is recognised, and read no differently."""

from __future__ import annotations

import random
from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from storescp import dataset_head, element_runs
from storescp.dataset_head import HeadError, HeadReader
from storescp.element_runs import PATIENCE, RUN_COSTS, RUN_ELEMENTS, RUNS
from tests.strategies import steady
from tests.test_dataset_head import BIG_ENDIAN, EXPLICIT, IMPLICIT, element

ENCODINGS = {
    EXPLICIT: dataset_head._EXPLICIT,
    IMPLICIT: dataset_head._IMPLICIT,
    BIG_ENDIAN: dataset_head._ENCODINGS[BIG_ENDIAN],
}

#: What the data sets here are made of; few elements and lengths, so that they meet again in other company.
PARTS = [
    (0x00080008, "CS"), (0x00080016, "UI"), (0x00080018, "UI"), (0x00081030, "LO"), (0x00091010, "UN"),
    (0x00100010, "PN"), (0x00180015, "CS"), (0x00189999, "OB"), (0x0020000D, "UI"), (0x00200013, "IS"),
    (0x00280010, "US"), (0x00280011, "US"), (0x00280100, "US"),
]  # fmt: skip


def forget(patience: int = PATIENCE) -> None:
    """Begin anew; without patience nothing is learnt, nor recognised."""
    for encoding in ENCODINGS.values():
        encoding.runs.clear()
        encoding.patience = patience


def read(syntax: str, data: bytes, size: int = 0) -> dict[int, bytes] | str:
    """The values in the head of *data*, in pieces of *size* (0: in one), or what is wrong with it."""
    reader = HeadReader(syntax)
    try:
        for start in range(0, len(data), size or len(data) or 1):
            if reader.feed(data[start : start + (size or len(data))]):
                break
        return reader.finish().raw
    except HeadError as error:
        return str(error)


def series(count: int, lengths: Sequence[int], elements: int = 60) -> list[bytes]:
    """Data sets alike in their headers, but for the *lengths* of three values in each."""
    chosen = random.Random(1)
    return [
        b"".join(
            element(
                EXPLICIT,
                0x00080020 + number,
                "LO",
                b"1" * (chosen.choice(lengths) if number % 20 == 7 else number % 5 * 2),
            )
            for number in range(elements)
        )
        + element(EXPLICIT, 0x0020000D, "UI", b"1.2.%03d" % instance)
        + element(EXPLICIT, 0x00280011, "US", b"\0\2")
        for instance in range(count)
    ]


class ElementRunsTests(SynchronousTestCase):
    """Encoding.recognise() and learn(), through HeadReader."""

    def setUp(self) -> None:
        self.addCleanup(forget)
        forget()

    @given(
        st.sampled_from(list(ENCODINGS)),
        st.lists(
            st.lists(
                st.tuples(
                    st.sampled_from(PARTS),
                    st.sampled_from((0, 2, 4)),
                    st.sampled_from((None, None, None, 1, 2**16 - 2)),
                ),
                max_size=12,
            ),
            min_size=2,
            max_size=6,
        ),
        st.booleans(),
        st.sampled_from((0, 0, 1, 30)),
    )
    @steady
    def test_no_difference(
        self,
        syntax: str,
        data_sets: list[list[tuple[tuple[int, str], int, int | None]]],
        ordered: bool,
        size: int,
    ) -> None:
        """Whatever was read before, a data set has the same head, or the same fault, as without any memory."""
        encoded = [
            b"".join(
                element(syntax, tag, vr, b"1" * length, claimed)
                for (tag, vr), length, claimed in (sorted(parts, key=str) if ordered else parts)
            )
            for parts in data_sets
        ]
        forget(0)
        expected = []
        for data in encoded:
            expected.append(read(syntax, data))
            forget(0)  # a head earns patience
        forget()
        for _ in range(3):
            self.assertEqual([read(syntax, data, size) for data in encoded], expected)

    def test_settles(self) -> None:
        """A series with values of a few lengths is known after a while: nothing more is learnt from it."""
        data_sets = series(300, (2, 4, 6))
        for data in data_sets:
            read(EXPLICIT, data)
        known = dict(ENCODINGS[EXPLICIT].runs)
        self.assertEqual(ENCODINGS[EXPLICIT].patience, PATIENCE)
        elements_in_runs = max(len(run.expected) for run in known.values())
        self.assertGreaterEqual(elements_in_runs, 19)  # all that stand between two values that vary
        for data in data_sets:
            read(EXPLICIT, data)
        self.assertEqual(ENCODINGS[EXPLICIT].runs, known)

    def test_patience(self) -> None:
        """From data sets that never repeat themselves little is learnt, and nothing more for most of them."""
        noise = random.Random(2)
        learnt = []
        remember = element_runs.Encoding._remember

        def counted(encoding: element_runs.Encoding, data: bytes, start: int, end: int) -> element_runs._Run:
            learnt.append(end - start)
            return remember(encoding, data, start, end)

        self.patch(element_runs.Encoding, "_remember", counted)
        count = 1000
        for _ in range(count):
            parts = [
                element(EXPLICIT, 0x00090000 + number, "LO", b"1" * noise.randrange(0, 1000, 2))
                for number in range(12)
            ]
            read(EXPLICIT, b"".join(parts) + element(EXPLICIT, 0x00280011, "US", b"\0\2"))
        self.assertLessEqual(len(learnt), PATIENCE / RUN_COSTS + count / RUN_COSTS + 1)
        self.assertGreater(len(learnt), PATIENCE / RUN_COSTS)

    def test_bounded(self) -> None:
        """Runs are limited in number and in length."""
        encoding = ENCODINGS[EXPLICIT]
        for number in range(2 * RUNS):
            encoding.patience = PATIENCE
            parts = [element(EXPLICIT, 0x00090000 + number + part, "LO") for part in range(RUN_ELEMENTS + 5)]
            read(EXPLICIT, b"".join(parts) + element(EXPLICIT, 0x00280011, "US", b"\0\2"))
            self.assertLessEqual(len(encoding.runs), RUNS)
        self.assertEqual(max(len(run.expected) for run in encoding.runs.values()), RUN_ELEMENTS)
